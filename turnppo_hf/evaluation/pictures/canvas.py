"""Shapes and text in, one frame of an animation out; text never leaves the box that it was given."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

_SMOOTH = 2  # shapes are drawn so many times larger and then averaged: Pillow draws edges in steps
_MISSING = "\ufffd"  # in the place of a character that the font does not have
_MAX_CHARACTERS = 20_000  # of a text that are looked at: more than any box has room for

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Canvas:
    """
    A picture under construction, in its own pixels.

    Args:
        size (`tuple[int, int]`): Width and height.
        paper (`str`): Color of the background.

    Raises:
        `ImportError`: Pillow is missing, or matplotlib, which provides the fonts.
    """

    def __init__(self, size: tuple[int, int], paper: str) -> None:
        require_pillow()
        from PIL import Image, ImageDraw

        self.size = size
        self._shapes = Image.new("RGB", (size[0] * _SMOOTH, size[1] * _SMOOTH), paper)
        self._draw = ImageDraw.Draw(self._shapes)
        self._texts: list[tuple[Point, str, int, str, bool, str]] = []
        self._pictures: list[tuple[Image.Image, tuple[int, int], Image.Image]] = []

    def box(self, box: Box, fill: str | None, *, radius: float = 0, outline: str | None = None) -> None:
        """Draw a rectangle with round corners, its outline two pixels wide and inside of it."""
        scaled = [value * _SMOOTH for value in box]
        scaled[2], scaled[3] = scaled[2] - 1, scaled[3] - 1  # Pillow counts the last row and column in
        self._draw.rounded_rectangle(scaled, radius * _SMOOTH, fill, outline, width=2 * _SMOOTH if outline else 0)

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        """Draw a line through points, with round ends and joints."""
        scaled = [(x * _SMOOTH, y * _SMOOTH) for x, y in points]
        self._draw.line(scaled, color, round(width * _SMOOTH))
        for point in points:
            self.dot(point, width / 2, color)

    def dot(self, center: Point, radius: float, color: str) -> None:
        """Draw a disc."""
        x, y, r = (value * _SMOOTH for value in (*center, radius))
        self._draw.ellipse((x - r, y - r, x + r, y + r), color)

    def polygon(self, points: Sequence[Point], color: str) -> None:
        """Fill a polygon."""
        self._draw.polygon([(x * _SMOOTH, y * _SMOOTH) for x, y in points], color)

    def picture(self, picture: Image.Image, corner: tuple[int, int], *, radius: int = 0) -> None:
        """Paste a picture with round corners; it covers shapes, and text covers it."""
        from PIL import Image, ImageDraw

        mask = Image.new("L", (picture.width * _SMOOTH, picture.height * _SMOOTH), 0)
        ends = (0, 0, mask.width - 1, mask.height - 1)
        ImageDraw.Draw(mask).rounded_rectangle(ends, radius * _SMOOTH, 255)
        self._pictures.append((picture, corner, mask.reduce(_SMOOTH)))

    def text(
        self, place: Point, text: str, size: int, color: str, *, width: float, bold: bool = False, anchor: str = "ls"
    ) -> None:
        """
        Write one line, cut with an ellipsis where it is wider than `width`.

        Args:
            place (`tuple`): Of the text's anchor.
            text (`str`): Any text.
            size (`int`): Of the font, pixels.
            color (`str`): Of the text.
            width (`float`): Room for it, pixels.
            bold (`bool`, *optional*): Whether the font is bold.
            anchor (`str`, *optional*, defaults to `"ls"`): Pillow's: `l`, `m` or `r`, then `s` for the base line.
        """
        fitting = cut(" ".join(drawable(text).split()), size, width, bold)
        self._texts.append((place, fitting, size, color, bold, anchor))

    def paragraph(self, box: Box, text: str, size: int, color: str, *, bold: bool = False) -> float:
        """Write wrapped lines from the top of a box, an ellipsis where it is full; return the text's lower end."""
        left, top, right, bottom = box
        height = line_height(size)
        lines = wrap(text, size, right - left, int((bottom - top) // height), bold)
        for number, line in enumerate(lines):
            place = (left, top + number * height + round(size * 1.05))
            self._texts.append((place, line, size, color, bold, "ls"))
        return top + len(lines) * height

    def image(self) -> Image.Image:
        """Return the picture."""
        from PIL import ImageDraw

        image = self._shapes.reduce(_SMOOTH)
        for picture, corner, mask in self._pictures:
            image.paste(picture, corner, mask)
        draw = ImageDraw.Draw(image)
        for place, text, size, color, bold, anchor in self._texts:
            draw.text(place, text, color, _font(size, bold), anchor)
        return image


def line_height(size: int) -> int:
    """Pixels from one line to the next."""
    return round(size * 1.4)


def drawable(text: str) -> str:
    """
    Return what can be drawn of a text: no control and formatting characters, no marks that need a shaping engine, and
    a replacement sign for what the font lacks.
    """
    kept = []
    for character in unicodedata.normalize("NFC", text[:_MAX_CHARACTERS]):
        if character in "\n\t ":
            kept.append(character)
        elif unicodedata.category(character)[0] not in "CM":
            kept.append(character if _has_glyph(character) else _MISSING)
    return "".join(kept)


def cut(text: str, size: int, width: float, bold: bool = False) -> str:
    """Return a line as it is, or as much of it as fits the width with an ellipsis."""
    if not _is_wider(text, size, width, bold):
        return text
    return text[: _fitting(text, size, width - _length("\u2026", size, bold), bold)].rstrip() + "\u2026"


def wrap(text: str, size: int, width: float, max_lines: int, bold: bool = False) -> list[str]:
    """
    Break a text into lines, at spaces, and inside of words that are wider than a line.

    Args:
        text (`str`): Its own line breaks are kept, its other white space shrinks.
        size (`int`): Of the font, pixels.
        width (`float`): Of a line, pixels.
        max_lines (`int`): The last one ends with an ellipsis where there is more text.
        bold (`bool`, *optional*): Whether the font is bold.
    """
    lines: list[str] = []
    for paragraph in drawable(text).strip("\n").split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if not _is_wider(longer, size, width, bold):
                line = longer
                continue
            if line:
                lines.append(line)
            while _is_wider(word, size, width, bold) and len(lines) <= max_lines:
                fitting = max(_fitting(word, size, width, bold), 1)
                lines.append(word[:fitting])
                word = word[fitting:]
            line = word
        lines.append(line)
        if len(lines) > max_lines:
            break
    if max_lines < 1:
        return []
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], cut(f"{lines[max_lines - 1]}\u2026", size, width, bold)]
    return lines


def require_pillow() -> None:
    """
    Check that frames can be drawn.

    Raises:
        `ImportError`: Pillow is missing, or matplotlib, which provides the fonts.
    """
    try:
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Replays are drawn with Pillow and with matplotlib's fonts, and {error.name} is not installed. Without "
            'them there is no picture. Install both: pip install "pillow>=11" "matplotlib>=3.10".'
        ) from error


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    # without shaping a character is as wide as in the font, wherever Pillow was built
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(4096)
def _has_glyph(character: str) -> bool:
    font = _font(24)
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))  # a noncharacter: no font has it


def _length(text: str, size: int, bold: bool) -> float:
    return _font(size, bold).getlength(text)


def _is_wider(text: str, size: int, width: float, bold: bool) -> bool:
    """Whether a line is wider than a width; of a long text only what could fit is measured."""
    return _length(text[: _most_characters(width)], size, bold) > width


def _fitting(text: str, size: int, width: float, bold: bool) -> int:
    """The number of characters of the longest beginning that fits a width, found by halving."""
    low, high = 0, min(len(text), _most_characters(width))
    while low < high:
        middle = (low + high + 1) // 2
        if _length(text[:middle], size, bold) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _most_characters(width: float) -> int:
    """More characters than fit: each is at least a pixel wide."""
    return int(max(width, 0)) + 1
