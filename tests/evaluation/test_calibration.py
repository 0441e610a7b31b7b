"""The critic's values against what followed: the numbers by hand, and what the picture says."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from turnppo_hf.evaluation.calibration import CalibrationPoints, calibration_points, explained_variance, grouped_means
from turnppo_hf.evaluation.pictures.calibration import critic_calibration
from turnppo_hf.trainer import metrics
from turnppo_hf.trajectory import StopReason, Trajectory, Turn


def turn(reward: float, value: float | None, penalty: float = 0.0) -> Turn:
    return Turn((1,), (2,), (-0.1,), "seen", "Up", "Up", reward, penalty, "stop", value=value)


def episode(*turns: Turn, stop_reason: StopReason = StopReason.TASK_BUDGET) -> Trajectory:
    return Trajectory(task={"seed": 0}, environment="turnppo_hf/Game-v0", seed=0, turns=turns, stop_reason=stop_reason)


def many(count: int, seed: int = 0) -> list[Trajectory]:
    """Episodes of one to four turns whose values know something about what follows."""
    rng = np.random.default_rng(seed)
    return [
        episode(*(turn(float(rng.normal()), float(rng.normal())) for _ in range(rng.integers(1, 5))))
        for _ in range(count)
    ]


def test_returns_are_discounted_from_each_turn_on_with_penalties() -> None:
    first = episode(turn(1.0, 0.1), turn(2.0, 0.2, penalty=-0.5), turn(4.0, 0.3), stop_reason=StopReason.SOLVED)
    points = calibration_points([first, episode(turn(-1.0, 0.4))], gamma=0.5)
    # 4;  2 - 0.5 + 0.5 * 4 = 3.5;  1 + 0.5 * 3.5 = 2.75
    np.testing.assert_array_equal(points.returns, [2.75, 3.5, 4.0, -1.0])
    np.testing.assert_array_equal(points.values, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(points.episodes, [0, 0, 0, 1])
    assert (points.cut, points.failed) == (0, 0)


def test_critics_word_on_the_next_state_is_no_part_of_the_return() -> None:
    worlds = [episode(turn(1.0, 0.1), turn(2.0, value)) for value in (0.0, 100.0)]
    low, high = (calibration_points([world], gamma=0.9).returns for world in worlds)
    np.testing.assert_array_equal(low, high)


@pytest.mark.parametrize("reason", list(StopReason))
def test_episodes_with_an_unknown_rest_are_left_out_and_counted(reason: StopReason) -> None:
    points = calibration_points([episode(turn(7.0, 1.0), stop_reason=reason), episode(turn(3.0, 1.0))], gamma=1.0)
    unknown = reason in (
        StopReason.TURN_LIMIT,
        StopReason.TOKEN_LIMIT,
        StopReason.TIME_LIMIT,
        StopReason.OVERLONG,
        StopReason.ERROR,
    )
    assert points.returns.tolist() == ([3.0] if unknown else [7.0, 3.0])
    assert points.episodes.tolist() == ([1] if unknown else [0, 1])
    assert points.failed == (reason is StopReason.ERROR)
    assert points.cut == (unknown and reason is not StopReason.ERROR)


@pytest.mark.parametrize(
    ("trajectories", "gamma", "words"),
    [
        ([episode(turn(1.0, None)), episode(turn(1.0, 2.0))], 1.0, "1 of 2 turns have no critic's value.*GRPO"),
        ([episode(turn(1.0, math.nan))], 1.0, "not finite.*diverged"),
        ([episode(turn(math.inf, 1.0))], 1.0, "not finite"),
        ([episode(turn(1.0, 1.0), stop_reason=StopReason.TURN_LIMIT)], 1.0, "1 were cut from outside, 0 failed"),
        ([], 1.0, "None of 0 episodes"),
        ([episode(turn(1.0, 1.0))], 1.01, "between 0 and 1, got 1.01"),
    ],
)
def test_mistakes_are_told(trajectories: Sequence[Trajectory], gamma: float, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        critic_calibration(trajectories, tmp_path / "a.png", gamma=gamma)
    assert not list(tmp_path.iterdir())


def test_explained_variance_is_the_trainings_metric() -> None:
    rng = np.random.default_rng(3)
    returns, values = rng.normal(size=50), rng.normal(size=50)
    credit = {"returns": torch.tensor(returns), "values": torch.tensor(values)}
    credit |= {"advantages": torch.zeros(50), "turns": torch.zeros(50, dtype=torch.int64)}
    expected = 1 - (credit["returns"] - credit["values"]).var(correction=0) / credit["returns"].var(correction=0)
    assert explained_variance(returns, values) == pytest.approx(float(expected), abs=1e-12)
    logged = metrics.credit_metrics(credit, with_critic=True)
    assert logged["explained_variance"] == explained_variance(returns, values)
    assert logged["advantages/turn_1"] == 0.0
    # by hand: Var(0, 2) = 1, Var(0 - 0, 2 - 1) = 0.25
    assert explained_variance([0.0, 2.0], [0.0, 1.0]) == 0.75
    assert explained_variance(returns, returns + 5) == pytest.approx(1)
    assert explained_variance(returns, np.zeros(50)) == 0
    assert math.isnan(explained_variance([1.0, 1.0], [0.0, 1.0]))
    assert math.isnan(explained_variance([0.1, 0.1, 0.1], [0.0, 1.0, 2.0])), "0.1 + 0.1 + 0.1 is not 3 * 0.1"
    assert math.isnan(explained_variance([], []))


def test_size_of_the_advantage_of_each_turn_by_hand() -> None:
    credit = {"returns": torch.zeros(4), "values": torch.tensor([1.0, 2.0, 3.0, 5.0])}
    credit |= {"advantages": torch.tensor([1.0, -3.0, 0.5, 2.0]), "turns": torch.tensor([0, 0, 1, 3])}
    logged = metrics.credit_metrics(credit, with_critic=True)
    by_turn = {name: value for name, value in logged.items() if "turn_" in name}
    sizes = {"advantages/turn_1": 2.0, "advantages/turn_2": 0.5, "advantages/turn_4": 2.0}
    assert by_turn == {**sizes, "value/turn_1": 1.5, "value/turn_2": 3.0, "value/turn_4": 5.0}
    of_groups = metrics.credit_metrics(credit, with_critic=False)
    assert {name: value for name, value in of_groups.items() if "turn_" in name} == sizes
    credit["turns"] = torch.full((4,), -1)  # decisions are tokens
    assert not [name for name in metrics.credit_metrics(credit, with_critic=True) if "turn_" in name]


def points_of(values: Sequence[float], returns: Sequence[float], episodes: Sequence[int]) -> CalibrationPoints:
    return CalibrationPoints(np.array(values), np.array(returns), np.array(episodes), 0, 0)


def test_group_of_independent_turns_has_the_usual_interval() -> None:
    returns = [0.0, 2.0, 4.0, 6.0]
    (group,) = grouped_means(points_of([1.0, 2.0, 3.0, 4.0], returns, [0, 1, 2, 3]))
    assert (group.value, group.mean) == (2.5, 3.0)
    # the sample's standard deviation is sqrt(20 / 3), its standard error sqrt(5 / 3)
    assert group.margin == pytest.approx(1.959964 * math.sqrt(5 / 3), rel=1e-6)


def test_turns_that_share_an_episode_count_as_one_draw() -> None:
    alone = grouped_means(points_of([1.0, 2.0], [0.0, 4.0], [0, 1]))[0]
    doubled = grouped_means(points_of([1.0, 1.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0], [0, 0, 1, 1]))[0]
    apart = grouped_means(points_of([1.0, 1.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0], [0, 1, 2, 3]))[0]
    assert doubled.margin == pytest.approx(alone.margin)
    assert apart.margin < 0.6 * alone.margin
    assert math.isnan(grouped_means(points_of([1.0, 2.0], [0.0, 4.0], [0, 0]))[0].margin)


def test_groups_hold_neighbors_and_all_turns() -> None:
    values = list(range(205))
    groups = grouped_means(points_of(values[::-1], values[::-1], values))
    assert len(groups) == 10
    assert [group.value for group in groups] == sorted(group.value for group in groups)
    assert groups[0].value == pytest.approx(10.0)  # 0 to 20: the first five groups take one turn more
    assert len(grouped_means(points_of(values[:59], values[:59], values[:59]))) == 2


def svg(trajectories: Sequence[Trajectory], file: Path, **options: str) -> str:
    pytest.importorskip("matplotlib")
    return critic_calibration(trajectories, file, gamma=0.9, **options).read_text()


def test_picture_tells_variance_turns_and_what_is_left_out(tmp_path: Path) -> None:
    played = many(40)
    points = calibration_points(played, 0.9)
    text = svg(played, tmp_path / "a.svg")
    share = f"{explained_variance(points.returns, points.values):.2f}".replace("-", "\u2212")
    assert f"Explained variance {share}, {len(points.values)} turns of 40 episodes, Game-v0" in text
    assert "unknown" not in text
    cut = episode(turn(1.0, 1.0), stop_reason=StopReason.TURN_LIMIT)
    failed = episode(turn(1.0, 1.0), stop_reason=StopReason.ERROR)
    assert "without 2 cut and 1 failed episodes" in svg([*played, cut, cut, failed], tmp_path / "b.svg")
    assert "undefined (equal returns)" in svg([episode(turn(1.0, 0.0))], tmp_path / "c.svg")


def test_picture_has_the_themes_paper(tmp_path: Path) -> None:
    light, dark = (svg(many(30), tmp_path / f"{theme}.svg", theme=theme) for theme in ("light", "dark"))
    assert "#fbfbfa" in light
    assert "#0b0f19" not in light
    assert "#0b0f19" in dark
    with pytest.raises(ValueError, match="'light' or 'dark', got 'blue'"):
        svg(many(3), tmp_path / "blue.svg", theme="blue")


def test_picture_without_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        critic_calibration(many(3), tmp_path / "a.png", gamma=1.0)
