"""Files that a visitor chose, and those that lie beside the page, in; tables of results on panels out."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from elements import element

from turnppo_hf.evaluation.panels.leaderboard import Entry, make_board

RESULTS = Path(os.environ.get("RESULTS_FOLDER") or Path(__file__).parent / "results")
MAX_FILES = 1000  # of one visitor
MAX_NAME = 120  # characters

Shown = tuple[tuple[Entry, ...], tuple[str, ...]]  # what could be read, and what is wrong with the rest


@cache
def published() -> Shown:
    """Read the results that lie beside the page."""
    entries, problems = [], []
    for file in sorted(path for path in RESULTS.rglob("*.json") if path.is_file()):
        found = _read(file.relative_to(RESULTS).as_posix(), file.read_text(encoding="utf-8", errors="replace"))
        (entries if isinstance(found, Entry) else problems).append(found)
    return tuple(entries), tuple(problems)


def add_results(chosen: gr.EventData, shown: Shown) -> tuple[dict[str, Any], Shown]:
    """Return the board with the files that a visitor's browser has sent, beside those that it shows."""
    files = chosen._data.get("files") if isinstance(chosen._data, dict) else None
    entries, problems = list(shown[0]), list(shown[1])
    for item in files if isinstance(files, list) else []:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise gr.Error(
                "What was sent is no file of results. There is nothing to rank. Choose files named results.json.",
                print_exception=False,
            )
        if len(entries) + len(problems) >= MAX_FILES:
            problems.append(f"This page takes {MAX_FILES} files at most; the rest was left out. Choose fewer.")
            break
        found = _read(str(item.get("name", "results.json"))[:MAX_NAME], item["text"])
        (entries if isinstance(found, Entry) else problems).append(found)
    return make_board(entries, problems), (tuple(entries), tuple(problems))


def clear_results() -> tuple[dict[str, Any], Shown]:
    """Return the board without a visitor's files."""
    return make_board(*published()), published()


def leaderboard_tab(at_once: dict[str, Any]) -> None:
    """Lay out the tab."""
    shown = gr.State(published())
    leaders = element("leader-board", make_board(*published()), event="chosen", elem_id="leaders")
    only = gr.Button("Show the published ones only", size="sm", scale=0, min_width=220, elem_id="leaders-clear")
    # a part that is sent when the one before was answered must not be dropped as a second click would be
    leaders.submit(add_results, shown, [leaders, shown], trigger_mode="multiple", **at_once)
    only.click(clear_results, None, [leaders, shown], **at_once)


def _read(name: str, text: str) -> Entry | str:
    try:
        return Entry.from_text(text, name)
    except ValueError as error:
        return str(error)[:600]
