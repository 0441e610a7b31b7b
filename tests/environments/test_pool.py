"""One environment for each episode at a time: a factory that returns the same one again is refused."""

from __future__ import annotations

import gymnasium
import pytest

from tests.helpers.scripted import CountingEnvironment
from turnppo_hf.environments.factory import open_environments
from turnppo_hf.environments.pool import EnvironmentPool


def test_environment_shared_by_all_episodes_is_refused_before_one_is_played() -> None:
    shared = CountingEnvironment()
    for factory in (lambda: shared, {"a": lambda: gymnasium.Wrapper(shared)}):
        with pytest.raises(TypeError, match=r"returned the same CountingEnvironment twice.*Return a new one"):
            open_environments(factory)


def test_environments_of_their_own_are_taken_and_used_again() -> None:
    pool, names, _ = open_environments(lambda: CountingEnvironment())
    first, second = pool.take(names[0]), pool.take(names[0])
    assert first.environment is not second.environment
    pool.give_back(names[0], first)
    assert pool.take(names[0]) is first
    built = EnvironmentPool({"a": CountingEnvironment})
    assert built.take("a") is not built.take("a")
