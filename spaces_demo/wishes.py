"""What a visitor can ask a shopper for: some of the held-out wishes of the shop that it was judged in."""

from __future__ import annotations

from functools import cache

from live import LiveAgent, find_agent, new_world

COUNT = 12


def wishes(agent: str) -> list[tuple[str, int]]:
    """
    Return text and number of some wishes in an agent's shop that no training episode asks for, one of a product.

    Raises:
        `ValueError`: there is no agent of that name, or its shop cannot be opened here.
    """
    return _wishes(find_agent(agent))


def chosen_wish(agent: str, number: object) -> int:
    """
    Return the goal, in the agent's shop, of the wish with a number in `wishes`; the first one where none was chosen.

    Raises:
        `ValueError`: there is none.
    """
    known = wishes(agent)
    if number is not None and number not in range(len(known)):
        raise ValueError(
            f"There is no wish number {str(number)[:20]}. It cannot be fulfilled. Choose one from the list."
        )
    return known[int(number or 0)][1]  # type: ignore[call-overload]


@cache
def _wishes(agent: LiveAgent) -> list[tuple[str, int]]:
    shop = new_world(agent.name)
    numbers = [of_product[0] for of_product in shop.world.goals_by_product("test", shop.split_by)[:COUNT]]
    return [(shop.world.goals[number]["instruction_text"], number) for number in numbers]
