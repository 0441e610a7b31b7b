"""The scripted shopper: searches with the wish's words, opens the best product, chooses options, buys."""

from __future__ import annotations

from tests.helpers.shop import goal, make_world, product
from turnppo_hf.environments.webshop.pages import ShoppingSession
from turnppo_hf.environments.webshop.shopper import next_action, wanted_options


def shop(session: ShoppingSession, max_turns: int = 20) -> list[str]:
    """Carry out the shopper's commands until it has bought."""
    commands = []
    while session.reward is None and len(commands) < max_turns:
        commands.append(next_action(session))
        assert session.act(commands[-1])
    return commands


def test_shopper_buys_what_is_wished_for() -> None:
    world = make_world()
    session = ShoppingSession(world, world.goals[0])
    assert shop(session) == [
        "search[table lamps easy assembly]", "click[b000000001]", "click[dark red]", "click[buy now]",
    ]  # fmt: skip
    assert session.reward == 1


def test_shopper_opens_the_listed_product_that_earns_most() -> None:
    cheap = product("B000000002", Attributes=[], BulletPoints=["table lamps easy assembly " * 3, "x"], price=99.0)
    world = make_world([product("B000000001"), cheap])
    session = ShoppingSession(world, world.goals[0])
    session.act("search[lamps]")
    assert session.products_on_page[0]["asin"] == "B000000002"  # it is listed first, and too expensive
    assert next_action(session) == "click[b000000001]"


def test_shopper_finds_back_from_anywhere() -> None:
    world = make_world()
    session = ShoppingSession(world, world.goals[0])
    for command in ("search[rug]", "click[b000000003]", "click[features]"):
        session.act(command)
    assert next_action(session) == "click[< prev]"
    session.act("search[violin]")
    assert next_action(session) == "click[back to search]"  # an empty page of results


def test_wanted_options_are_chosen_by_group_then_by_likeness() -> None:
    lamp = product("B1", options={"color": ["red", "blue"], "size": ["small", "large"], "scent": ["rose"]})
    wish = goal("B1", goal_options={"size": "large", "color": "blue"})
    assert wanted_options(lamp, wish) == {"color": "blue", "size": "large"}  # type: ignore[arg-type]
    human = goal("B1", goal_options=["large"])
    assert wanted_options(lamp, human) == {"size": "large"}  # type: ignore[arg-type]


def test_value_that_a_click_gives_to_another_group_is_not_chosen() -> None:
    lamp = product("B1", options={"top": ["red"], "bottom": ["red", "blue"]})
    wish = goal("B1", goal_options={"top": "red", "bottom": "red"})
    assert wanted_options(lamp, wish) == {"bottom": "red"}  # type: ignore[arg-type]
