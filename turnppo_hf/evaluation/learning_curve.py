"""`results.json` of finished runs in, a picture of their learning curves out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from turnppo_hf.evaluation.pictures.chart import finish_chart, new_chart, save_chart
from turnppo_hf.evaluation.pictures.theme import Theme, ThemeName, read_theme

RESULTS_FILE = "results.json"

_LABEL_SPACE = 0.055  # between two labels, as a share of the axis
METRICS = {"success": ("success_rate", "success rate"), "return": ("mean_return", "mean return")}  # key, name
_LOW = {"success": "success_low", "return": "return_error"}  # what an interval is made of
_Z = NormalDist().inv_cdf(0.975)
ALGORITHM_NAMES = {"turn_ppo": "Turn-PPO", "token_ppo": "token PPO", "grpo": "GRPO", "rloo": "RLOO"}


class _Label(NamedTuple):
    """What stands beside the end of a line."""

    text: str
    height: float  # value of the metric
    color: str
    is_run: bool


def learning_curve(
    results_paths: Sequence[str | Path], output: str | Path, metric: str = "success", *, theme: ThemeName = "light"
) -> Path:
    """
    Draw held-out success or return over optimizer steps, with 95 % bands, beside random, scripted and optimal play.

    Args:
        results_paths (`Sequence[str]`): Folders of runs, or their `results.json`.
        output (`str`): Picture to write; its suffix chooses the format (.png, .svg, .pdf).
        metric (`str`, *optional*, defaults to `"success"`): `"success"` with Wilson intervals, or `"return"` with
            normal ones.
        theme (`"light"` or `"dark"`, *optional*, defaults to `"light"`): Of the page it will stand on.

    Returns:
        `Path`: the picture.

    Raises:
        `ValueError`: a path without results, runs on different held-out tasks, or an unknown theme.
        `ImportError`: matplotlib is missing.
    """
    runs = {name: read_results(path, metric) for name, path in zip(_names(results_paths), results_paths, strict=True)}
    _check_comparable(runs)
    if len({run["algorithm"] for run in runs.values()}) == len(runs):
        runs = {ALGORITHM_NAMES[run["algorithm"]]: run for run in runs.values()}
    return draw_learning_curve(runs, output, metric, theme=theme)


def draw_learning_curve(
    runs: Mapping[str, Mapping[str, Any]], output: str | Path, metric: str = "success", *, theme: ThemeName = "light"
) -> Path:
    """
    Draw what `learning_curve` draws, from results that were read already.

    Args:
        runs (`Mapping[str, Mapping]`): Name -> results on the same held-out tasks; the reference players are those of
            the first.
        output, metric, theme: As in `learning_curve`.

    Returns:
        `Path`: the picture.
    """
    key, _ = METRICS[metric]
    colors = read_theme(theme)
    figure, axes = new_chart(colors)
    labels = []
    for (name, run), color in zip(runs.items(), itertools.cycle(colors.series), strict=False):
        _draw_run(axes, run, metric, color)
        labels.append(_Label(name, run["learning_curve"][-1][key], color, is_run=True))
    first = next(iter(runs.values()))
    for player in ("random", "expert", "optimal"):
        if first.get(player) is not None:
            height = first[player][key]
            axes.axhline(height, color=colors.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            labels.append(_Label(player, height, colors.muted, is_run=False))
    _finish(axes, first, metric, colors)
    _draw_labels(axes, labels)
    return save_chart(figure, output)


def read_results(path: str | Path, metric: str = "success") -> dict[str, Any]:
    """
    Read a run's `results.json`.

    Raises:
        `ValueError`: there is none, or it holds no learning curve of the metric.
    """
    file = Path(path)
    file = file / RESULTS_FILE if file.is_dir() else file
    try:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{str(file)!r} cannot be read ({error}). `turnppo train` writes it at its end; name the run's folder."
        ) from error
    key, name = METRICS[metric]
    curve = results.get("learning_curve", ())
    if not curve or any(point.get(key) is None or point.get(_LOW[metric]) is None for point in curve):
        others = " Draw the return instead: --metric return." if metric == "success" and curve else ""
        raise ValueError(f"{str(file)!r} holds no {name} with intervals, so there is no curve to draw.{others}")
    return results


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Name each run by its folder, by its whole path where two folders share a name."""
    folders = [Path(path).parent if Path(path).suffix == ".json" else Path(path) for path in paths]
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _check_comparable(runs: dict[str, dict[str, Any]]) -> None:
    tasks = {name: json.dumps(run["held_out"], sort_keys=True) for name, run in runs.items()}
    different = [name for name, held_out in tasks.items() if held_out != next(iter(tasks.values()))]
    if different:
        raise ValueError(
            f"{different[0]!r} was judged on other held-out tasks than {next(iter(tasks))!r}, so their curves do not "
            "compare. Draw them apart."
        )


def _draw_run(axes: Any, run: Mapping[str, Any], metric: str, color: str) -> None:
    points = run["learning_curve"]
    key, _ = METRICS[metric]
    steps = [point["step"] for point in points]
    if metric == "success":
        low, high = ([point[name] for point in points] for name in ("success_low", "success_high"))
    else:
        low, high = ([point[key] + sign * _Z * point["return_error"] for point in points] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=color, alpha=0.16, linewidth=0)
    axes.plot(steps, [point[key] for point in points], color=color, linewidth=2, marker="o", markersize=3.5)


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


def _finish(axes: Any, run: Mapping[str, Any], metric: str, theme: Theme) -> None:
    _, name = METRICS[metric]
    if metric == "success":
        axes.set_ylim(0, 1.03)
    axes.margins(x=0.02)
    episodes = run["learning_curve"][-1]["episodes"]
    title = (
        f"{name.capitalize()} on {episodes} held-out tasks, {run['environment'].rpartition('/')[2]} (95 % interval)"
    )
    if data := run.get("data"):  # which world it was, such as a synthetic one
        title += f"\n{data.partition(':')[0]}"
    finish_chart(axes, theme, title=title, x_label="optimizer step", y_label=name)
