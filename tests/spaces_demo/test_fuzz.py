"""Whatever a visitor sends is answered or refused with a message: random events to the Space's callbacks."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import endpoints
import leaderboard
import pytest
from levels import level_of_seed

from tests.helpers.panel_results import results

app = pytest.importorskip("app", reason='needs Gradio: pip install "turnppo-hf[space]"')
gr = app.gr

EVENTS = 1500  # benchmarks/space.py sends 10,000 to a running server


def random_text(rng: random.Random) -> str:
    letters = rng.choice(("#@$. \n", "#@$.*+_- \n", string.printable, "\u0000\u202e<>&\"'\n\U0001f4e6"))
    return "".join(rng.choices(letters, k=rng.choice((0, 1, 9, 30, 64, 3000))))


def random_level(rng: random.Random) -> str:
    height, width = rng.randint(3, 9), rng.randint(3, 9)
    rows = [["#" if y in (0, height - 1) or x in (0, width - 1) else " " for x in range(width)] for y in range(height)]
    boxes = rng.randint(0, 4)
    for symbol in "@" + "$" * boxes + "." * boxes + "#" * rng.randint(0, 6):
        rows[rng.randint(1, height - 2)][rng.randint(1, width - 2)] = symbol
    return "\n".join("".join(row) for row in rows)


def anything(rng: random.Random) -> Any:
    values = (None, -1, 1.5, 10**30, float("nan"), True, [], {}, ["Up"], {"level": 3}, rng.randrange(10**6))
    return rng.choice((random_text, random_level, lambda _: rng.choice(values)))(rng)


def told(data: Any) -> Any:
    return gr.EventData(None, data)


def kinds() -> list[Callable[[random.Random], Any]]:
    return [
        lambda rng: app.choose_agent(anything(rng)),
        lambda rng: app.explained(app.choose_episode)(anything(rng)),
        lambda rng: app.level_from_seed(anything(rng)),
        lambda rng: app.level_from_text(anything(rng)),
        lambda rng: app.level_from_text(random_level(rng)),
        lambda rng: app.level_from_editor(told({"level": anything(rng)})),
        lambda rng: app.level_from_editor(told(anything(rng))),
        lambda rng: app.judge_play(told({"level": random_text(rng), "moves": anything(rng)})),
        lambda rng: app.judge_play(told({"level": level_of_seed(1_000_004), "moves": anything(rng)})),
        lambda rng: app.judge_play(told(anything(rng))),
        lambda rng: next(app.watch_live(anything(rng), anything(rng), anything(rng), anything(rng))),
        lambda rng: next(app.watch_live("before training", anything(rng), anything(rng), None)),
        lambda rng: app.explained(app.compare)(anything(rng), "Best play", anything(rng), anything(rng)),
        lambda rng: app.explained(endpoints.reset)(anything(rng), anything(rng)),
        lambda rng: app.explained(endpoints.reset)(1_000_004, "", anything(rng)),
        lambda rng: app.explained(endpoints.step)(level_of_seed(1_000_004), [], "Up", anything(rng)),
        lambda rng: app.explained(endpoints.step)(random_level(rng), anything(rng), anything(rng)),
        lambda rng: app.explained(endpoints.values)(random_level(rng), anything(rng), anything(rng)),
        lambda rng: app.explained(endpoints.judge)(anything(rng)),
        lambda rng: leaderboard.add_results(told(anything(rng)), ((), ())),
        lambda rng: leaderboard.add_results(told({"files": anything(rng)}), ((), ())),
        lambda rng: leaderboard.add_results(
            told({"files": [{"name": anything(rng), "text": anything(rng)}]}), ((), ())
        ),
    ]


@pytest.mark.slow
def test_random_events_are_answered_or_refused_with_a_message() -> None:
    outcomes = {"answered": 0, "refused": 0}
    app.load_agent("before training"), app.load_agent("Turn-PPO")  # what takes its time once
    app.wishes("shopper before training")
    for number in range(EVENTS):
        rng = random.Random(number)
        event = rng.choice(kinds())
        try:
            event(rng)
            outcomes["answered"] += 1
        except gr.Error as error:
            assert len(str(error)) > 20
            outcomes["refused"] += 1
    assert min(outcomes.values()) > EVENTS // 10, outcomes


def test_error_of_our_own_is_not_taken_for_a_refusal() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        app.explained(broken)()


def test_published_file_that_is_no_result_is_named_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results("mine", 0.5).save(tmp_path / "panel" / "mine")
    (tmp_path / "folder.json").mkdir()
    odd = results("huge", 0.5).to_dict()
    for outcome in odd["outcomes"][:2]:
        outcome["total_reward"] = 1e308  # finite, and their sum is not
    (tmp_path / "huge.json").write_text(json.dumps(odd))
    monkeypatch.setattr(leaderboard, "RESULTS", tmp_path)
    entries, problems = leaderboard.published.__wrapped__()
    assert [entry.model for entry in entries] == ["mine"]
    assert len(problems) == 1 and problems[0].startswith("huge.json: `outcomes[0].total_reward`")
