"""`results.json` of finished runs in, a picture of their learning curves out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from turnppo_hf.evaluation.pictures.chart import finish_chart, new_chart, save_chart
from turnppo_hf.evaluation.pictures.theme import Theme, ThemeName, read_theme
from turnppo_hf.evaluation.results import LearningPoint, RunResults
from turnppo_hf.ppo.algorithms import ALGORITHMS

Metric = Literal["success", "return"]

METRICS: dict[Metric, str] = {"success": "success rate", "return": "mean return"}  # metric -> its name in a picture
_LABEL_SPACE = 0.055  # between two labels, as a share of the axis
_Z = NormalDist().inv_cdf(0.975)


class _Label(NamedTuple):
    """What stands beside the end of a line."""

    text: str
    height: float  # value of the metric
    color: str
    is_run: bool


def learning_curve(
    results_paths: Sequence[str | Path], output: str | Path, metric: Metric = "success", *, theme: ThemeName = "light"
) -> Path:
    """
    Draw held-out success or return over optimizer steps, with 95 % bands, beside random, scripted and optimal play.

    Args:
        results_paths (`Sequence[str]`): Folders of runs, or their `results.json`.
        output (`str`): Picture to write; its suffix chooses the format (.png, .svg, .pdf).
        metric (`str`, *optional*, defaults to `"success"`): `"success"` with Wilson intervals, or `"return"` with
            normal ones.
        theme (`"light"` or `"dark"`, *optional*, defaults to `"light"`): Of the page that shows the picture.

    Returns:
        `Path`: the picture.

    Raises:
        `ValueError`: a path without results, runs on different held-out tasks, or an unknown theme.
        `ImportError`: matplotlib is missing.
    """
    runs = {name: _read_run(path, metric) for name, path in zip(_names(results_paths), results_paths, strict=True)}
    check_comparable(runs)
    if len({run.algorithm for run in runs.values()}) == len(runs):
        runs = {name if run.algorithm is None else ALGORITHMS[run.algorithm].title: run for name, run in runs.items()}
    curves = {name: run.learning_curve or () for name, run in runs.items()}
    return draw_learning_curve(curves, next(iter(runs.values())), output, metric, theme=theme)


def draw_learning_curve(
    curves: Mapping[str, Sequence[LearningPoint]],
    results: RunResults,
    output: str | Path,
    metric: Metric = "success",
    *,
    theme: ThemeName = "light",
) -> Path:
    """
    Draw what `learning_curve` draws, from results that were read already.

    Args:
        curves (`Mapping[str, Sequence[LearningPoint]]`): Name of a run -> its points, all on the same held-out tasks.
        results ([`RunResults`]): Of the first run: the reference players and the environment are taken from it.
        output, metric, theme: As in `learning_curve`.

    Returns:
        `Path`: the picture.
    """
    colors = read_theme(theme)
    figure, axes = new_chart(colors)
    labels = []
    for (name, points), color in zip(curves.items(), itertools.cycle(colors.series), strict=False):
        _draw_run(axes, points, metric, color)
        labels.append(_Label(name, mean_and_interval(points[-1], metric)[0], color, is_run=True))
    players = {"random": results.random, "expert": results.expert, "optimal": results.optimal}
    for player, summary in players.items():
        height = None
        if summary is not None:
            height = summary.success_rate if metric == "success" else summary.mean_return
        if height is not None:
            axes.axhline(height, color=colors.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            labels.append(_Label(player, height, colors.muted, is_run=False))
    episodes = next(iter(curves.values()))[-1].episodes
    _finish(axes, results, episodes, metric, colors)
    _draw_labels(axes, labels)
    return save_chart(figure, output)


def drawable_metrics(points: Sequence[LearningPoint]) -> list[Metric]:
    """Return the metrics that all points of a curve have, with an interval."""
    if not points:
        return []
    return [metric for metric in METRICS if all(_is_known(point, metric) for point in points)]


def mean_and_interval(point: LearningPoint, metric: Metric) -> tuple[float, float, float]:
    """
    Return a metric at a point of a curve, and the bounds of its 95 % interval.

    Raises:
        `ValueError`: the point does not have them.
    """
    if metric == "success":
        mean, low, high = point.success_rate, point.success_low, point.success_high
        if mean is not None and low is not None and high is not None:
            return mean, low, high
    elif point.mean_return is not None and point.return_error is not None:
        margin = _Z * point.return_error
        return point.mean_return, point.mean_return - margin, point.mean_return + margin
    raise ValueError(f"The point of step {point.step} has no {METRICS[metric]} with an interval.")


def _is_known(point: LearningPoint, metric: Metric) -> bool:
    if metric == "success":
        return None not in (point.success_rate, point.success_low, point.success_high)
    return None not in (point.mean_return, point.return_error)


def _read_run(path: str | Path, metric: Metric) -> RunResults:
    """Read the results of a run, and check that its learning curve can be drawn."""
    results = RunResults.from_file(path)
    curve = results.learning_curve or ()
    if metric not in drawable_metrics(curve):
        others = " Draw the return instead: --metric return." if metric == "success" and curve else ""
        raise ValueError(
            f"{str(path)!r} holds no {METRICS[metric]} with intervals, so there is no curve to draw.{others}"
        )
    return results


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Name each run by its folder, by its whole path where two folders share a name."""
    folders = [Path(path).parent if Path(path).suffix == ".json" else Path(path) for path in paths]
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def check_comparable(runs: Mapping[str, RunResults]) -> None:
    """
    Check that runs were judged on the same held-out tasks.

    Args:
        runs (`Mapping[str, RunResults]`): Name -> results.

    Raises:
        `ValueError`: they were not.
    """
    first = next(iter(runs))
    for name, run in runs.items():
        if run.held_out != runs[first].held_out:
            raise ValueError(
                f"{name!r} was judged on other held-out tasks than {first!r}, so their curves do not compare. Draw "
                "them apart."
            )


def _draw_run(axes: Any, points: Sequence[LearningPoint], metric: Metric, color: str) -> None:
    steps = [point.step for point in points]
    means, low, high = zip(*(mean_and_interval(point, metric) for point in points), strict=True)
    axes.fill_between(steps, low, high, color=color, alpha=0.16, linewidth=0)
    axes.plot(steps, means, color=color, linewidth=2, marker="o", markersize=3.5)


def _draw_labels(axes: Any, labels: list[_Label]) -> None:
    """Write each line's name and height beside its end, apart from each other where lines end close together."""
    heights: list[float] = []
    bottom, top = axes.get_ylim()
    space = _LABEL_SPACE * (top - bottom)
    for label in sorted(labels, key=lambda label: label.height):
        heights.append(max(label.height, heights[-1] + space) if heights else label.height)
        axes.annotate(
            f"{label.text}  {label.height:.2f}",
            (1, heights[-1]),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            color=label.color,
            fontweight="bold" if label.is_run else "normal",
            va="center",
            annotation_clip=False,
        )


def _finish(axes: Any, results: RunResults, episodes: int, metric: Metric, theme: Theme) -> None:
    name = METRICS[metric]
    if metric == "success":
        axes.set_ylim(0, 1.03)
    axes.margins(x=0.02)
    environment = (results.environment or "").rpartition("/")[2]
    title = f"{name.capitalize()} on {episodes} held-out tasks, {environment} (95 % interval)"
    if results.data:  # which world it was, such as a synthetic one
        title += f"\n{results.data.partition(':')[0]}"
    finish_chart(axes, theme, title=title, x_label="optimizer step", y_label=name)
