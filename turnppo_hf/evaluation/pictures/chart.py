"""A theme in, the axes of a chart out; a drawn figure in, its file out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from turnppo_hf.evaluation.pictures.theme import Theme

_COLUMNS = 4  # of a legend


def new_chart(theme: Theme, size: tuple[float, float] = (7.6, 4.2)) -> tuple[Any, Any]:
    """
    Return an empty figure and its axes.

    Args:
        theme (`Theme`): The colors.
        size (`tuple[float, float]`, *optional*): Width and height, in units of 160 pixels.

    Raises:
        `ImportError`: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Charts are drawn with matplotlib, which is not installed. Without it there is no picture. Install it: "
            "pip install matplotlib."
        ) from error
    figure = Figure(figsize=size, dpi=160, facecolor=theme.paper, layout="constrained")
    return figure, figure.add_subplot(facecolor=theme.paper)


def finish_chart(axes: Any, theme: Theme, *, title: str, x_label: str, y_label: str) -> None:
    """Write title, labels and, where something is named, a legend; leave of the frame what is read."""
    axes.set_xlabel(x_label, color=theme.muted)
    axes.set_ylabel(y_label, color=theme.muted)
    rows = math.ceil(len(axes.get_legend_handles_labels()[1]) / _COLUMNS)
    axes.set_title(title, color=theme.ink, loc="left", fontsize=11, pad=12 + 18 * rows)
    if rows:
        style = {
            "frameon": False,
            "fontsize": 9,
            "labelcolor": theme.muted,
            "handletextpad": 0.4,
            "borderaxespad": 0.0,
        }
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=_COLUMNS, columnspacing=1.6, **style)
    axes.grid(axis="y", color=theme.muted, alpha=0.2, linewidth=0.8)
    axes.tick_params(colors=theme.muted, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.muted)


def save_chart(figure: Any, output: str | Path) -> Path:
    """Write a figure; the suffix chooses the format (.png, .svg, .pdf)."""
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    return target
