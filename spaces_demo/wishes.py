"""What a visitor can ask the shopper for: some of the held-out wishes of the synthetic shop."""

from __future__ import annotations

from functools import cache

from turnppo_hf.environments.webshop_rules import shared_world

COUNT = 12


@cache
def wishes() -> list[tuple[str, int]]:
    """Return text and number of some wishes whose products no training episode asks for, one of a product."""
    world = shared_world(None, None)
    numbers = [of_product[0] for of_product in world.goals_by_product("test", "product")[:COUNT]]
    return [(world.goals[number]["instruction_text"], number) for number in numbers]
