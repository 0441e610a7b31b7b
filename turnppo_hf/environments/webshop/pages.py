"""
Actions go in, pages come out: a person's way through the shop, as WebShop's text environment shows it.

A page is a list of nodes, the visible strings of WebShop's HTML in their order; `page_text` and `page_text_rich` write
them as its observation modes `text` and `text_rich` do. No HTML is made: that is where the original's time goes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from turnppo_hf.environments.webshop.data import Goal, Product
from turnppo_hf.environments.webshop.rules import World

PAGE_SIZE = 10  # products on a page of results
SUB_PAGES = ("Description", "Features", "Reviews")

Place = Literal["start", "search_results", "item_page", "item_sub_page", "done"]
Kind = Literal["text", "button", "option", "product"]

_ACTION = re.compile(r"(.+)\[(.+)\]")
_HTML_SPACE = " \t\n\r\f"


@dataclass(frozen=True)
class Node:
    """A visible string of a page, e.g. `Node("Buy Now", "button")`."""

    text: str
    kind: Kind = "text"


@dataclass
class ShoppingSession:
    """
    One person in the shop with one wish.

    `act` takes WebShop's commands. What is no command, or clicks on nothing, changes nothing.
    """

    world: World
    goal: Goal
    strict_options: bool = False
    place: Place = "start"
    keywords: list[str] = field(default_factory=list)  # of the last search, split at single spaces
    results: list[str] = field(default_factory=list)  # ASINs that the last search found, best first
    page: int = 1  # of the results
    asin: str | None = None  # the product that was opened last
    sub_page: str | None = None  # which one of SUB_PAGES, or "Attributes"
    options: dict[str, str] = field(default_factory=dict)  # chosen values by group
    visited: set[str] = field(default_factory=set)  # ASINs opened since the last start page
    reward: float | None = None  # of the purchase
    terms: dict[str, Any] = field(default_factory=dict)  # of the reward

    @property
    def product(self) -> Product:
        """The product that was opened last."""
        assert self.asin is not None
        return self.world.products[self.asin]

    @property
    def products_on_page(self) -> list[Product]:
        """The products of the current page of results."""
        asins = self.results[(self.page - 1) * PAGE_SIZE : self.page * PAGE_SIZE]
        return [self.world.products[asin] for asin in asins]

    def clickables(self) -> dict[str, str | None]:
        """
        Return what can be clicked, in WebShop's order: buttons and products in lower case, then option values.

        Returns:
            `dict[str, str | None]`: for an option's value its group, for everything else `None`. A value that several
            groups have belongs to the last of them.
        """
        nodes = self.nodes()
        names: dict[str, str | None] = {node.text.lower(): None for node in nodes if node.kind == "button"}
        names |= {node.text.lower(): None for node in nodes if node.kind == "product"}
        if self.place == "item_page":
            names |= {value: group for group, values in self.product["options"].items() for value in values}
        return names

    def act(self, action: str) -> bool:
        """
        Carry out `search[keywords]` or `click[name]`; return whether it was one that can be carried out here.

        A search is possible everywhere. Commands are lower case, their arguments may be written in any case.
        """
        match = _ACTION.match(action)
        command, argument = (match[1], match[2].lower()) if match else (action, "")
        if command == "search" and argument:
            self._show_results(argument.split(" "), page=1)
            return True
        if command == "click" and argument != "search":
            clickables = self.clickables()
            if argument in clickables:
                self._click(argument, clickables[argument])
                return True
        return False

    def nodes(self) -> list[Node]:
        """Return the visible strings of the page."""
        if self.place == "start":
            wish = self.goal["instruction_text"]
            return _visible([Node("WebShop"), Node("Instruction: "), Node(wish), Node("Search", "button")])
        if self.place == "done":
            return _visible(self._receipt())
        nodes = [Node("Instruction:"), Node(self.goal["instruction_text"]), Node("Back to Search", "button")]
        if self.place == "search_results":
            nodes.append(Node(f"Page {self.page} (Total results: {len(self.results)})"))
            nodes += [Node("< Prev", "button")] * (self.page > 1) + [Node("Next >", "button")]
            for product in self.products_on_page:
                nodes += [Node(product["asin"], "product"), Node(product["name"]), Node(product["Price"])]
            return _visible(nodes)
        nodes.append(Node("< Prev", "button"))
        return _visible(nodes + (self._item() if self.place == "item_page" else self._item_sub_page()))

    def _click(self, name: str, group: str | None) -> None:
        at = self._place_in_url()
        if name == "buy now":
            self.reward, self.terms = self.world.reward(
                asin=self.product["asin"], goal=self.goal, options=self.options, strict_options=self.strict_options
            )
            self.place = "done"
        elif name == "back to search":
            self.place, self.keywords, self.results, self.page = "start", [], [], 1
            self.asin, self.options, self.visited = None, {}, set()
        elif at == "search_results" and name in ("next >", "< prev"):
            self._show_results(self.keywords, self.page + (1 if name == "next >" else -1))
        elif at == "item_sub_page" and name == "< prev":
            self.place = "item_page"
        elif at == "item_page" and name == "< prev":
            self._show_results(self.keywords, self.page)
        elif name.capitalize() in (*SUB_PAGES, "Attributes"):
            self.place, self.sub_page = "item_sub_page", name.capitalize()
        else:
            if group is not None:
                self.options[group.lower()] = name
            elif self.place == "search_results":
                self.asin = name.upper()
                self.visited.add(self.asin)
            self.place = "item_page"

    def _show_results(self, keywords: list[str], page: int) -> None:
        if keywords != self.keywords or not self.results:
            self.results = self.world.search(" ".join(keywords))
        self.place, self.keywords, self.page = "search_results", keywords, page
        self.asin, self.options = None, {}

    def _place_in_url(self) -> str:
        """
        Return where WebShop takes the click to be made.

        It looks for the first of these names anywhere in its URL, which also holds the keywords and the options.
        """
        url = f"{self.place}/{'+'.join(self.keywords)}/{json.dumps(self.options)}"
        return next((name for name in ("search_results", "item_page", "item_sub_page") if name in url), "")

    def _item(self) -> list[Node]:
        product = self.product
        nodes = []
        for group, values in product["options"].items():
            nodes += [Node(group), *(Node(value, "option") for value in values)]
        nodes += [Node(product["name"]), Node(f"Price: {product['Price']}"), Node("Rating: N.A.")]
        return nodes + [Node(name, "button") for name in (*SUB_PAGES, "Buy Now")]

    def _item_sub_page(self) -> list[Node]:
        product = self.product
        if self.sub_page == "Description":
            return [Node(product["Description"])]
        if self.sub_page == "Features":
            return [Node(f" {bullet}") for bullet in product["BulletPoints"]]
        if self.sub_page == "Attributes":  # only reached by a product with an option of this name
            facts = (product["category"], product["query"], product["product_category"])
            return [*(Node(f" {attribute}") for attribute in product["Attributes"]), *map(Node, facts)]
        return []  # the text environment has no reviews

    def _receipt(self) -> list[Node]:
        # Flask's JSON: sorted keys, ASCII, and what HTML would read as markup escaped
        options = json.dumps(self.options, sort_keys=True)
        for character in "<>&'":
            options = options.replace(character, f"\\u{ord(character):04x}")
        texts = ["Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)"]
        texts += ["Purchased", "asin", str(self.asin), "options", options]
        for label in ("attrs", "category", "query", "product category"):
            texts += [label, "None"]
        texts += ["Target", "asin", "options", "attrs", "price upper", "instuction text"]  # spelt so in WebShop
        texts += ["category", "product category", "query", "Goal ", "None", "Reward"]
        texts += ["Your score (min 0.0, max 1.0)", str(self.reward), "Reward Details ", "None"]
        return [Node(text) for text in texts]


def page_text(session: ShoppingSession) -> str:
    """Return the page as WebShop's observation mode `text`: the strings, trimmed, with ` [SEP] ` between them."""
    return " [SEP] ".join(node.text.strip() for node in session.nodes())


def page_text_rich(session: ShoppingSession) -> str:
    """Return the page as WebShop's observation mode `text_rich`: buttons are marked, chosen ones differently."""
    url = f"{'+'.join(session.keywords)}/{session.page}/{json.dumps(session.options)}"
    observation = ""
    for node in session.nodes():
        if node.kind == "button":
            line = f"[button] {node.text} [button_]"
        elif node.kind == "option" and f'"{node.text}"' in url:
            line = f"  [clicked button] {node.text} [clicked button_]"
            observation = f"You have clicked {node.text}.\n{observation}"
        elif node.kind == "option":
            line = f"  [button] {node.text} [button_]"
        elif node.kind == "product" and node.text in session.visited:
            line = f"\n[clicked button] {node.text} [clicked button_]"
        elif node.kind == "product":
            line = f"\n[button] {node.text} [button_]"
        else:
            line = node.text
        observation += f"{line}\n"
    return observation


def _visible(nodes: list[Node]) -> list[Node]:
    """What an HTML parser leaves of strings that are nothing but space: nothing with a line break in it, else one."""
    visible = []
    for node in nodes:
        if node.text.strip(_HTML_SPACE):
            visible.append(node)
        elif node.text and "\n" not in node.text:
            visible.append(Node(" ", node.kind))
    return visible
