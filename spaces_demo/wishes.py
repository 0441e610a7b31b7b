"""What a visitor can ask the shopper for: some of the held-out wishes of the synthetic shop."""

from __future__ import annotations

from functools import cache

from turnppo_hf.environments.webshop.rules import shared_world

COUNT = 12


@cache
def wishes() -> list[tuple[str, int]]:
    """Return text and number of some wishes for products that no training episode asks for, one of a product."""
    world = shared_world(None, None)
    numbers = [of_product[0] for of_product in world.goals_by_product("test", "product")[:COUNT]]
    return [(world.goals[number]["instruction_text"], number) for number in numbers]


def chosen_wish(number: object) -> int:
    """
    Return the goal of the wish with a number in `wishes`, the first one where none was chosen.

    Raises:
        `ValueError`: there is none.
    """
    known = range(len(wishes()))
    if number is not None and number not in known:
        raise ValueError(
            f"There is no wish number {str(number)[:20]}. It cannot be fulfilled. Choose one from the list."
        )
    return wishes()[int(number or 0)][1]  # type: ignore[call-overload]
