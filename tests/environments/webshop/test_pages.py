"""The shop's pages, against recorded episodes of WebShop's own text environment and against pages by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.shop import goal, make_world, product
from turnppo_hf.environments.webshop.pages import ShoppingSession, page_text, page_text_rich
from turnppo_hf.environments.webshop.rules import World

WISH = goal("B000000001")["instruction_text"]


@pytest.fixture
def session() -> ShoppingSession:
    world = make_world()
    return ShoppingSession(world, world.goals[0])


def test_all_recorded_episodes_replay_exactly(shared_data: Path) -> None:
    world = World.load(shared_data / "webshop")
    with open(shared_data / "cases" / "webshop_episodes.jsonl", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    assert len(cases) == 50
    for case in cases:
        assert world.goals[case["goal_index"]] == case["goal"]
        shopping = ShoppingSession(world, case["goal"])
        for step in [{**case["reset"], "reward": 0.0, "done": False}, *case["steps"]]:
            if "action" in step:
                shopping.act(step["action"])
            assert page_text(shopping) == step["observation"], (case["episode"], step.get("action"))
            assert list(shopping.clickables()) == step["available"]["clickables"]
            assert (shopping.place == "start") == step["available"]["has_search_bar"]
            assert (shopping.reward or 0.0, shopping.reward is not None) == (step["reward"], step["done"])
        if case["verbose"]:
            assert shopping.terms == case["verbose"]


def test_start_page_has_a_search_bar_and_nothing_to_click_on(session: ShoppingSession) -> None:
    assert page_text(session) == f"WebShop [SEP] Instruction: [SEP] {WISH} [SEP] Search"
    assert not session.act("click[search]")


def test_results_page_lists_ten_and_goes_on_past_the_end(session: ShoppingSession) -> None:
    assert session.act("search[Lamp]")
    first = page_text(session)
    assert first.startswith(
        f"Instruction: [SEP] {WISH} [SEP] Back to Search [SEP] Page 1 (Total results: 2) [SEP] Next >"
    )
    assert "B000000001 [SEP] Brass Table Lamp [SEP] $20.0" in first
    assert session.act("click[next >]")
    assert page_text(session).endswith("Page 2 (Total results: 2) [SEP] < Prev [SEP] Next >")
    assert session.act("click[< PREV]")
    assert page_text(session) == first


def test_search_without_a_hit_is_an_empty_page(session: ShoppingSession) -> None:
    assert session.act("search[the of and]")
    assert page_text(session).endswith("Page 1 (Total results: 0) [SEP] Next >")


def test_item_page_shows_options_price_and_buttons_in_order(session: ShoppingSession) -> None:
    session.act("search[brass]")
    assert session.act("click[B000000001]")
    assert page_text(session) == (
        f"Instruction: [SEP] {WISH} [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] dark red [SEP] black | blue "
        "[SEP] Brass Table Lamp [SEP] Price: $20.0 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews "
        "[SEP] Buy Now"
    )
    assert list(session.clickables()) == [
        "back to search", "< prev", "description", "features", "reviews", "buy now", "dark red", "black | blue",
    ]  # fmt: skip


def test_chosen_option_is_seen_in_the_rich_text_only(session: ShoppingSession) -> None:
    session.act("search[brass]")
    session.act("click[b000000001]")
    before, rich_before = page_text(session), page_text_rich(session)
    assert session.act("click[dark red]") and session.options == {"color": "dark red"}
    assert page_text(session) == before
    assert page_text_rich(session) == (
        f"You have clicked dark red.\nInstruction:\n{WISH}\n[button] Back to Search [button_]\n"
        "[button] < Prev [button_]\ncolor\n  [clicked button] dark red [clicked button_]\n"
        "  [button] black | blue [button_]\nBrass Table Lamp\n"
        "Price: $20.0\nRating: N.A.\n[button] Description [button_]\n[button] Features [button_]\n"
        "[button] Reviews [button_]\n[button] Buy Now [button_]\n"
    )
    assert page_text_rich(session) != rich_before


def test_visited_products_are_marked_in_the_rich_text_until_the_start_page(session: ShoppingSession) -> None:
    session.act("search[brass]")
    unvisited = "\n[button] B000000001 [button_]\nBrass Table Lamp\n$20.0\n"
    assert unvisited in page_text_rich(session)
    session.act("click[b000000001]")
    session.act("click[< prev]")
    assert "\n[clicked button] B000000001 [clicked button_]\n" in page_text_rich(session)
    session.act("click[back to search]")
    session.act("search[brass]")
    assert unvisited in page_text_rich(session)


def test_sub_pages_keep_options_and_return_to_the_product(session: ShoppingSession) -> None:
    session.act("search[brass]")
    session.act("click[b000000001]")
    session.act("click[dark red]")
    item = page_text(session)
    tails = {"description": "A lamp.", "features": "easy assembly [SEP] for the living room", "reviews": "< Prev"}
    for name, tail in tails.items():
        assert session.act(f"click[{name}]")
        assert page_text(session).endswith(f"< Prev [SEP] {tail}" if name != "reviews" else "[SEP] < Prev")
        assert not session.act("click[buy now]")
        assert session.act("click[< prev]")
        assert page_text(session) == item and session.options == {"color": "dark red"}


@pytest.mark.parametrize("action", ["click[< prev]", "search[brass]"])
def test_leaving_a_product_forgets_its_options(session: ShoppingSession, action: str) -> None:
    for step in ("search[brass]", "click[b000000001]", "click[dark red]", action):
        session.act(step)
    assert (session.place, session.options) == ("search_results", {})


def test_purchase_is_scored_and_receipted(session: ShoppingSession) -> None:
    for step in ("search[brass]", "click[b000000001]", "click[dark red]", "click[Buy Now]"):
        assert session.act(step)
    assert session.reward == 1 and session.clickables() == {}
    assert '[SEP] options [SEP] {"color": "dark red"} [SEP] attrs' in page_text(session)
    assert page_text(session).endswith("Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None")


@pytest.mark.parametrize(
    "action",
    ["", "buy now", "click[]", "search[]", "Search[lamp]", "CLICK[back to search]", " click[back to search]",
     "click[b000000003]", "click[back to search", "think[click]", "click[back\nto search]"],
)  # fmt: skip
def test_what_is_no_command_changes_nothing(session: ShoppingSession, action: str) -> None:
    session.act("search[brass]")
    page, clickables = page_text_rich(session), session.clickables()
    assert not session.act(action)
    assert (page_text_rich(session), session.clickables()) == (page, clickables)


def test_value_of_two_groups_belongs_to_the_last() -> None:
    world = make_world([product("B000000001", options={"top": ["red"], "bottom": ["red"]})])
    session = ShoppingSession(world, world.goals[0])
    for step in ("search[brass]", "click[b000000001]", "click[red]"):
        session.act(step)
    assert session.options == {"bottom": "red"}


def test_options_named_like_a_button_press_the_button() -> None:
    values = ["features", "attributes", "next >", "back to search"]
    world = make_world([product("B000000001", options={"kind": values})])

    def place(value: str) -> tuple[str, str | None, dict[str, str]]:
        session = ShoppingSession(world, world.goals[0])
        for step in ("search[brass]", "click[b000000001]", f"click[{value}]"):
            assert session.act(step)
        return session.place, session.sub_page, session.options

    assert place("features") == ("item_sub_page", "Features", {})
    assert place("attributes") == ("item_sub_page", "Attributes", {})
    assert place("next >") == ("item_page", None, {"kind": "next >"})
    assert place("back to search") == ("start", None, {})


def test_keywords_that_name_a_page_confuse_the_way_back_as_in_webshop(session: ShoppingSession) -> None:
    for step in ("search[brass item_page]", "click[b000000001]", "click[features]", "click[< prev]"):
        assert session.act(step)
    assert session.place == "search_results"


def test_quoted_value_among_the_keywords_counts_as_clicked() -> None:
    world = make_world([product("B000000001", options={"color": ["red", "blue"]})])
    session = ShoppingSession(world, world.goals[0])
    for step in ('search[brass "red"]', "click[b000000001]"):
        session.act(step)
    assert page_text_rich(session).startswith("You have clicked red.\nInstruction:") and session.options == {}


@pytest.mark.parametrize(
    ("bullets", "tail"),
    [
        ([], "< Prev"),
        ([""], "< Prev [SEP] "),  # the space before it is left
        (["\n"], "< Prev"),  # an HTML parser drops it
        ([" a ", "\xa0"], "< Prev [SEP] a [SEP] "),
    ],
)
def test_blank_texts_are_what_an_html_parser_leaves(bullets: list[str], tail: str) -> None:
    world = make_world([product("B000000001", BulletPoints=bullets)])
    session = ShoppingSession(world, world.goals[0])
    for step in ("search[brass]", "click[b000000001]", "click[features]"):
        session.act(step)
    assert page_text(session).endswith(f"[SEP] {tail}")
