"""
A Sokoban board in RAGEN's symbols in, its picture out.

Every kind of cell has a form of its own, so they are distinct without color: bricks, nothing, a ring, a crate with a
cross, a crate with a tick, a figure, a figure in a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from turnppo_hf.evaluation.pictures.theme import Theme

if TYPE_CHECKING:
    from PIL import Image

SYMBOLS = "#_OX\u221aPS"  # wall, floor, target, box, box on a target, player, player on a target

_SMOOTH = 4  # a cell is drawn so many times larger and then averaged


def draw_board(rows: Sequence[str], cell: int, theme: Theme) -> Image.Image:
    """
    Draw a board.

    Args:
        rows (`Sequence[str]`): Equally long lines of `SYMBOLS`.
        cell (`int`): Side of a cell, pixels.
        theme (`Theme`): The colors.
    """
    from PIL import Image

    board = Image.new("RGB", (cell * len(rows[0]), cell * len(rows)))
    for row, symbols in enumerate(rows):
        for column, symbol in enumerate(symbols):
            board.paste(_draw_cell(symbol, cell, theme), (column * cell, row * cell))
    return board


@cache
def _draw_cell(symbol: str, cell: int, theme: Theme) -> Image.Image:
    from PIL import Image, ImageDraw

    side = cell * _SMOOTH
    image = Image.new("RGB", (side, side), theme.floor)
    draw = ImageDraw.Draw(image)
    if symbol == "#":
        _draw_bricks(draw, side, theme)
        return image.reduce(_SMOOTH)
    seam = max(side // 64, 1)
    draw.rectangle((0, 0, side, side), theme.line)
    draw.rectangle((seam, seam, side - 1 - seam, side - 1 - seam), theme.floor)
    if symbol in "OS":
        outer, thickness = (0.27, 0.075) if symbol == "O" else (0.43, 0.06)
        _draw_disc(draw, side, 0.5, 0.5, outer, theme.on_target)
        _draw_disc(draw, side, 0.5, 0.5, outer - thickness, theme.floor)
    if symbol == "O":
        _draw_disc(draw, side, 0.5, 0.5, 0.08, theme.on_target)
    if symbol in "X\u221a":
        _draw_crate(draw, side, symbol, theme)
    if symbol in "PS":
        _draw_player(draw, side, theme)
    return image.reduce(_SMOOTH)


def _draw_bricks(draw: Any, side: int, theme: Theme) -> None:
    draw.rectangle((0, 0, side, side), theme.wall)
    seam = max(side // 40, 2)
    for row in range(3):
        y = side * row // 3
        draw.rectangle((0, y, side, y + seam - 1), theme.mortar)
        for share in (0.25, 0.75) if row % 2 else (0.0, 0.5):
            x = round(side * share)
            draw.rectangle((x, y, x + seam - 1, y + side // 3), theme.mortar)


def _draw_crate(draw: Any, side: int, symbol: str, theme: Theme) -> None:
    edge = theme.box_edge if symbol == "X" else theme.on_target
    fill = theme.box if symbol == "X" else theme.on_target
    low, high, width = round(side * 0.12), round(side * 0.88), round(side * 0.055)
    draw.rounded_rectangle((low, low, high, high), side * 0.08, fill, edge, width)
    if symbol == "X":
        inner, outer = low + width, high - width
        draw.line((inner, inner, outer, outer), edge, width)
        draw.line((inner, outer, outer, inner), edge, width)
    else:
        tick = [(round(side * x), round(side * y)) for x, y in ((0.3, 0.52), (0.44, 0.66), (0.71, 0.36))]
        draw.line(tick, theme.on_accent, round(side * 0.09), joint="curve")
        for x, y in tick:
            _draw_disc(draw, side, x / side, y / side, 0.045, theme.on_accent)


def _draw_player(draw: Any, side: int, theme: Theme) -> None:
    """Draw a head above shoulders."""
    body = [round(side * share) for share in (0.25, 0.49, 0.75, 1.09)]
    draw.pieslice(body, 180, 360, theme.player)
    _draw_disc(draw, side, 0.5, 0.34, 0.205, theme.floor)
    _draw_disc(draw, side, 0.5, 0.34, 0.16, theme.player)


def _draw_disc(draw: Any, side: int, x: float, y: float, radius: float, color: str) -> None:
    draw.ellipse([round(side * share) for share in (x - radius, y - radius, x + radius, y + radius)], color)
