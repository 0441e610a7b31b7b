"""Answers in what a model wrote: the same as a regular expression finds, with work that grows as the text does."""

from __future__ import annotations

import re
from itertools import product

import pytest

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.reading import read_answer

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
