"""
A way through the shop goes in, the next command comes out: a scripted shopper, for demonstrations and as a yardstick.

It searches with the words of the wish, opens the listed product that would earn the most, chooses the options that
are asked for and buys. It sees one page at a time, as a model does, but judges products by the reward itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from turnppo_hf.environments.webshop.data import Goal, Product
from turnppo_hf.environments.webshop.pages import ShoppingSession
from turnppo_hf.environments.webshop.rules import is_similar


def next_action(session: ShoppingSession) -> str:
    """
    Return the command of the next turn.

    Args:
        session (`ShoppingSession`): Where the shopper stands; not on the receipt.
    """
    if session.place == "search_results":
        listed = session.products_on_page
        if not listed:
            return "click[back to search]"
        best = max(listed, key=lambda product: _worth(session, product))
        return f"click[{best['asin'].lower()}]"
    if session.place == "item_page":
        for group, value in wanted_options(session.product, session.goal).items():
            if session.options.get(group) != value:
                return f"click[{value}]"
        return "click[buy now]"
    if session.place == "item_sub_page":
        return "click[< prev]"
    return f"search[{search_words(session.goal)}]"


def search_words(goal: Goal) -> str:
    """Return what to search for: kind of product and attributes, both of which the wish names."""
    return " ".join([goal["query"], *goal["attributes"]])


def wanted_options(product: Product, goal: Goal) -> dict[str, str]:
    """
    Return the values to choose, by option group: where a group has what the goal asks for.

    A value that clicks would give to another group, since a later one has it too, is not chosen.
    """
    asked = goal["goal_options"]
    owner = {value: group for group, values in product["options"].items() for value in values}
    chosen = {}
    for group, values in product["options"].items():
        own = [value for value in values if owner[value] == group]
        wanted = [asked[group]] if isinstance(asked, Mapping) and group in asked else []
        wanted += list(asked.values()) if isinstance(asked, Mapping) else list(asked)
        exact = [value for value in wanted if value in own]
        similar = [value for value in own if any(is_similar(value, other) for other in wanted)]
        if exact or similar:
            chosen[group] = (exact or similar)[0]
    return chosen


def _worth(session: ShoppingSession, product: Product) -> float:
    options = wanted_options(product, session.goal)
    strict = session.strict_options
    return session.world.reward(asin=product["asin"], goal=session.goal, options=options, strict_options=strict)[0]
