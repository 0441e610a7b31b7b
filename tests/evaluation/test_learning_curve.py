"""The learning curve on light and on dark pages; what it says is tested with the command that draws it."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnppo_hf.evaluation.learning_curve import learning_curve
from turnppo_hf.evaluation.results import HeldOut, LearningPoint, RunResults


@pytest.fixture
def results(tmp_path: Path) -> Path:
    points = [
        LearningPoint(step, 64, rate, rate - 0.1, rate + 0.1, mean_return=rate, return_error=0.1)
        for step, rate in ((0, 0.3), (10, 0.5))
    ]
    results = RunResults(
        environment="Game-v0", algorithm="turn_ppo", held_out=HeldOut(seed=1), learning_curve=tuple(points)
    )
    results.save(tmp_path)
    return tmp_path / "results.json"


def test_learning_curve_has_the_themes_colors(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plain, named = (
        learning_curve([results], tmp_path / f"{n}.png", **w) for n, w in (("a", {}), ("b", {"theme": "light"}))
    )
    assert plain.read_bytes() == named.read_bytes()
    light = learning_curve([results], tmp_path / "a.svg", theme="light").read_text()
    dark = learning_curve([results], tmp_path / "b.svg", theme="dark").read_text()
    for paper, line, here, elsewhere in (("#fbfbfa", "#0b6fb8", light, dark), ("#0b0f19", "#5aaef0", dark, light)):
        assert paper in here
        assert line in here
        assert paper not in elsewhere
        assert line not in elsewhere


def test_learning_curve_refuses_an_unknown_theme(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'light' or 'dark', got 'Dark'"):
        learning_curve([results], tmp_path / "a.svg", theme="Dark")
