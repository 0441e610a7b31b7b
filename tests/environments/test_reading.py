"""Answers in what a model wrote: the same as a regular expression finds, with work that grows as the text does."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.reading import read_answer, read_choice, read_count, read_flag, read_penalty

PIECES = ("<answer>", "</answer>", "<think>", "</think>", " Up ")
MEGABYTE = 1 << 20


def by_expression(completion: str) -> str:
    """What `read_answer` is meant to return, written as an expression that looks again from every beginning."""
    _, end, answer = completion.rpartition("</think>")
    match = re.search(r"<answer>(.*?)</answer>", answer, re.DOTALL)
    return "" if match is None or (not end and "<think>" in answer) else match[1].strip()


def test_read_answer_finds_what_the_expression_finds() -> None:
    for length in range(6):
        for pieces in product(PIECES, repeat=length):
            assert read_answer("".join(pieces)) == by_expression("".join(pieces))


class CountingText(str):
    """A text that counts the searches made in it; expressions cannot search it without being counted."""

    searches = 0

    def partition(self, separator: str) -> tuple[str, str, str]:
        type(self).searches += 1
        before, found, after = super().partition(separator)
        return CountingText(before), found, CountingText(after)

    def rpartition(self, separator: str) -> tuple[str, str, str]:
        type(self).searches += 1
        before, found, after = super().rpartition(separator)
        return CountingText(before), found, CountingText(after)


@pytest.mark.parametrize("piece", PIECES)
def test_answer_of_a_megabyte_takes_three_searches(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingText, "searches", 0)
    read_answer(CountingText(piece * (MEGABYTE // len(piece))))
    assert CountingText.searches <= 3


@pytest.mark.parametrize("piece", [*PIECES, "||", "[", "click[", "search[", "Up || ", "\n", "]"])
@pytest.mark.parametrize("arguments", [{}, {"action_format": "bare"}])
@pytest.mark.parametrize("name", ["sokoban", "webshop"])
@pytest.mark.filterwarnings("ignore:There is no WebShop data")
def test_turn_of_a_megabyte_is_one_bounded_turn(name: str, arguments: dict[str, str], piece: str) -> None:
    environment = make_environment(name, **arguments)
    environment.reset(seed=3)
    observation, *_, info = environment.step(piece * (MEGABYTE // len(piece)))
    assert len(observation) < 10_000 and len(info["action"]) < 2_000


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (read_count, np.int64(3)),
        (read_count, np.uint8(3)),
        (read_flag, np.bool_(True)),
        (read_flag, np.int64(0)),
        (lambda _, value: read_penalty(value), np.float32(-0.5)),
        (lambda _, value: read_penalty(value), np.int64(-1)),
    ],
)
def test_numbers_and_truth_values_of_numpy_are_read_as_pythons(read: Callable[..., Any], value: Any) -> None:
    found = read("x", value)
    assert found == value and type(found) in (int, bool, float)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (read_count, np.bool_(True)),
        (read_count, np.array([1, 2])),
        (read_count, np.float32(3)),
        (read_flag, np.array([1, 2])),
        (read_flag, np.int64(2)),
        (lambda _, value: read_penalty(value), False),
        (lambda _, value: read_penalty(value), np.bool_(False)),
        (lambda _, value: read_penalty(value), np.array([-1.0, -2.0])),
        (lambda _, value: read_penalty(value), -(10**400)),
        (lambda name, value: read_choice(name, value, ("tags", "bare")), np.array(["tags", "bare"])),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(read: Callable[..., Any], value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be .* got|Unknown `x`"):
        read("x", value)
