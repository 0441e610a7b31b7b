"""What `step` returned is checked before it counts: a number as the reward, truth values as ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.scripted import CountingEnvironment
from turnppo_hf.environments.conversation import TextEnvironment

ANSWER = {"role": "assistant", "content": "Up"}


def read(*values: Any) -> Any:
    """Play a turn of an environment whose `step` returns these values behind its observation."""
    environment = CountingEnvironment()
    environment.step = lambda action: ("seen", *values)  # type: ignore[method-assign]
    return TextEnvironment(environment).read(ANSWER)


@pytest.mark.parametrize("reward", [None, "1.0", [1.0, 2.0], np.zeros(2), {}])
def test_reward_that_is_no_number_is_refused(reward: Any) -> None:
    with pytest.raises(
        TypeError, match=r"step\(\) returned the reward .* of type \w+\. Nothing can be learned.*Return"
    ):
        read(reward, False, False, {})


@pytest.mark.parametrize("place", ["terminated", "truncated"])
@pytest.mark.parametrize("flag", ["False", "", None, 2, [True]])
def test_end_that_is_no_truth_value_is_refused(place: str, flag: Any) -> None:
    values = {"terminated": False, "truncated": False, place: flag}
    with pytest.raises(TypeError, match=rf"step\(\) returned {place} as .*Return True or False"):
        read(0.0, *values.values(), {})


@pytest.mark.parametrize("penalty", [None, "-1", 0.5, float("nan")])
def test_penalty_that_is_none_is_refused(penalty: Any) -> None:
    with pytest.raises(ValueError, match=r'info\["penalty"\] is'):
        read(0.0, False, False, {"penalty": penalty})


def test_numbers_of_numpy_and_torch_count() -> None:
    for reward in (1, True, np.float32(1), np.array(1.0), torch.tensor(1.0)):
        reply = read(reward, np.bool_(True), 0, {"penalty": np.float64(-1)})
        assert (reply.reward, reply.terminated, reply.truncated) == (1.0, True, False)


@pytest.mark.parametrize("solved", ["False", "", 2, [True], np.zeros(2), torch.zeros(2)])
def test_success_that_is_no_truth_value_is_refused(solved: Any) -> None:
    with pytest.raises(TypeError, match=r'info\["solved"\] is .*would count as success'):
        read(0.0, True, False, {"solved": solved})


@pytest.mark.parametrize("solved", [True, np.bool_(True), 1, None, np.array(True), torch.tensor(True)])
def test_success_of_numpy_counts_and_none_is_no_answer(solved: Any) -> None:
    assert read(0.0, True, False, {"solved": solved}).info["solved"] is solved


def test_reason_of_a_cut_that_is_none_is_refused_where_it_counts() -> None:
    with pytest.raises(ValueError, match=r"'timelimit', and it decides.*'task_budget' or 'time_limit'"):
        read(0.0, False, True, {"truncation": "timelimit"})
    assert read(0.0, False, False, {"truncation": "timelimit"}).truncated is False
    assert read(0.0, False, True, {"truncation": True}).truncated is True
