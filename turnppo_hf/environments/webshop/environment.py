"""
What the model wrote goes in; the next page and the reward of its turn come out: WebShop as text.

`WebShop` is registered as `turnppo_hf/WebShop-v0`.
"""

from __future__ import annotations

import os
import string
import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from turnppo_hf.environments.reading import (
    check_options,
    check_turn,
    read_answer,
    read_choice,
    read_count,
    read_flag,
    read_penalty,
    read_repeat_rules,
)
from turnppo_hf.environments.webshop.pages import PAGE_SIZE, SUB_PAGES, ShoppingSession, page_text, page_text_rich
from turnppo_hf.environments.webshop.rules import Split, SplitBy, World, shared_world
from turnppo_hf.environments.webshop.shopper import next_action

DATA_VARIABLE = "TURNPPO_WEBSHOP_DATA"
SYNTHETIC = "synthetic"
OBSERVATION_MODES = ("prompt", "text", "text_rich")
MAX_TEXT_LENGTH = 1 << 20  # characters of a page; options and descriptions of real products are long
MAX_COMMAND_LENGTH = 2048  # characters; a longer one does nothing, and reading it could take long

# Characters that could open or close a part of the prompt: those of our own commands and of special tokens.
_LOOK_ALIKES = str.maketrans("<>[]", "\u2039\u203a()")

_INSTRUCTIONS = """\
You are shopping on a web site. Find and buy the product that fits the wish best, with the options that the wish
names and below the price that it names. In each turn you do one thing:
search[words] looks for products; it is possible on every page. click[name] opens what the page offers under that name.
The score comes when you buy: it is the share of the wish that the bought product fulfils. The shop is then closed.

Wish: {wish}

"""
_ANSWER = "Answer in this form and add nothing: <think>your reasoning</think><answer>{example}</answer>"


class PageText(gymnasium.spaces.Text):
    """Any text up to a length: the characters of a shop's pages are not fixed beforehand."""

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string of an allowed length."""
        return isinstance(x, str) and self.min_length <= len(x) <= self.max_length


class WebShop(gymnasium.Env[str, str]):
    """
    ## Description
    Find and buy the product that a wish asks for. Pages, search and reward are those of WebShop's text environment
    (Yao et al. 2022, https://huggingface.co/papers/2207.01206), without Java, HTML or spaCy; where to get its
    products is in `docs/webshop.md`.

    ## Action Space
    `Text`: the completion as it is. `search[keywords]` looks for products, `click[name]` clicks on what the page
    offers; commands are lower case, arguments may be written in any case. Anything else does nothing, but counts as a
    turn and gets the format penalty. With `action_format` `"tags"` the command stands between `<answer>` and
    `</answer>`, and what precedes the last `</think>` is ignored; with `"bare"` the completion is the command.

    ## Observation Space
    `Text`: the page. `"text"` and `"text_rich"` are the original's modes of these names. In `"prompt"`, the user
    message of the turn, every line shows what can be clicked under the name to click, chosen options stay visible,
    and the first message holds rules and wish, each one with `repeat_rules`. Texts of products lose line breaks
    and the characters that commands and special tokens are made of, so they cannot pass for a part of the prompt;
    names so changed can be clicked, and spaces in them do not matter.

    ## Rewards
    0, and WebShop's score in [0, 1] for the purchase. The format penalty is in `info["penalty"]`.

    ## Starting State
    A wish drawn from the split: first a product, then one of its wishes, each with equal chances. Or the one given as
    `reset(options={"goal": ...})`: a number into the world's goals in their canonical order, or a goal's dict.
    Other options are ignored.

    ## Episode End
    Terminated by the purchase. Truncated after `max_turns`; `info["truncation"]` is `"task_budget"` in the mode
    `"prompt"`, which shows the turns left, else `"time_limit"`.

    ## Information

    `clickables` (`list[str]`), `has_search_bar` (`bool`), `state` (`str`, the page, without the turn),
    `synthetic` (`bool`: the catalogue is generated), `action` (`str`, what was carried out, empty if nothing),
    `penalty` (`float`, only where it is not 0), `truncation` (only where truncated), `solved` (`bool`, whether the
    score is 1); after `reset` also `goal` (`dict`) and `world` (`str`); after the purchase also `terms` (`dict`), the
    terms of the reward, and each of them by its own name.

    ## Arguments
        data (`str` or `Path`, *optional*):
            World file, folder with WebShop's files, or dataset id on the Hub, see `World.load`; `"synthetic"` for the
            generated catalogue. Defaults to what the variable `TURNPPO_WEBSHOP_DATA` names, else to the generated
            catalogue, with a warning.
        observation_mode (`"prompt"`, `"text"` or `"text_rich"`, *optional*, defaults to `"prompt"`):
            How pages are written.
        action_format (`"tags"` or `"bare"`, *optional*):
            Where the command stands. Defaults to `"tags"` in the mode `"prompt"`, else to `"bare"`.
        max_turns (`int`, *optional*, defaults to `15`):
            Turns of an episode.
        split (`"train"`, `"validation"` or `"test"`, *optional*):
            Draw wishes of this split only. Does not touch a goal given to `reset`.
        split_by (`"index"` or `"product"`, *optional*, defaults to `"index"`):
            Split wishes as WebShop does, where products occur on both sides, or by product.
        num_products (`int`, *optional*):
            Only the first products of the data; the size of the generated catalogue (500 by default).
        strict_options (`bool`, *optional*, defaults to `False`):
            Compare options with the wished value alone; WebShop does not quite, see `World.reward`.
        format_penalty (`float`, *optional*, defaults to `-0.1`):
            Put into `info["penalty"]` for a turn that does nothing.
        repeat_rules (`bool`, *optional*, defaults to `False`):
            Put rules and wish into every observation of the mode `"prompt"`, for a `context` that leaves out the first
            one.
        render_mode (`str`, *optional*):
            `"ansi"`: `render()` returns the page.

    ## Version History
    1: first.
    """

    version: ClassVar[str] = "1"  # rises when prompt, parsing, reward or the goal of a seed change
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (as in Gymnasium)

    def __init__(
        self,
        data: str | Path | None = None,
        observation_mode: str = "prompt",
        action_format: str | None = None,
        max_turns: int = 15,
        split: Split | None = None,
        split_by: SplitBy = "index",
        num_products: int | None = None,
        strict_options: bool = False,
        format_penalty: float = -0.1,
        repeat_rules: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.observation_mode = read_choice("observation_mode", observation_mode, OBSERVATION_MODES)
        if action_format is None:
            action_format = "tags" if observation_mode == "prompt" else "bare"
        self.action_format = read_choice("action_format", action_format, ("tags", "bare"))
        self.max_turns = read_count("max_turns", max_turns)
        self.split = None if split is None else read_choice("split", split, get_args(Split))
        self.split_by = read_choice("split_by", split_by, get_args(SplitBy))
        self.strict_options = read_flag("strict_options", strict_options)
        self.format_penalty = read_penalty(format_penalty)
        self.repeat_rules = read_repeat_rules(
            repeat_rules, self.observation_mode == "prompt", "observation_mode: prompt"
        )
        self.render_mode = None if render_mode is None else read_choice("render_mode", render_mode, ("ansi",))
        num_products = None if num_products is None else read_count("num_products", num_products)
        self.world = _open_world(data, num_products)
        self._goals = self.world.goals_by_product(self.split, self.split_by)
        self.observation_space = PageText(MAX_TEXT_LENGTH, charset=string.printable)
        self.action_space = PageText(1 << 16, min_length=0, charset=string.printable)
        self._session: ShoppingSession | None = None
        self._num_turns = 0
        self._ending: str | None = "not begun"

    @property
    def data_label(self) -> str:
        """What the world is, in one line; runs record it."""
        return self.world.label

    @property
    def opens_with_rules(self) -> bool:
        """Whether the first observation alone holds rules and wish, so that `context: last` loses them."""
        return self.observation_mode == "prompt" and not self.repeat_rules

    @property
    def session(self) -> ShoppingSession:
        """The way through the shop so far."""
        if self._session is None:
            raise ResetNeeded("The environment has no wish yet. There is no page to show. Call `reset()` first.")
        return self._session

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode; see the class for `options`."""
        super().reset(seed=seed)
        options = options or {}
        check_options(options, ["goal"])
        goal = options.get("goal")
        if goal is None:
            of_product = self._goals[self.np_random.integers(len(self._goals))]
            goal = of_product[self.np_random.integers(len(of_product))]
        self._session = ShoppingSession(self.world, self.world.checked_goal(goal), self.strict_options)
        self._num_turns, self._ending = 0, None
        opening = {"goal": dict(self._session.goal), "world": self.data_label}
        return self._observe(), {**self._info(), "action": "", **opening}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """
        Plays one turn.

        Args:
            action (`str`):
                The completion, reasoning included.
        Raises:
            `gymnasium.error.ResetNeeded`: the episode has ended or not begun.
            `TypeError`: `action` is no string.
        """
        check_turn(action, self._ending, "command", "<answer>search[red shoes]</answer>")
        command = self.parse(action)
        done_something = self.session.act(command)
        self._num_turns += 1
        reward = self.session.reward
        terminated = reward is not None
        truncated = not terminated and self._num_turns >= self.max_turns
        info = {**self._info(), "action": command if done_something else ""}
        if not done_something and self.format_penalty:
            info["penalty"] = self.format_penalty
        if truncated:
            info["truncation"] = "task_budget" if self.observation_mode == "prompt" else "time_limit"
        if terminated or truncated:
            self._ending = "over" if terminated else "out of turns"
        return self._observe(), 0.0 if reward is None else float(reward), terminated, truncated, info

    def render(self) -> str | None:
        """The page in the observation mode `text_rich`; `None` unless `render_mode` is `"ansi"`."""
        return page_text_rich(self.session) if self.render_mode == "ansi" else None

    def parse(self, completion: str) -> str:
        """Return the command that a completion asks for, with names as the page has them; "" where there is none."""
        command = read_answer(completion) if self.action_format == "tags" else completion
        if len(command) > MAX_COMMAND_LENGTH:
            return ""
        if self.observation_mode == "prompt" and command.startswith("click[") and command.endswith("]"):
            name = command[6:-1].lower()
            clickables = self.session.clickables()
            if name not in clickables:  # the page may show it under a changed name, and a model may write other spaces
                name = next((real for real in clickables if _letters(real) == _letters(name)), name)
            return f"click[{name}]"
        return command

    def completion(self, command: str) -> str:
        """The completion that asks for a command: the inverse of `parse`."""
        return f"<answer>{command}</answer>" if self.action_format == "tags" else command

    @property
    def action_grammar(self) -> str:
        """What an answer may be, in one line: for records and cards."""
        answer = "<answer>command</answer>" if self.action_format == "tags" else "command"
        return f"{answer}, command = search[words] | click[name on the page]"

    def random_completion(self, rng: np.random.Generator) -> str:
        """A click on something, or a search for three words of the wish, all equally likely: the random player's."""
        commands = [f"click[{name}]" for name in self.session.clickables() if name != "search"]
        words = self.session.goal["instruction_text"].split()
        commands.append(f"search[{' '.join(rng.choice(words, 3))}]")
        return self.completion(commands[rng.integers(len(commands))])

    def expert_completions(self) -> list[str]:
        """The completion of the scripted shopper for this turn, see `shopper.next_action`."""
        return [self.completion(next_action(self.session))]

    def _info(self) -> dict[str, Any]:
        session = self.session
        return {
            "clickables": list(session.clickables()),
            "has_search_bar": session.place == "start",
            "state": page_text_rich(session),
            "synthetic": self.world.data.synthetic,
            "solved": session.reward is not None and session.reward >= 1,
            **({"terms": session.terms, **session.terms} if session.terms else {}),
        }

    def _observe(self) -> str:
        session = self.session
        if self.observation_mode == "text":
            return page_text(session)
        if self.observation_mode == "text_rich":
            return page_text_rich(session)
        opening = ""
        if self._num_turns == 0 or self.repeat_rules:
            wish = shown(session.goal["instruction_text"])
            opening = _INSTRUCTIONS.format(wish=wish) if self.action_format == "tags" else f"Wish: {wish}\n"
        if session.reward is not None:
            return f"{opening}You have bought {shown(session.product['name'])}. Score: {session.reward:.2f}"
        lines = _PROMPT_PAGES[session.place](session)
        if self._ending is not None:
            return f"{opening}{lines}\nThe episode is {self._ending}."
        if self.action_format == "bare":
            return f"{opening}{lines}\n{self.max_turns - self._num_turns} turns left"
        example = "search[words]" if session.place == "start" else "click[name]"
        turn = f"Turn {self._num_turns + 1} of {self.max_turns}:"
        return f"{opening}{turn}\n{lines}\n{_ANSWER.format(example=example)}"


def shown(text: str) -> str:
    """
    Return a text of a product, a wish or a model in a form that cannot pass for a part of the prompt.

    It becomes one line without control and formatting characters, and `<`, `>`, `[` and `]`, of which commands,
    tags and the special tokens of chat templates are made, become characters that look like them.
    """
    plain = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in text)
    return " ".join(plain.split()).translate(_LOOK_ALIKES)


def _letters(name: str) -> str:
    return "".join(shown(name).lower().split())


def _start_page(session: ShoppingSession) -> str:
    return "You are on the start page. You can: search[words]"


def _results_page(session: ShoppingSession) -> str:
    query, total, last = shown(" ".join(session.keywords)), len(session.results), session.page * PAGE_SIZE
    lines = [f"Results for {query}, page {session.page} of {max(-(-total // PAGE_SIZE), 1)}:"]
    for product in session.products_on_page:
        lines.append(f"{shown(product['name'])}, {product['Price']}: click[{shown(product['asin'].lower())}]")
    if not session.products_on_page:
        lines.append("(nothing)")
    turning = ["click[< prev]"] * (session.page > 1) + ["click[next >]"] * (last < total)
    return "\n".join([*lines, _also(turning)])


def _item_page(session: ShoppingSession) -> str:
    product = session.product
    lines = [shown(product["name"]), f"Price: {product['Price']}"]
    for group, values in product["options"].items():
        chosen = session.options.get(group.lower())
        names = ", ".join(f"click[{shown(value)}]" for value in values)
        lines.append(f"{shown(group)}: {names}" + (f" (chosen: {shown(chosen)})" if chosen is not None else ""))
    buttons = ["click[buy now]", *(f"click[{name.lower()}]" for name in SUB_PAGES), "click[< prev]"]
    return "\n".join([*lines, _also(buttons)])


def _item_sub_page(session: ShoppingSession) -> str:
    texts = [shown(node.text) for node in session.nodes()[4:]]  # behind the wish and the two buttons
    lines = [f"{session.sub_page} of {shown(session.product['name'])}:", *(texts or ["(nothing)"])]
    return "\n".join([*lines, _also(["click[< prev]"])])


_PROMPT_PAGES = {
    "start": _start_page,
    "search_results": _results_page,
    "item_page": _item_page,
    "item_sub_page": _item_sub_page,
}


def _also(commands: list[str]) -> str:
    return f"Also: {', '.join([*commands, 'click[back to search]', 'search[words]'])}"


def _open_world(data: str | Path | None, num_products: int | None) -> World:
    if data is None:
        data = os.environ.get(DATA_VARIABLE) or None
        if data is None:
            warnings.warn(
                "There is no WebShop data, so the shop is a generated, SYNTHETIC catalogue: its scores compare with "
                f"no published ones. Pass `data` or set {DATA_VARIABLE}, see docs/webshop.md, or pass "
                'data="synthetic" if that is what you want.',
                stacklevel=3,
            )
    return shared_world(None if data in (None, SYNTHETIC) else str(data), num_products)
