"""Results of many players in; a ranked table for each protocol, and what is wrong with the rest, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnppo_hf.evaluation.panels.build import canonical_checksum
from turnppo_hf.evaluation.panels.results import PanelResults

_SHOWN = ("success_rate", "success_low", "success_high", "mean_return", "return_error", "mean_turns", "invalid_turns")


@dataclass(frozen=True)
class Entry:
    """
    What a leaderboard keeps of one `results.json`: its figures, and which tasks they are of.

    Example: `Entry("a.json", "tiny-trained", "agent", "sokoban_6x6", "bcf5...", {}, 256, "9f2c...", {...}, {...})`.
    """

    file: str
    model: str
    kind: str  # agent, causal language model, endpoint
    panel: str
    protocol_checksum: str
    deviations: Mapping[str, Any]
    num_tasks: int
    tasks: str  # checksum of the tasks' ids
    summary: Mapping[str, Any]
    reference: Mapping[str, Any]  # name -> summary

    @classmethod
    def from_text(cls, text: str, file: str) -> Entry:
        """
        Read the text of a `results.json`.

        Raises:
            `ValueError`: it is none; the message names file and field.
        """
        results = PanelResults.from_text(text, file)
        return cls(
            file=file,
            model=results.model,
            kind=str(results.player.get("kind", "unknown")),
            panel=results.panel,
            protocol_checksum=results.protocol_checksum,
            deviations=results.deviations,
            num_tasks=len(results.outcomes),
            tasks=canonical_checksum(sorted(outcome.task_id for outcome in results.outcomes)),
            summary=results.summary.to_dict(),
            reference=results.reference,
        )


def make_board(entries: Sequence[Entry], problems: Sequence[str] = ()) -> dict[str, Any]:
    """
    Rank results; those of different protocols stand in tables of their own.

    Args:
        entries (`Sequence[Entry]`): Of any number of files.
        problems (`Sequence[str]`, *optional*): Of files that could not be read.

    Returns:
        `dict`: `tables`, the one with the most results first, with `panel`, `checksum`, `deviations`, `tasks` and
        `rows`; and `problems`, one sentence or more a file. A row has `rank`, None where it has none: reference
        players, and results with failed episodes, whose means leave out what may have been hard. `tied` is whether
        its interval overlaps that of the first.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.protocol_checksum, []).append(entry)
    tables, wrong = [], list(problems)
    for checksum, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        tasks = _whole_list(group)
        whole = [entry for entry in group if entry.tasks == tasks]
        wrong += [
            f"{entry.file}: `outcomes` holds {entry.num_tasks} tasks that are not the {whole[0].num_tasks} of the "
            f"other results with the protocol checksum {checksum[:12]}. Its mean is of other tasks, so it is not "
            "ranked. Evaluate it on the whole panel."
            for entry in group
            if entry.tasks != tasks
        ]
        first = whole[0]
        tables.append(
            {
                "panel": first.panel,
                "checksum": checksum,
                "deviations": dict(first.deviations),
                "tasks": first.num_tasks,
                "rows": _rows(whole),
            }
        )
    return {"tables": tables, "problems": wrong}


def _whole_list(entries: Sequence[Entry]) -> str:
    """
    Return the checksum of the tasks that make the panel, of those that results with one protocol hold.

    It is the longest list whose number the reference players confirm: one that was cut to its solved tasks puts no
    whole one off the board, however many files hold it.
    """
    counts = Counter((bool(entry.reference), entry.num_tasks, entry.tasks) for entry in entries)
    *_, tasks = max(counts, key=lambda found: (*found[:2], counts[found], found[2]))
    return tasks


def _rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    ordered = sorted(entries, key=lambda entry: (entry.summary["failed"] > 0, *_worth(entry.summary), entry.model))
    rows: list[dict[str, Any]] = []
    for place, entry in enumerate(ordered, start=1):
        failed = entry.summary["failed"]
        row = {"model": entry.model, "kind": entry.kind, "file": entry.file, "failed": failed}
        rows.append({**row, "rank": None if failed else place, **_figures(entry.summary)})
    best = rows[0]
    for row in rows:
        row["tied"] = row is not best and row["rank"] is not None and _overlap(row, best)
    reference = entries[0].reference
    for name, summary in reference.items():
        row = {"model": name, "kind": "reference player", "file": "", "failed": 0, "rank": None, "tied": False}
        rows.append({**row, **_figures(summary)})
    return rows


def _worth(summary: Mapping[str, Any]) -> tuple[float, float]:
    """What is ranked by, the best first: success, then return."""
    return -(summary["success_rate"] or 0.0), -summary["mean_return"]


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in _SHOWN}


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one["success_rate"] is None or other["success_rate"] is None:
        errors = 1.96 * (one["return_error"] or 0.0), 1.96 * (other["return_error"] or 0.0)
        return abs(one["mean_return"] - other["mean_return"]) <= sum(errors)
    return bool(one["success_high"] >= other["success_low"] and other["success_high"] >= one["success_low"])
