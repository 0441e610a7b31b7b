"""A critic's values and the returns that followed in, their picture out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from turnppo_hf.evaluation.calibration import CalibrationPoints, calibration_points, explained_variance, grouped_means
from turnppo_hf.evaluation.pictures.chart import finish_chart, new_chart, save_chart
from turnppo_hf.evaluation.pictures.theme import Theme, ThemeName, read_theme
from turnppo_hf.trajectory import Trajectory


def critic_calibration(
    trajectories: Sequence[Trajectory], output: str | Path, *, gamma: float, theme: ThemeName = "light"
) -> Path:
    """
    Draw the critic's value before each turn against the return that followed, see [`calibration_points`].

    Beside each turn it shows the mean return of turns with similar values, see [`grouped_means`], and where both are
    equal.

    Args:
        trajectories (`Sequence[Trajectory]`): Their turns hold `value`.
        output (`str`): Picture to write; its suffix chooses the format (.png, .svg, .pdf).
        gamma (`float`): The discount per turn that the critic was trained with.
        theme (`"light"` or `"dark"`, *optional*, defaults to `"light"`): Of the page it will stand on.

    Returns:
        `Path`: the picture.

    Raises:
        `ValueError`: see [`calibration_points`], or an unknown theme.
        `ImportError`: matplotlib is missing.
    """
    colors = read_theme(theme)
    points = calibration_points(trajectories, gamma)
    figure, axes = new_chart(colors, (7.6, 4.6))
    _draw_points(axes, points, colors)
    _draw_line(axes, points, colors)
    environment = trajectories[int(points.episodes[0])].environment.rpartition("/")[2]
    finish_chart(
        axes,
        colors,
        title=_title(points, environment),
        x_label="critic's value before the turn",
        y_label=f"return that followed (discount {gamma:g})",
    )
    return save_chart(figure, output)


def _draw_points(axes: Any, points: CalibrationPoints, theme: Theme) -> None:
    count = len(points.values)
    alpha = min(0.6, max(0.12, 60 / count))
    axes.scatter(points.values, points.returns, s=16, color=theme.series[0], alpha=alpha, linewidth=0, zorder=2)
    axes.scatter([], [], s=22, color=theme.series[0], alpha=0.7, linewidth=0, label="a turn")  # legible in the legend
    groups = grouped_means(points)
    axes.errorbar(
        [group.value for group in groups],
        [group.mean for group in groups],
        yerr=[0.0 if math.isnan(group.margin) else group.margin for group in groups],
        fmt="o",
        color=theme.series[1],
        ecolor=theme.series[1],
        markersize=7,
        markeredgecolor=theme.paper,
        markeredgewidth=1,
        elinewidth=2,
        zorder=4,
        label="mean of turns with similar values, 95 % interval",
    )


def _draw_line(axes: Any, points: CalibrationPoints, theme: Theme) -> None:
    """Draw where value and return are equal, as far as the points reach."""
    low = min(points.values.min(), points.returns.min())
    high = max(points.values.max(), points.returns.max())
    ends = axes.get_xlim(), axes.get_ylim()
    dashes = (0, (4, 3))
    axes.plot(
        [low, high], [low, high], color=theme.muted, linewidth=1, linestyle=dashes, zorder=3, label="value = return"
    )
    axes.set_xlim(ends[0])
    axes.set_ylim(ends[1])


def _title(points: CalibrationPoints, environment: str) -> str:
    share = explained_variance(points.returns, points.values)
    explained = "undefined (equal returns)" if math.isnan(share) else f"{share:.2f}".replace("-", "\u2212")
    episodes = len(np.unique(points.episodes))
    title = f"Explained variance {explained}, {len(points.values)} turns of {episodes} episodes, {environment}"
    left_out = [f"{count} {why}" for count, why in ((points.cut, "cut"), (points.failed, "failed")) if count]
    return f"{title}\nwithout {' and '.join(left_out)} episodes of unknown return" if left_out else title
