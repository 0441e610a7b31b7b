"""A player's `results.json` on a panel in, its checked figures out, and back; two of them in, their agreement out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from turnppo_hf.evaluation.json_fields import FieldError, read_fields, write_fields
from turnppo_hf.evaluation.outcome import Outcome, Summary, check_summary, summarize_outcomes
from turnppo_hf.evaluation.panels.build import canonical_checksum
from turnppo_hf.redaction import redacted_json
from turnppo_hf.trajectory import StopReason

RESULTS_FILE = "results.json"
SCHEMA_VERSION = 1
MAX_NUMBER = 1e12  # in the file; means and errors of such ones are finite, and a browser reads them exactly
_CHECKSUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PanelResults:
    """What `turnppo evaluate --panel` measured."""

    schema_version: int
    model: str  # as it was named
    panel: str  # name
    panel_checksum: str  # the panel's protocol checksum
    protocol_checksum: str  # the same, unless the player's settings deviated: only equal ones compare
    deviations: Mapping[str, Any]  # settings that are not the panel's; empty where all are
    player: Mapping[str, Any]  # how it was asked: kind, endpoint, chat template, batch size, counts of requests
    made_with: Mapping[str, Any]  # package -> version
    summary: Summary
    reference: Mapping[str, Any]  # name -> summary of a reference player on the same tasks
    outcomes: tuple[Outcome, ...]  # in the panel's order

    @classmethod
    def from_file(cls, path: str | Path) -> PanelResults:
        """
        Read a `results.json`.

        Args:
            path (`str` or `Path`): The file, or the folder it lies in.

        Raises:
            `ValueError`: it is not there, or a field has a wrong value; the message names file and field.
        """
        file = Path(path) / RESULTS_FILE if Path(path).is_dir() else Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{str(file)!r} cannot be read ({error}), so there is no result to show. Name a {RESULTS_FILE} that "
                "`turnppo evaluate MODEL --panel FOLDER` wrote."
            ) from error
        return cls.from_text(text, str(file))

    @classmethod
    def from_text(cls, text: str, called: str) -> PanelResults:
        """
        Read the text of a `results.json`.

        Args:
            text (`str`): Its content.
            called (`str`): Its name, for messages.

        Raises:
            `ValueError`: a field has a wrong value; the message names file and field.
        """
        try:
            found = json.loads(text)
            _check_values(found, "")
            if isinstance(found, dict):
                _check_version(found)
            results = read_fields(cls, found)
            _check(results)
        except (ValueError, RecursionError) as error:
            what = str(error) if isinstance(error, FieldError) else f"it is no JSON ({error})."
            raise ValueError(
                f"{called}: {what} Its score cannot be trusted, so it is not ranked. Evaluate again: turnppo evaluate "
                "MODEL --panel FOLDER."
            ) from error
        return results

    def to_dict(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        return write_fields(self)

    def to_text(self) -> str:
        """Return the text of `results.json`, without secrets."""
        return redacted_json(self.to_dict(), indent=1)

    def save(self, folder: str | Path) -> Path:
        """Write `results.json` into a folder; return its path."""
        file = Path(folder) / RESULTS_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.to_text(), encoding="utf-8")
        return file


@dataclass(frozen=True)
class Agreement:
    """How many episodes of two results are the same."""

    episodes: int  # that both hold
    same_answers: int  # in which the player wrote the same, to the letter
    same_ending: int  # with the same stop reason and the same return

    @property
    def different(self) -> int:
        """Episodes in which something was written otherwise."""
        return self.episodes - self.same_answers

    def __str__(self) -> str:
        return (
            f"{self.different} of {self.episodes} episodes differ in what was written, "
            f"{self.episodes - self.same_ending} in how they ended"
        )


def agreement(one: PanelResults, other: PanelResults) -> Agreement:
    """
    Compare the episodes of two results.

    Raises:
        `ValueError`: they are of different panels.
    """
    check_same_panel(other, one.panel, one.panel_checksum)
    theirs = {outcome.task_id: outcome for outcome in other.outcomes}
    pairs = [(outcome, theirs[outcome.task_id]) for outcome in one.outcomes if outcome.task_id in theirs]
    return Agreement(
        episodes=len(pairs),
        same_answers=sum(mine.answers == its.answers for mine, its in pairs),
        same_ending=sum(
            (mine.stop_reason, mine.total_reward) == (its.stop_reason, its.total_reward) for mine, its in pairs
        ),
    )


def check_same_panel(results: PanelResults, panel: str, checksum: str) -> None:
    """
    Check that results are those of a panel.

    Args:
        results ([`PanelResults`]): They.
        panel (`str`): The panel's name.
        checksum (`str`): Its protocol checksum.

    Raises:
        `ValueError`: they are of another one.
    """
    if results.panel_checksum != checksum:
        raise ValueError(
            f"The results of {results.model!r} are of the panel {results.panel} ({results.panel_checksum[:12]}), not "
            f"of {panel} ({checksum[:12]}), so their episodes are not the same tasks. Evaluate both on one panel."
        )


def protocol_of(panel_checksum: str, deviations: Mapping[str, Any]) -> str:
    """Return the checksum under which results compare: the panel's own where no setting deviates."""
    return canonical_checksum([panel_checksum, dict(deviations)]) if deviations else panel_checksum


def _check_version(found: Mapping[str, Any]) -> None:
    version = found.get("schema_version", MISSING)
    if "protocol_checksum" not in found and "outcomes" not in found and ("after" in found or "held_out" in found):
        raise FieldError("protocol_checksum", MISSING, "there; this file is of a training run, not of a panel")
    if version is not MISSING and version != SCHEMA_VERSION:
        raise FieldError("schema_version", version, str(SCHEMA_VERSION))


def _check_values(found: Any, at: str) -> None:
    """Refuse what could not be summed up or shown, wherever it stands: huge numbers, and halves of characters."""
    if isinstance(found, dict):
        for name, value in found.items():
            _check_values(name, f"{at}.{name}".lstrip("."))
            _check_values(value, f"{at}.{name}".lstrip("."))
    elif isinstance(found, list):
        for number, value in enumerate(found):
            _check_values(value, f"{at}[{number}]")
    elif isinstance(found, str):
        try:
            found.encode()
        except UnicodeEncodeError:
            raise FieldError(ascii(at)[1:-1], found, "a text without halves of characters") from None
    elif isinstance(found, int | float) and MAX_NUMBER < abs(found) < math.inf:
        raise FieldError(at, f"{found!s:.20}...", f"a number from {-MAX_NUMBER:g} to {MAX_NUMBER:g}")


def _check(results: PanelResults) -> None:
    for name in ("panel_checksum", "protocol_checksum"):
        if not _CHECKSUM.fullmatch(getattr(results, name)):
            raise FieldError(name, getattr(results, name), "64 hexadecimal digits")
    if results.protocol_checksum != (due := protocol_of(results.panel_checksum, results.deviations)):
        raise FieldError("protocol_checksum", results.protocol_checksum, f"{due}, of the panel and the deviations")
    if not results.model.strip():
        raise FieldError("model", results.model, "a name")
    if not results.outcomes:
        raise FieldError("outcomes", [], "a list of at least one outcome")
    seen: set[str] = set()
    for number, outcome in enumerate(results.outcomes):
        _check_outcome(outcome, f"outcomes[{number}]")
        if outcome.task_id in seen:
            raise FieldError(f"outcomes[{number}].task_id", outcome.task_id, "another in each outcome")
        seen.add(outcome.task_id)
    _check_number(results)
    if all(outcome.failed for outcome in results.outcomes):
        raise FieldError("outcomes", "...", "with an episode that was played to its end")
    due_summary = summarize_outcomes(results.outcomes)
    for item in fields(Summary):
        found, wanted = getattr(results.summary, item.name), getattr(due_summary, item.name)
        if not _agree(found, wanted):
            raise FieldError(f"summary.{item.name}", found, f"{wanted}, as the outcomes give")


def _check_number(results: PanelResults) -> None:
    """Check that no task was left out or added, by what else in the file is of the same tasks."""
    number = len(results.outcomes)
    for name, found in results.reference.items():
        summary = read_fields(Summary, found, f"reference.{name}")
        check_summary(summary, f"reference.{name}")
        tasks = summary.episodes + summary.failed
        if number != tasks:
            raise FieldError("outcomes", f"{number} outcomes", f"of the {tasks} tasks of reference.{name}")
    episodes = results.deviations.get("episodes", number)
    if number != episodes:
        raise FieldError("outcomes", f"{number} outcomes", f"of as many tasks as deviations.episodes, {episodes}")


def _check_outcome(outcome: Outcome, at: str) -> None:
    if outcome.stop_reason not in set(StopReason):
        raise FieldError(f"{at}.stop_reason", outcome.stop_reason, f"one of {', '.join(StopReason)}")
    for name in ("total_reward", "penalty"):
        if not math.isfinite(getattr(outcome, name)):
            raise FieldError(f"{at}.{name}", getattr(outcome, name), "a finite number")
    if outcome.penalty > 0:
        raise FieldError(f"{at}.penalty", outcome.penalty, "at most 0")
    if not 0 <= outcome.invalid_turns <= outcome.turns:
        raise FieldError(f"{at}.invalid_turns", outcome.invalid_turns, "from 0 to the number of turns")


def _agree(found: Any, wanted: Any) -> bool:
    if isinstance(found, float | int) and isinstance(wanted, float | int):
        return math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-9) or (found != found and wanted != wanted)
    return bool(found == wanted)
