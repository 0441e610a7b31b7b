"""What a user passes to an agent goes in; the checked value comes out, or one sentence that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from turnppo_hf.rollout.worker import read_seed

_Item = TypeVar("_Item")


def checked_seed(seed: Any) -> int:
    """
    Return a seed, 0 where it is None.

    Raises:
        `ValueError`: it is no whole number from 0 on.
    """
    read, problem = read_seed(seed, 0)
    if problem is not None:
        raise ValueError(problem)
    return read


def checked_list(name: str, items: Any, kind: type[_Item]) -> list[_Item]:
    """
    Return several things of a kind as a list.

    Raises:
        `TypeError`: it is a single one, or something else.
    """
    found = list(items) if isinstance(items, Iterable) and not isinstance(items, (str, kind)) else None
    if found is None or not all(isinstance(item, kind) for item in found):
        raise TypeError(
            f"`{name}` must be a list of {kind.__name__}, got {items!r:.80}. Each one is an episode. Pass a list, "
            "also of a single one."
        )
    return found
