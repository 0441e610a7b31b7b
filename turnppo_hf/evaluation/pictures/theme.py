"""A theme's name in, its colors out: for light and for dark pages of the Hub, distinct without red and green."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ThemeName = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    """Colors of a picture, each `#rrggbb`. `ink`, `muted` and `series` are legible as text on `paper` and `card`."""

    paper: str  # around everything
    card: str  # behind a board or a page
    line: str  # borders and scales
    ink: str  # what is read first
    muted: str  # labels
    series: tuple[str, ...]  # lines of a chart, in their order
    floor: str
    wall: str
    mortar: str  # between the wall's bricks
    box: str
    box_edge: str
    on_target: str  # a box that stands on a target; also the empty target's ring
    on_accent: str  # drawn on `on_target` and on series[0]
    player: str


THEMES: dict[ThemeName, Theme] = {
    "light": Theme(
        paper="#fbfbfa",
        card="#ffffff",
        line="#dcdee2",
        ink="#1f2328",
        muted="#6b7280",
        series=("#0b6fb8", "#c24b1a", "#00806a", "#8a4fa3", "#9c6500", "#4d4d4d"),
        floor="#f1f0ec",
        wall="#7c8594",
        mortar="#969eab",
        box="#e0ad6a",
        box_edge="#7a4e1a",
        on_target="#0b6fb8",
        on_accent="#ffffff",
        player="#1f2328",
    ),
    "dark": Theme(
        paper="#0b0f19",
        card="#131926",
        line="#2b3445",
        ink="#eceff4",
        muted="#9aa4b5",
        series=("#5aaef0", "#f0905c", "#35bfa0", "#c693dd", "#dba840", "#b9bec8"),
        floor="#1c2433",
        wall="#566479",
        mortar="#6d7c94",
        box="#d39a52",
        box_edge="#4a2f0e",
        on_target="#5aaef0",
        on_accent="#0b0f19",
        player="#f4f6fa",
    ),
}


def read_theme(name: str) -> Theme:
    """
    Return a theme.

    Raises:
        `ValueError`: there is none of that name.
    """
    for known, theme in THEMES.items():
        if name == known:
            return theme
    raise ValueError(
        f"`theme` must be 'light' or 'dark', got {name!r}. A picture has the colors of the page it stands on. Pass "
        "one of these; a model card takes both, as a.png#hf-light-mode-only and b.png#hf-dark-mode-only."
    )
