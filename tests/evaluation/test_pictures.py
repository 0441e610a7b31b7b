"""What replays are made of: colors that are legible, text that stays in its place, boards that are told apart."""

from __future__ import annotations

import itertools
import math
import sys

import pytest

from turnppo_hf.evaluation.pictures import canvas
from turnppo_hf.evaluation.pictures.canvas import Canvas, cut, drawable, line_height, wrap
from turnppo_hf.evaluation.pictures.frame import MARGIN, PAGE_WIDTH, SIZE, Frame, draw_frame, number
from turnppo_hf.evaluation.pictures.sokoban_board import SYMBOLS, draw_board
from turnppo_hf.evaluation.pictures.theme import THEMES, Theme, read_theme

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

THEME_NAMES = list(THEMES)


def channels(color: str) -> tuple[float, ...]:
    """The linear light of red, green and blue."""
    shares = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return tuple(share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio."""
    low, high = sorted(
        sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), channels(color), strict=True)) for color in (first, second)
    )
    return (high + 0.05) / (low + 0.05)


def without_red_cones(color: str) -> tuple[float, ...]:
    """A color as a protanope sees it (Vienot, Brettel and Mollon 1999), linear light."""
    red, green, blue = channels(color)
    return (0.1124 * red + 0.8876 * green, 0.1124 * red + 0.8876 * green, 0.004 * red - 0.004 * green + blue)


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEME_NAMES)
def test_colors_are_legible(theme: Theme) -> None:
    for color in (theme.ink, theme.muted, *theme.series):
        assert contrast(color, theme.paper) >= 4.5
        assert contrast(color, theme.card) >= 4.5
    for mark, ground in (
        (theme.player, theme.floor),
        (theme.on_target, theme.floor),
        (theme.on_accent, theme.on_target),
        (theme.box_edge, theme.box),
        (theme.on_accent, theme.series[1]),
    ):
        assert contrast(mark, ground) >= 3
    assert contrast("#888888", "#999999") < 3  # control


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEME_NAMES)
def test_lines_are_told_apart_without_red(theme: Theme) -> None:
    seen = [without_red_cones(color) for color in theme.series[:3]]
    assert min(math.dist(*pair) for pair in itertools.combinations(seen, 2)) > 0.12
    red_and_green = [without_red_cones(color) for color in ("#b05020", "#607a20")]
    assert math.dist(*red_and_green) < 0.12  # control


def test_unknown_theme_is_told() -> None:
    assert read_theme("dark") is THEMES["dark"]
    with pytest.raises(ValueError, match="'light' or 'dark', got 'DARK'"):
        read_theme("DARK")


def color_at(image: Image.Image, x: float, y: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*image.getpixel((round(x), round(y))))


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEME_NAMES)
def test_board_shows_each_cell_in_its_colors(theme: Theme) -> None:
    image = draw_board([SYMBOLS], 96, theme)
    assert image.size == (672, 96)

    def color(symbol: str, x: float, y: float) -> str:
        return color_at(image, (SYMBOLS.index(symbol) + x) * 96, y * 96)

    assert color("#", 0.4, 0.15) == theme.wall
    assert color("#", 0.4, 0.345) == theme.mortar
    assert color("_", 0.5, 0.5) == theme.floor
    assert color("O", 0.5, 0.5) == color("O", 0.5, 0.26) == theme.on_target
    assert color("O", 0.5, 0.36) == theme.floor
    assert color("X", 0.15, 0.5) == theme.box_edge
    assert color("X", 0.5, 0.3) == theme.box
    assert color("X", 0.35, 0.35) == theme.box_edge  # the cross
    assert color("\u221a", 0.2, 0.3) == theme.on_target
    assert color("\u221a", 0.44, 0.66) == theme.on_accent  # the tick
    assert color("P", 0.5, 0.34) == color("P", 0.5, 0.7) == theme.player
    assert color("P", 0.5, 0.1) == theme.floor
    assert color("S", 0.5, 0.1) == theme.on_target  # the ring
    assert color("S", 0.5, 0.34) == theme.player


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEME_NAMES)
def test_cells_are_told_apart_without_color(theme: Theme) -> None:
    cells = [draw_board([symbol], 40, theme).convert("L") for symbol in SYMBOLS]
    for first, second in itertools.combinations(cells, 2):
        pairs = zip(first.tobytes(), second.tobytes(), strict=True)
        assert sum(abs(a - b) > 25 for a, b in pairs) > 0.04 * 1600


def test_board_is_laid_out_in_rows() -> None:
    theme = THEMES["light"]
    image = draw_board(["##", "#P", "##"], 20, theme)
    assert image.size == (40, 60)
    assert color_at(image, 30, 27) == theme.player
    assert color_at(image, 30, 7) != theme.player


def test_text_loses_what_cannot_be_drawn() -> None:
    assert drawable("a\x1b[31m\u202eb\x00\u200b\ud800c") == "a[31mbc"
    assert drawable("caf\u00e9 cafe\u0301 \u00d7 \u2264 \u042f") == "caf\u00e9 caf\u00e9 \u00d7 \u2264 \u042f"
    assert drawable("\u6f22\U0001f98a") == "\ufffd\ufffd"
    assert drawable("q\u0301\u0301\u0301\u0301") == "q"  # marks would pile up over the line above


def test_lines_break_at_spaces_and_inside_of_long_words() -> None:
    width = 300.0
    text = "a few words, then " + "x" * 200 + " end"
    lines = wrap(text, 20, width, 100)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(canvas._length(line, 20, False) for line in lines) <= width
    assert wrap("one\n\ntwo", 20, width, 9) == ["one", "", "two"]
    assert wrap("", 20, width, 9) == [""]


def test_full_box_ends_with_an_ellipsis() -> None:
    lines = wrap("word " * 500, 20, 200.0, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("\u2026")
    assert max(canvas._length(line, 20, False) for line in lines) <= 200
    assert wrap("short", 20, 200.0, 1) == ["short"]
    assert wrap("a\nb", 20, 200.0, 1) == ["a\u2026"]
    assert cut("x" * 10_000, 20, 100).endswith("\u2026")
    assert cut("x", 20, 100) == "x"


def page_frame(page: str, **changes: object) -> Frame:
    fields: dict[str, object] = {
        "title": "Game-v0",
        "seed": 1,
        "turn": 1,
        "num_turns": 2,
        "values": (0.5, 1.0),
        "action": "go",
        "response": "go",
        "total": 0.0,
        "duration_ms": 1,
        "page": page,
        "reward": 0.0,
    }
    return Frame(**{**fields, **changes})


def is_plain(image: Image.Image, box: tuple[int, int, int, int], color: str) -> bool:
    return {color_at(image, 0, 0)} == {color} and image.crop(box).getcolors(1) is not None


PLACES = {  # that hold no text: the four margins, and between the page and the numbers
    "left": (0, 0, MARGIN, SIZE[1]),
    "right": (SIZE[0] - MARGIN + 4, 0, SIZE[0], SIZE[1]),
    "top": (0, 0, SIZE[0], MARGIN),
    "bottom": (0, SIZE[1] - MARGIN + 1, SIZE[0], SIZE[1]),
    "between": (MARGIN + PAGE_WIDTH, 0, MARGIN + PAGE_WIDTH + MARGIN - 2, SIZE[1]),
}
NASTY = "x" * 5000 + "\n" + "W\u202e" * 300 + "\n" + "line\n" * 100


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEME_NAMES)
def test_text_stays_in_the_frame(theme: Theme) -> None:
    frame = page_frame(
        NASTY,
        wish=NASTY,
        title="T" * 500,
        seed=10**30,
        action=NASTY,
        total=-123456.0,
        reward=-1e300,
        penalty=-1e9,
        values=(-1e12, 1e12),
    )
    for shown in (frame, page_frame(NASTY, action="", response=NASTY), page_frame(NASTY, ending=("No " * 99, NASTY))):
        image = draw_frame(shown, theme)
        assert image.size == SIZE
        assert [name for name, box in PLACES.items() if not is_plain(image, box, theme.paper)] == []


def test_text_that_is_not_wrapped_is_found_outside_of_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "_is_wider", lambda *_: False)
    image = draw_frame(page_frame(NASTY), THEMES["light"])
    assert not is_plain(image, PLACES["between"], THEMES["light"].paper)


def test_paragraph_returns_the_lower_end_of_its_text() -> None:
    page = Canvas((300, 300), "#ffffff")
    assert page.paragraph((10, 20, 290, 290), "one\ntwo", 20, "#000000") == 20 + 2 * line_height(20)
    image = page.image()
    assert image.crop((0, 20 + 2 * line_height(20), 300, 300)).getcolors(1) is not None
    assert image.crop((0, 20, 300, 20 + 2 * line_height(20))).getcolors(1) is None


def test_page_that_has_no_room_is_empty() -> None:
    page = Canvas((300, 300), "#ffffff")
    page.paragraph((10, 20, 290, 25), "one", 20, "#000000")
    assert page.image().getcolors(1) is not None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.254, "0.25"),
        (-0.001, "0.00"),
        (-10.2, "\u221210.20"),
        (123.44, "123.4"),
        (-1234.5, "\u22121234"),
        (1.24e6, "1.2e6"),
        (-3e-9, "0.00"),
        (99_999.0, "1.0e5"),
    ],
)
def test_figures_are_short(value: float, text: str) -> None:
    assert number(value) == text
    assert len(number(value)) <= 6


def test_drawing_without_pillow_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"PIL is not installed.*pip install .pillow>=11"):
        Canvas((10, 10), "#ffffff")
