"""docs/limits.md is the one list of what is not covered, and each of its lines names what enforces it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.source_tree import PACKAGE, read_tree
from tests.test_documents import PAGES, cells, read

ROOT = Path(__file__).parents[1]
LIMITS = "docs/limits.md"
# a sentence or a heading that begins a list of limits
_LISTS = re.compile(
    r"(?i)^[#\-*\d. ]*(?:not (?:yet )?(?:covered|supported)|covered|unsupported|limitations?)\b"
    r"|\bnot (?:covered|supported)\W*:"
)


def messages() -> str:
    """Every text of the package's code, a line each; texts that are written in several parts are one."""
    texts = [
        node.value
        for source in read_tree(ROOT / PACKAGE).values()
        for node in source.nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return "\n".join(texts)


def unenforced(page: str, known: str) -> list[str]:
    """Lines of the tables whose last cell names no test and no message, or one that does not exist."""
    wrong = []
    for line in page.splitlines():
        if not line.startswith("|") or set(line) <= set("|- "):
            continue
        cell = cells(line)[-1]
        quoted, tests = re.findall(r'"([^"]+)"', cell), re.findall(r"`(tests/[^`]+)`", cell)
        if cell != "enforced by" and not (
            quoted + tests and all(words in known for words in quoted) and all(map(is_test, tests))
        ):
            wrong.append(line)
    return wrong


def is_test(name: str) -> bool:
    path, _, function = name.partition("::")
    return (ROOT / path).is_file() and (not function or f"def {function}(" in read(path))


def own_lists(text: str) -> list[str]:
    return [line for line in text.splitlines() if _LISTS.search(line)]


def test_each_limit_names_what_enforces_it() -> None:
    assert len(re.findall(r"^\| (?!what|not covered)", read(LIMITS), re.MULTILINE)) > 15
    assert unenforced(read(LIMITS), messages()) == []


def test_limit_that_nothing_enforces_is_found() -> None:
    row = "| images | text | %s |"
    for cell in ('"no such words"', "`tests/ppo/test_none.py`", "`tests/test_limits.py::test_none`", "nothing"):
        assert unenforced(row % cell, "some words") == [row % cell]
    assert unenforced(row % '"some words", `tests/test_limits.py::is_test`', "some words") == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in (LIMITS, "CHANGELOG.md")])
def test_no_other_page_lists_limits(page: str) -> None:
    assert own_lists(read(page)) == []


def test_list_of_limits_on_another_page_is_found() -> None:
    text = "## Not covered yet\n\n- Not supported: images.\nAll is covered by tests.\nCovered: text."
    assert own_lists(text) == ["## Not covered yet", "- Not supported: images.", "Covered: text."]


def test_pages_link_to_the_list() -> None:
    for page in (
        "README.md",
        "docs/turn_ppo.md",
        "docs/adapters.md",
        "docs/scaling.md",
        "docs/tools.md",
        "docs/vllm.md",
    ):
        assert "limits.md" in read(page), page
