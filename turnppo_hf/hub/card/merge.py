"""An old card and a new one in; the new one with what the old one's owner wrote in it out."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).parent / "template.md"

_OURS = "Written by `turnppo card`"
_HEADING = re.compile(r"^## +(.+?) *$", re.MULTILINE)
_KEEP = re.compile(r"<!--\s*keep: *true\s*-->")
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
# what looks like a heading inside of these is none
_CODE = re.compile(  # a line of backticks with another one after them is inline code, and opens nothing
    r"^[ \t]*(?:(?P<ticks>`{3,})[^`\n]*\n.*?^[ \t]*(?P=ticks)`*"
    r"|(?P<tildes>~{3,})[^\n]*\n.*?^[ \t]*(?P=tildes)~*)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_HIDDEN = re.compile(r"<!--.*?-->|<details\b.*?</details>", re.DOTALL | re.IGNORECASE)
_ALWAYS_OURS = ("metrics", "model-index")  # absent where the new card has none
_BEFORE = "as written before"

logger = logging.getLogger(__name__)


def merge_cards(old: str, new: str, *, without: str | None = None) -> str:
    """
    Put the user's sections, and the user's keys of the front matter, of an old card into a new one.

    A section (of the second level) is the user's where its heading is none of the template's, or where it holds
    `<!-- keep: true -->`; it comes after the section that it followed. Of a card that is none of ours everything is
    the user's: sections under our headings, and what precedes the first, are kept under headings that name them so.

    Args:
        old (`str`): A card, of whatever form.
        new (`str`): A card from the template.
        without (`str`, *optional*): A dataset of the old card that is not the user's.
    """
    stale, old_body = read_front_matter(old)
    fresh, new_body = read_front_matter(new)
    opening, sections = cut_sections(new_body)
    names = {heading for heading, _ in sections}
    previous = None
    for heading, text in _users_view(old_body):
        if heading in _template_headings() and not _KEEP.search(text):
            previous = heading
            continue
        headings = [name for name, _ in sections]
        if heading in names and heading in _template_headings():
            sections[headings.index(heading)] = (heading, text)
        elif (heading, text.strip()) not in [(name, item.strip()) for name, item in sections]:
            last = len(headings) - 1 - headings[::-1].index(previous) if previous in headings else len(headings) - 1
            sections.insert(last + 1, (heading, text))
        previous = heading
    data = _merge_data(stale, fresh, without)
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000).strip()
    body = "\n\n".join([opening.strip(), *(text.strip() for _, text in sections)])
    return f"---\n{front}\n---\n{body}\n"


def is_ours(card: str) -> bool:
    """Whether a card was made from the template."""
    return _OURS in card


def read_front_matter(card: str) -> tuple[dict[str, Any], str]:
    """Cut a card into its data and its text; data that is no mapping counts as none, with a warning."""
    text = card.replace("\r\n", "\n").lstrip("\ufeff")
    found = _FRONT.match(text)
    if found is None:
        return {}, text
    try:
        data = yaml.safe_load(found.group(1))
    except (yaml.YAMLError, ValueError) as error:  # PyYAML raises the latter for a date that is none
        data = error
    if not isinstance(data, Mapping):
        if data is not None:
            logger.warning("The front matter of the card that is there is no mapping of YAML, so it is not kept.")
        data = {}
    return {str(name): value for name, value in data.items()}, text[found.end() :]


def cut_sections(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Cut a card at its headings of the second level; those inside of code, comments and details are none."""
    masked = text
    for pattern in (_CODE, _HIDDEN):
        masked = pattern.sub(lambda block: re.sub(r"[^\n]", " ", block.group()), masked)
    starts = [(match.start(), match.group(1)) for match in _HEADING.finditer(masked)]
    if not starts:
        return text, []
    ends = [start for start, _ in starts[1:]] + [len(text)]
    return text[: starts[0][0]], [(name, text[start:end]) for (start, name), end in zip(starts, ends, strict=True)]


def _users_view(body: str) -> list[tuple[str, str]]:
    """The sections of an old card; those of a card that is none of ours get headings that ours do not have."""
    opening, sections = cut_sections(body)
    if is_ours(body) or not body.strip():
        return sections
    renamed = []
    if opening.strip():
        renamed.append((f"About, {_BEFORE}", f"## About, {_BEFORE}\n\n{opening.strip()}\n"))
    for heading, text in sections:
        if heading in _template_headings():
            text = text.replace(f"## {heading}", f"## {heading}, {_BEFORE}", 1)
            heading = f"{heading}, {_BEFORE}"
        renamed.append((heading, text))
    return renamed


def _merge_data(stale: Mapping[str, Any], fresh: Mapping[str, Any], without: str | None) -> dict[str, Any]:
    tags = list(dict.fromkeys([*texts_of(fresh, "tags"), *texts_of(stale, "tags")]))
    theirs = [name for name in texts_of(stale, "datasets") if name != without]
    datasets = list(dict.fromkeys([*texts_of(fresh, "datasets"), *theirs]))
    users = {name: value for name, value in stale.items() if name not in (*_ALWAYS_OURS, "datasets", *fresh)}
    return {**fresh, "tags": tags, **({"datasets": datasets} if datasets else {}), **users}


def texts_of(data: Mapping[str, Any], name: str) -> list[str]:
    """What a key of the front matter lists; a single text is a list of one."""
    found = data.get(name) or []
    found = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return [item for item in found if isinstance(item, str)]


def _template_headings() -> set[str]:
    return set(_HEADING.findall(TEMPLATE.read_text(encoding="utf-8")))
