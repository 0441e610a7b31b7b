"""`results.json` of finished runs in, a picture of their learning curves out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

RESULTS_FILE = "results.json"

_COLORS = ("#0b6fb8", "#c8501e", "#00806a", "#8a4fa3", "#a36a00", "#4d4d4d")  # told apart without red and green
_INK, _MUTED, _PAPER = "#1f2328", "#6b7280", "#fbfbfa"
_LABEL_SPACE = 0.055  # between two labels, as a share of the axis
METRICS = {"success": ("success_rate", "success rate"), "return": ("mean_return", "mean return")}  # key, name
_LOW = {"success": "success_low", "return": "return_error"}  # what an interval is made of
_Z = NormalDist().inv_cdf(0.975)
_ALGORITHMS = {"turn_ppo": "Turn-PPO", "token_ppo": "token PPO", "grpo": "GRPO", "rloo": "RLOO"}


class _Label(NamedTuple):
    """What stands beside the end of a line."""

    text: str
    height: float  # value of the metric
    color: str
    is_run: bool


def learning_curve(results_paths: Sequence[str | Path], output: str | Path, metric: str = "success") -> Path:
    """
    Draw held-out success or return over optimizer steps, with 95 % bands, beside random, scripted and optimal play.

    Args:
        results_paths (`Sequence[str]`): Folders of runs, or their `results.json`.
        output (`str`): Picture to write; its suffix chooses the format (.png, .svg, .pdf).
        metric (`str`, *optional*, defaults to `"success"`): `"success"` with Wilson intervals, or `"return"` with
            normal ones.

    Returns:
        `Path`: the picture.

    Raises:
        `ValueError`: a path without results, or runs on different held-out tasks.
        `ImportError`: matplotlib is missing.
    """
    key, _ = METRICS[metric]
    runs = {name: read_results(path, metric) for name, path in zip(_names(results_paths), results_paths, strict=True)}
    _check_comparable(runs)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Learning curves are drawn with matplotlib, which is not installed: pip install matplotlib."
        ) from error
    figure = Figure(figsize=(7.6, 4.2), dpi=160, facecolor=_PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=_PAPER)
    labels = []
    one_each = len({run["algorithm"] for run in runs.values()}) == len(runs)
    for (name, run), color in zip(runs.items(), itertools.cycle(_COLORS), strict=False):
        _draw_run(axes, run, metric, color)
        text = _ALGORITHMS[run["algorithm"]] if one_each else name
        labels.append(_Label(text, run["learning_curve"][-1][key], color, is_run=True))
    first = next(iter(runs.values()))
    for player in ("random", "expert", "optimal"):
        if first.get(player) is not None:
            height = first[player][key]
            axes.axhline(height, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            labels.append(_Label(player, height, _MUTED, is_run=False))
    _finish(axes, first, metric)
    _draw_labels(axes, labels)
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    return target


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


def _draw_run(axes: Any, run: dict[str, Any], metric: str, color: str) -> None:
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


def _finish(axes: Any, run: dict[str, Any], metric: str) -> None:
    _, name = METRICS[metric]
    if metric == "success":
        axes.set_ylim(0, 1.03)
    axes.margins(x=0.02)
    axes.set_xlabel("optimizer step", color=_MUTED)
    axes.set_ylabel(name, color=_MUTED)
    episodes = run["learning_curve"][-1]["episodes"]
    title = (
        f"{name.capitalize()} on {episodes} held-out tasks, {run['environment'].rpartition('/')[2]} (95 % interval)"
    )
    if data := run.get("data"):  # which world it was, such as a synthetic one
        title += f"\n{data.partition(':')[0]}"
    axes.set_title(
        title,
        color=_INK,
        loc="left",
        fontsize=11,
        pad=12,
    )
    axes.grid(axis="y", color=_MUTED, alpha=0.2, linewidth=0.8)
    axes.tick_params(colors=_MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
