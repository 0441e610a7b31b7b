"""Results of a block of a study in; curves, final scores over an axis, calibration, advantages by turn, out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from turnppo_hf.evaluation.pictures.chart import finish_chart, new_chart, save_chart
from turnppo_hf.evaluation.pictures.theme import read_theme
from turnppo_hf.evaluation.study.result import StudyResult
from turnppo_hf.evaluation.study.statistics import bootstrap_interval

Scale = Literal["episodes", "tokens", "seconds"]

SCALES: dict[Scale, str] = {
    "episodes": "episodes trained on",
    "tokens": "tokens trained on, prompts included",
    "seconds": "seconds of rollouts and updates",
}
_WIDTH, _HEIGHT = 7.6, 4.2


def draw_curves(
    groups: Mapping[str, Sequence[StudyResult]],
    output: str | Path,
    *,
    title: str,
    scale: Scale = "episodes",
) -> Path:
    """
    Draw held-out scores over training: each run thin, the mean of a group's runs thick, with its bootstrap interval.

    Args:
        groups (`Mapping[str, Sequence[StudyResult]]`): Name of a line -> its runs, one a seed; those without a curve
            are left out.
        output (`str`): Picture to write.
        title (`str`): Of the picture.
        scale (`str`, *optional*, defaults to `"episodes"`): What the horizontal axis counts, a key of `SCALES`.

    Raises:
        `ImportError`: matplotlib is missing.
    """
    colors = read_theme("light")
    figure, axes = new_chart(colors, (_WIDTH, _HEIGHT))
    for (name, results), color in zip(groups.items(), itertools.cycle(colors.series), strict=False):
        drawn = [(_positions(result, scale), result.curve_scores) for result in results if result.curve]
        if not drawn:
            continue
        for x, y in drawn:
            axes.plot(x, y, color=color, linewidth=0.8, alpha=0.35)
        length = min(len(y) for _, y in drawn)
        places = np.mean([x[:length] for x, _ in drawn], axis=0)
        heights = np.array([y[:length] for _, y in drawn])
        low, high = zip(*(bootstrap_interval(column) for column in heights.T), strict=True)
        axes.fill_between(places, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(places, heights.mean(axis=0), color=color, linewidth=2, label=name)
    finish_chart(axes, colors, title=title, x_label=SCALES[scale], y_label=_score_name(groups))
    return save_chart(figure, output)


def draw_levels(
    groups: Mapping[str, Mapping[str, Sequence[StudyResult]]],
    output: str | Path,
    *,
    title: str,
    axis: str,
    values: Sequence[str],
) -> Path:
    """
    Draw final held-out scores over the values of an axis, such as the limit on turns.

    Args:
        groups (`Mapping`): Name of a line -> value of the axis -> its runs, one a seed.
        output (`str`): Picture to write.
        title (`str`): Of the picture.
        axis (`str`): Name of the axis.
        values (`Sequence[str]`): Its values, from left to right.
    """
    colors = read_theme("light")
    figure, axes = new_chart(colors, (_WIDTH, _HEIGHT))
    for number, ((name, levels), color) in enumerate(
        zip(groups.items(), itertools.cycle(colors.series), strict=False)
    ):
        shift = 0.06 * (number - (len(groups) - 1) / 2)  # so that bars of several lines do not cover each other
        known = {value: [run.score for run in runs if run.score is not None] for value, runs in levels.items()}
        known = {value: numbers for value, numbers in known.items() if numbers}
        if not known:
            continue
        x = np.array([values.index(value) for value in known], dtype=np.float64) + shift
        scores = list(known.values())
        means = [fmean(numbers) for numbers in scores]
        bounds = np.array([bootstrap_interval(numbers) for numbers in scores]).T
        axes.errorbar(x, means, abs(bounds - means), color=color, linewidth=2, marker="o", markersize=5, label=name)
        for place, numbers in zip(x, scores, strict=True):
            axes.scatter([place] * len(numbers), numbers, s=9, color=color, alpha=0.4, linewidth=0)
    axes.set_xticks(range(len(values)), values)
    everything = {f"{name} {value}": runs for name, levels in groups.items() for value, runs in levels.items()}
    finish_chart(axes, colors, title=title, x_label=axis, y_label=_score_name(everything))
    return save_chart(figure, output)


def draw_calibration(groups: Mapping[str, Sequence[StudyResult]], output: str | Path, *, title: str) -> Path:
    """
    Draw the return that followed over the critic's value, held out: a dot for turns with similar values of one run.

    Args: as those of [`draw_curves`]; runs without `calibration` are left out.
    """
    colors = read_theme("light")
    figure, axes = new_chart(colors, (_WIDTH, _HEIGHT))
    for (name, results), color in zip(groups.items(), itertools.cycle(colors.series), strict=False):
        found = [group for run in results for group in run.calibration]
        if found:
            axes.scatter(
                [group.value for group in found], [group.mean for group in found], s=18, color=color, label=name
            )
    ends = (min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1]))
    axes.plot(ends, ends, color=colors.muted, linewidth=1, linestyle="--", label="equal")
    finish_chart(
        axes,
        colors,
        title=title,
        x_label="critic's value before the turn",
        y_label="mean discounted return that followed",
    )
    return save_chart(figure, output)


def draw_advantages(groups: Mapping[str, Sequence[StudyResult]], output: str | Path, *, title: str) -> Path:
    """
    Draw the mean size of an advantage over its turn, in the last batches of training: each run thin, their mean thick.

    Args: as those of [`draw_curves`]; runs that credit tokens are left out.
    """
    colors = read_theme("light")
    figure, axes = new_chart(colors, (_WIDTH, _HEIGHT))
    for (name, results), color in zip(groups.items(), itertools.cycle(colors.series), strict=False):
        found = [run.advantages_by_turn for run in results if run.advantages_by_turn]
        for sizes in found:
            axes.plot(range(1, len(sizes) + 1), sizes, color=color, linewidth=0.8, alpha=0.35)
        if found:
            means = [fmean(sizes) for sizes in zip(*found, strict=False)]  # as far as every run has turns
            axes.plot(range(1, len(means) + 1), means, color=color, linewidth=2, label=name)
    finish_chart(axes, colors, title=title, x_label="turn", y_label="mean size of the advantage")
    return save_chart(figure, output)


def _score_name(groups: Mapping[str, Sequence[StudyResult]]) -> str:
    points: list[Any] = [result.curve[0] for results in groups.values() for result in results if result.curve]
    has_success = all(point.success_rate is not None for point in points)
    return "held-out success" if has_success else "held-out return"


def _positions(result: StudyResult, scale: Scale) -> list[float]:
    steps = [point.step for point in result.curve]
    if scale == "episodes":
        return [step * result.episodes_per_step for step in steps]

    def logged(name: str) -> list[float]:
        return [value or 0.0 for value in result.log.get(name, [])]

    known = [0.0, *logged("step")]
    if scale == "tokens":
        totals = [0.0, *logged("num_tokens")]
    else:  # each logged time is the mean of the steps since the entry before
        each = [a + b for a, b in zip(logged("time/rollout_s"), logged("time/update_s"), strict=False)]
        if len(each) != len(known) - 1:
            return [float(step) for step in steps]  # of a version that logged no times
        totals = [0.0, *np.cumsum(np.array(each) * np.diff(known)).tolist()]
    return np.interp(steps, known, totals).tolist() if len(known) == len(totals) else [float(step) for step in steps]
