"""A moment of an episode in, its picture out: what the agent saw on the left, what it did and earned on the right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnppo_hf.evaluation.pictures.canvas import Canvas, line_height
from turnppo_hf.evaluation.pictures.sokoban_board import draw_board
from turnppo_hf.evaluation.pictures.theme import Theme

if TYPE_CHECKING:
    from PIL import Image

SIZE = (1280, 720)  # twice what a card shows
MARGIN = 40
PAGE_SIZE = 22  # of the font of an environment's text
BOARD_SIDE, PAGE_WIDTH = SIZE[1] - 2 * MARGIN, 792

_RADIUS = 18
_ARROWS = {"Up": (0, -1), "Down": (0, 1), "Left": (-1, 0), "Right": (1, 0)}
_NOTHING = "nothing was carried out"


@dataclass(frozen=True)
class Frame:
    """
    A moment of an episode.

    Example: `Frame(title="Sokoban-v0", seed=7, turn=2, num_turns=3, values=(1.5, 3.0, 6.1), action="Up Left",
    response="Up Left", total=-0.2, duration_ms=450, board=("#####", "#PXO#", "#####"), moves=("Up", "Left"),
    moves_done=1)`.
    """

    title: str  # the environment
    seed: int
    turn: int  # from 1
    num_turns: int
    values: tuple[float, ...]  # of all turns, so that the scale holds still; the line ends at `turn`
    action: str  # what the turn carries out; empty where nothing was understood
    response: str  # what the model wrote, shown where the action is empty
    total: float  # return so far
    duration_ms: int
    values_are_critics: bool = True  # else they are the returns so far
    board: tuple[str, ...] | None = None  # rows in RAGEN's symbols; None where `page` is shown
    page: str = ""  # the environment's text
    wish: str = ""  # what the page's visitor wants, shown above every page; empty where there is none
    moves: tuple[str, ...] = ()  # the action's moves on a board: Up, Down, Left, Right
    moves_done: int = 0  # of `moves`
    reward: float | None = None  # of the turn; None while it is being played
    penalty: float = 0.0  # format penalty of the turn; of the episode where `ending` is there
    ending: tuple[str, str] | None = None  # how the episode ended, in two words and in some more; last frame only


def draw_frame(frame: Frame, theme: Theme) -> Image.Image:
    """Draw a frame of 1280 x 720 pixels."""
    canvas = Canvas(SIZE, theme.paper)
    width = _draw_page(canvas, frame, theme) if frame.board is None else _draw_board(canvas, frame.board, theme)
    left, right = MARGIN + width + MARGIN, SIZE[0] - MARGIN
    _draw_head(canvas, frame, theme, left, right)
    _draw_action(canvas, frame, theme, left, right)
    _draw_numbers(canvas, frame, theme, left, right)
    _draw_chart(canvas, frame, theme, left, right)
    return canvas.image()


def _draw_board(canvas: Canvas, board: tuple[str, ...], theme: Theme) -> int:
    height, width = len(board), len(board[0])
    cell = BOARD_SIDE // max(height, width)
    x, y = (MARGIN + (BOARD_SIDE - cell * count) // 2 for count in (width, height))
    canvas.picture(draw_board(board, cell, theme), (x, y), radius=_RADIUS)
    return BOARD_SIDE


def _draw_page(canvas: Canvas, frame: Frame, theme: Theme) -> int:
    card = (MARGIN, MARGIN, MARGIN + PAGE_WIDTH, SIZE[1] - MARGIN)
    canvas.box(card, theme.card, radius=_RADIUS, outline=theme.line)
    left, top, right, bottom = (card[0] + 28, card[1] + 22, card[2] - 28, card[3] - 22)
    if frame.wish:
        end = canvas.paragraph((left, top, right, top + 3 * line_height(PAGE_SIZE)), frame.wish, PAGE_SIZE, theme.ink)
        canvas.line([(left, end + 12), (right, end + 12)], theme.line, 2)
        top = int(end) + 24
    canvas.paragraph((left, top, right, bottom), frame.page, PAGE_SIZE, theme.muted if frame.ending else theme.ink)
    return PAGE_WIDTH


def _draw_head(canvas: Canvas, frame: Frame, theme: Theme, left: int, right: int) -> None:
    """Write the environment, then the turn or the ending, over one mark a turn."""
    seed = f"seed {frame.seed}"
    canvas.text((left, 66), frame.title, 22, theme.muted, width=right - left - 224)
    canvas.text((right, 66), seed, 22, theme.muted, width=212, anchor="rs")
    if frame.ending is None:
        canvas.text(
            (left, 128), f"Turn {frame.turn} of {frame.num_turns}", 40, theme.ink, width=right - left, bold=True
        )
    else:
        name, _ = frame.ending
        color = theme.series[0] if name == "Solved" else theme.series[1]
        _draw_sign(canvas, theme, left + 21, 114, color, is_tick=name == "Solved")
        canvas.text((left + 58, 128), name, 40, color, width=right - left - 58, bold=True)
    gap = 6 if frame.num_turns <= 20 else 2
    width = (right - left + gap) / frame.num_turns
    for number in range(frame.num_turns):
        x = left + number * width
        color = theme.series[0] if number < frame.turn else theme.line
        canvas.box((x, 152, x + width - gap, 160), color, radius=min(4, (width - gap) / 2))


def _draw_sign(canvas: Canvas, theme: Theme, x: float, y: float, color: str, *, is_tick: bool) -> None:
    canvas.dot((x, y), 21, color)
    if is_tick:
        canvas.line([(x - 9, y + 1), (x - 2, y + 8), (x + 10, y - 7)], theme.on_accent, 5)
    else:
        canvas.line([(x - 7, y - 7), (x + 7, y + 7)], theme.on_accent, 5)
        canvas.line([(x - 7, y + 7), (x + 7, y - 7)], theme.on_accent, 5)


def _draw_action(canvas: Canvas, frame: Frame, theme: Theme, left: int, right: int) -> None:
    """Show the moves as arrows, other actions as text; in the last frame, why it ended."""
    if frame.ending is not None:
        turns = "1 turn" if frame.num_turns == 1 else f"{frame.num_turns} turns"
        canvas.text((left, 212), f"after {turns}", 22, theme.muted, width=right - left)
        canvas.paragraph((left, 226, right, 310), frame.ending[1], 26, theme.ink)
        return
    canvas.text((left, 212), "action", 20, theme.muted, width=right - left)
    if not frame.moves:
        color = theme.ink if frame.action else theme.series[1]
        end = canvas.paragraph((left, 222, right, 326), frame.action or _NOTHING, 24, color)
        if not frame.action:
            canvas.paragraph((left, end + 6, right, 330), f"The model wrote: {frame.response}", 20, theme.muted)
        return
    side = 56
    step = min(side + 12, (right - left - side) / max(len(frame.moves) - 1, 1))
    for number, move in enumerate(frame.moves):
        x = left + number * step
        is_done = number < frame.moves_done
        fill, color = (theme.series[0], theme.on_accent) if is_done else (theme.card, theme.muted)
        canvas.box((x, 230, x + side, 230 + side), fill, radius=12, outline=None if is_done else theme.line)
        _draw_arrow(canvas, x + side / 2, 230 + side / 2, _ARROWS[move], color)


def _draw_arrow(canvas: Canvas, x: float, y: float, direction: tuple[int, int], color: str) -> None:
    dx, dy = direction
    canvas.line([(x - 13 * dx, y - 13 * dy), (x + 6 * dx, y + 6 * dy)], color, 5)
    canvas.polygon(
        [
            (x + 16 * dx, y + 16 * dy),
            (x + 3 * dx + 11 * dy, y + 3 * dy + 11 * dx),
            (x + 3 * dx - 11 * dy, y + 3 * dy - 11 * dx),
        ],
        color,
    )


def _draw_numbers(canvas: Canvas, frame: Frame, theme: Theme, left: int, right: int) -> None:
    """Write the turn's reward and the return so far."""
    middle = (left + right) // 2
    if frame.ending is None:
        reward = "..." if frame.reward is None else number(frame.reward)
        canvas.text((left, 366), "reward", 20, theme.muted, width=middle - left - 12)
        canvas.text((left, 408), reward, 32, theme.ink, width=middle - left - 12, bold=True)
    x = left if frame.ending else middle
    canvas.text((x, 366), "return" if frame.ending else "return so far", 20, theme.muted, width=right - x)
    canvas.text((x, 408), number(frame.total), 32, theme.ink, width=right - x, bold=True)
    if frame.penalty and frame.reward is not None:
        text = f"format {'penalties' if frame.ending else 'penalty'} {number(frame.penalty)}"
        canvas.text((left, 438), text, 18, theme.series[1], width=right - left)


def _draw_chart(canvas: Canvas, frame: Frame, theme: Theme, left: int, right: int) -> None:
    """Draw the values up to the turn on a scale that holds still, zero marked where it is on it."""
    label = "critic's value" if frame.values_are_critics else "return after each turn"
    canvas.text((left, 484), label, 20, theme.muted, width=right - left - 140)
    shown = frame.values[: frame.turn if frame.values_are_critics or frame.reward is not None else frame.turn - 1]
    if shown:
        canvas.text((right, 488), number(shown[-1]), 28, theme.series[0], width=130, bold=True, anchor="rs")
    low, high = min(*frame.values, 0.0), max(*frame.values, 0.0)
    if low == high:
        low, high = -1.0, 1.0
    top, bottom = 520, 646
    scale_width = 72  # for the numbers beside the scale

    def height(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    start, end = left + scale_width + 10, right - 10
    for value in sorted({low, 0.0, high}):
        if value != 0 and abs(height(value) - height(0)) < 24:
            continue  # its number would touch the zero
        canvas.line([(left + scale_width, height(value)), (right, height(value))], theme.line, 2)
        canvas.text(
            (left + scale_width - 10, height(value) + 7),
            number(value),
            18,
            theme.muted,
            width=scale_width - 10,
            anchor="rs",
        )
    step = (end - start) / max(frame.num_turns - 1, 1)
    points = [(start + index * step, height(value)) for index, value in enumerate(shown)]
    if len(points) > 1:
        canvas.line(points, theme.series[0], 4)
    for point in points[:-1]:
        canvas.dot(point, 4 if frame.num_turns > 15 else 6, theme.series[0])
    if points:
        canvas.dot(points[-1], 10, theme.paper)
        canvas.dot(points[-1], 8, theme.series[0])
    canvas.text((start, 676), "turn 1", 18, theme.muted, width=120, anchor="ms")
    if frame.num_turns > 1:
        canvas.text((end, 676), str(frame.num_turns), 18, theme.muted, width=80, anchor="ms")


def number(value: float) -> str:
    """Write a figure in at most six characters, with a real minus sign: 0.25, 10.20, 123.4, 1234, 1.2e6."""
    size = abs(value)
    if size >= 10_000:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "\u2212")
    text = f"{value:.{2 if size < 100 else 1 if size < 1000 else 0}f}"
    return "0.00" if text == "-0.00" else text.replace("-", "\u2212")
