"""`check_environment` is silent on a sound environment and names each way to break one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete, Text

from turnppo_hf.environments import SokobanTools, WebShopTools, check_environment, make_environment


class Countdown(gymnasium.Env[str, str]):
    """Three turns; the number shown at the start comes from the seed."""

    def __init__(self, **overrides: Callable[..., Any]) -> None:
        self.observation_space = Text(100)
        self.action_space = Text(10)
        self.overrides = overrides
        self.turns_left = 0

    def override(self, name: str, default: Any) -> Any:
        return self.overrides[name](default) if name in self.overrides else default

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.turns_left = 3
        return self.override("reset", (str(self.np_random.integers(1000)), {}))

    def step(self, action: str) -> Any:
        if self.turns_left == 0 and "end" not in self.overrides:
            raise RuntimeError("The episode is over.")
        self.turns_left -= 1
        info = self.override("info", {"solved": False, "action": action})
        reward, ended = self.override("reward", -0.5), self.override("flag", self.turns_left == 0)
        return self.override("step", (str(self.turns_left), reward, False, ended, info))


def unseeded(reply: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    unseeded.calls += 1  # type: ignore[attr-defined]
    return f"{unseeded.calls}", reply[1]  # type: ignore[attr-defined]


unseeded.calls = 0  # type: ignore[attr-defined]


def raise_error(default: Any) -> Any:
    raise KeyError("board")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"step": lambda reply: reply[:4]}, "`step` returned a tuple of length 4"),
        ({"step": lambda reply: None}, "`step` returned NoneType"),
        ({"reset": lambda reply: reply[0]}, "`reset` returned str"),
        ({"reset": lambda reply: (7, {})}, "`reset` returned an observation of type int"),
        ({"reset": lambda reply: ("", {})}, "`reset` returned an empty observation"),
        ({"step": lambda reply: (None, *reply[1:])}, "`step` returned an observation of type NoneType"),
        ({"reward": lambda reward: float("nan")}, "`step` returned the reward nan"),
        ({"reward": lambda reward: "1"}, "`step` returned the reward '1'"),
        ({"reward": lambda reward: True}, "`step` returned the reward True"),
        ({"flag": str}, "`step` returned truncated as str"),
        ({"info": lambda info: None}, "`step` returned info as NoneType"),
        ({"info": lambda info: {"penalty": 0.1}}, r"info\['penalty'\] = 0.1; it must be a finite float of at most 0"),
        ({"info": lambda info: {"penalty": float("nan")}}, r"info\['penalty'\] = nan"),
        ({"info": lambda info: {"truncation": "tired"}}, r"info\['truncation'\] = 'tired'"),
        ({"info": lambda info: {"action": 3}}, r"info\['action'\] = 3; it must be a str"),
        ({"info": lambda info: {"solved": "no"}}, r"info\['solved'\] = 'no'; it must be a bool"),
        ({"reset": unseeded}, "Two episodes with seed 0 and the same completions differ"),
        ({"end": bool}, "`step` after the end of an episode does not raise"),
        ({"info": raise_error}, "Seed 0 raised KeyError"),
    ],
)
def test_each_defect_is_told_once(overrides: dict[str, Callable[..., Any]], message: str) -> None:
    problems = check_environment(Countdown(**overrides))
    assert len([problem for problem in problems if re.search(message, problem)]) == 1, problems


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_episodes": 0}, "`num_episodes` must be an integer of at least 1, got 0"),
        ({"max_turns": 0}, "`max_turns` must be an integer of at least 1, got 0"),
        ({"max_turns": "5"}, "`max_turns` must be an integer of at least 1, got '5'"),
        ({"completions": "hi"}, "`completions` must be a list of texts, got 'hi'"),
        ({"completions": [3]}, r"`completions` must be a list of texts, got \[3\]"),
        ({"completions": None}, "`completions` must be a list of texts, got None"),
    ],
)
def test_arguments_by_which_nothing_would_be_checked_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_environment(Countdown(), **arguments)


def test_sound_environments_have_no_problem() -> None:
    assert check_environment(Countdown()) == []
    for action_format, completion in (("bare", "Up left"), ("tags", "<answer>Down || Right</answer>")):
        environment = make_environment("turnppo_hf/Sokoban-v0", action_format=action_format)
        assert check_environment(environment) == []
        assert check_environment(environment, completions=[completion, "?"]) == []


def test_other_spaces_are_told_without_playing() -> None:
    environment = Countdown(reset=raise_error)
    environment.action_space = Discrete(4)  # type: ignore[assignment]
    assert check_environment(environment) == ["The action space is Discrete; it must be gymnasium.spaces.Text."]


def test_endless_environment_is_no_problem() -> None:
    assert check_environment(Countdown(flag=lambda ended: False, end=bool), max_turns=5) == []


def test_class_id_and_what_cannot_be_played_are_told_without_playing() -> None:
    assert "is no environment; pass one that was made" in check_environment(Countdown)[0]
    assert "is no environment; pass one that was made" in check_environment("sokoban")[0]
    environment = Countdown()
    del environment.action_space
    assert check_environment(environment) == ["The action space is missing; it must be gymnasium.spaces.Text."]


class Old(Countdown):
    """Its `reset` is older than Gymnasium's."""

    def reset(self, *, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class Plain:
    """Two methods that are not Gymnasium's."""

    def reset(self) -> str:
        return "seen"

    def step(self, action: str) -> Any:
        """Play."""


def test_reset_that_training_could_not_call_is_told() -> None:
    assert "takes no `options`" in check_environment(Old())[0]
    assert "the model would be offered `step` as a tool" in check_environment(Plain())[0]


def test_numbers_of_numpy_are_no_problem() -> None:
    info = {"solved": np.bool_(False), "penalty": np.float32(-1)}
    assert check_environment(Countdown(reward=np.float32, flag=np.bool_, info=lambda _: info)) == []


def test_truth_values_are_what_an_episode_takes_for_some() -> None:
    for solved in (None, 1, np.array(True)):
        assert check_environment(Countdown(flag=int, info=lambda _, solved=solved: {"solved": solved})) == []


class Duck:
    """Gymnasium's methods and nothing else."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.over = False
        return "quack", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.over:
            raise RuntimeError("over")
        self.over = True
        return "quack", 0.0, True, False, {}


def test_environment_without_spaces_is_played_with_given_completions() -> None:
    assert check_environment(Duck()) == [
        "There is no action space to draw completions from; pass some in `completions`."
    ]
    assert check_environment(Duck(), completions=["x"]) == []


class Tools:
    """A sound class of TRL's."""

    def reset(self, seed: int = 0, **row: Any) -> Any:
        return f"Guess {seed}."

    def guess(self, number: int, loudly: bool = False) -> str:
        """
        Guess.

        Args:
            number: The number.
            loudly (`bool`): Whether to shout.
        """
        return "no"

    def get_reward(self) -> Any:
        return 0.0


def test_sound_tools_have_no_problem() -> None:
    assert check_environment(Tools()) == []
    assert check_environment(SokobanTools()) == []
    assert check_environment(WebShopTools(data="synthetic")) == []


def replacing(self: Any, number: float, text: str = "") -> None:
    """
    Guess.

    Args:
        number: The number.
        text: Why.
    """
    self.rewards = [number]


def ending(self: Any) -> None:
    """Guess."""
    self.done = "False"


def unhinted(self, number, *rest):  # type: ignore[no-untyped-def]
    """
    Guess.

    Args:
        numbers: Not its name.
    """


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guess": lambda self, number: "no"}, "The tool `guess` has no docstring"),
        ({"guess": unhinted}, "The argument `number` of the tool `guess` has no type hint"),
        ({"guess": unhinted}, r"The argument `number` of the tool `guess` is not described under `Args:`"),
        ({"guess": unhinted}, r"The tool `guess` takes `\*rest`"),
        ({"guess": None}, "neither `step` nor a public method that is a tool"),
        ({"reset": lambda self, seed: "x"}, "`reset` does not take the columns of a dataset row"),
        ({"reset": lambda self, **row: 7}, "`reset` returned int"),
        ({"reset": lambda self, **row: unseeded(("", {}))[0]}, "Two resets with seed 0 return different observations"),
        ({"reset": lambda self, **row: raise_error(row)}, "`reset` with seed 0 raised KeyError"),
        ({"get_reward": lambda self: "1"}, "`get_reward` returned '1'"),
        ({"get_reward": lambda self: float("nan")}, "`get_reward` returned nan"),
        ({"get_reward": None}, "no `get_reward` and no list `rewards`"),
        ({"guess": replacing, "rewards": []}, r"A tool of Changed replaced `rewards`.*Append each reward"),
        ({"guess": ending}, "`done` of Changed is 'False', of type str"),
    ],
)
def test_each_defect_of_tools_is_told_once(changes: dict[str, Any], message: str) -> None:
    problems = check_environment(type("Changed", (Tools,), changes)())
    assert len([problem for problem in problems if re.search(message, problem)]) == 1, problems
