"""`results.json` of a finished run in, its typed figures out, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnppo_hf.evaluation.calibration import CriticJudgement
from turnppo_hf.evaluation.example import Example
from turnppo_hf.evaluation.json_fields import NULLABLE, FieldError, read_fields, write_fields
from turnppo_hf.evaluation.outcome import Summary, check_summary
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.redaction import redacted_json

RESULTS_FILE = "results.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Package:
    """The package that made a file. A field is None where it was not recorded."""

    name: str | None = None  # distribution
    version: str | None = None
    commit: str | None = None  # of its repository, with a `+` where files were changed since
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys of other versions


@dataclass(frozen=True)
class HeldOut:
    """
    The held-out episodes of an agent, so that they can be played again. A field is None where it was not recorded.

    Example: `HeldOut(environment_kwargs={"split": "test"}, episodes=256, seed=1_000_000, temperature=1.0)`.
    """

    environment_kwargs: Mapping[str, Any] | None = None  # of the environment, on top of those of training
    episodes: int | None = None  # how many
    seed: int | None = None  # of the first episode; each next one has the next seed
    temperature: float | None = None  # of the sampling; 0 is greedy
    tasks: tuple[Mapping[str, Any], ...] | None = None  # dataset rows, one an episode; None where seeds are the tasks
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys of other versions


@dataclass(frozen=True)
class LearningPoint:
    """One held-out evaluation of a run. Fields that `Summary` also has mean the same; None where not defined."""

    step: int  # optimizer steps before it
    episodes: int
    success_rate: float | None
    success_low: float | None
    success_high: float | None
    mean_return: float | None
    return_error: float | None

    @classmethod
    def from_summary(cls, step: int, summary: Summary) -> LearningPoint:
        """Take the figures of a summary."""
        values = summary.to_dict()
        names = ("episodes", "success_rate", "success_low", "success_high", "mean_return", "return_error")
        return cls(step, **{name: values[name] for name in names})


@dataclass(frozen=True)
class Duration:
    """Seconds of wall time."""

    training: float  # the optimizer steps, with the evaluations between them
    total: float  # with the evaluations before and after


@dataclass(frozen=True)
class ComparedRun:
    """What `results.json` keeps of another run on the same held-out tasks; the fields are those of `RunResults`."""

    algorithm: str | None = None
    seed: int | None = None
    model: str | None = None
    command: str | None = None
    package: Package = field(default_factory=Package)
    after: Summary | None = None
    learning_curve: tuple[LearningPoint, ...] | None = None
    duration_s: Duration | None = None


@dataclass(frozen=True)
class RunResults:
    """
    What `turnppo train` measured: the content of `results.json`. A field is None where it was not recorded.

    Example: `RunResults(algorithm="turn_ppo", environment="turnppo_hf/Sokoban-v0", seed=42, before=Summary(...),
    after=Summary(...))`.
    """

    schema_version: int = SCHEMA_VERSION
    config: str | None = None  # YAML of the run; its name alone where it was named by an absolute path
    command: str | None = None  # that was typed
    package: Package = field(default_factory=Package)
    model: str | None = None  # that training started from, as it was named
    algorithm: str | None = None  # a key of `ALGORITHMS`
    environment: str | None = None  # Gymnasium id
    environment_kwargs: Mapping[str, Any] | None = None  # of training
    data: str | None = None  # the data that the environment reads, in words
    seed: int | None = None  # of the training
    train_tasks: int | None = None  # number of tasks
    held_out: HeldOut = field(default_factory=HeldOut)  # the episodes of all figures below
    before: Summary | None = None  # the agent before training
    after: Summary | None = None  # the agent after training
    random: Summary | None = None  # reference players, where the environment has them
    expert: Summary | None = None
    optimal: Summary | None = None
    critic: CriticJudgement | None = field(
        default=None, metadata=NULLABLE
    )  # None without a critic, or where no return is known
    examples: tuple[Example, ...] | None = None  # held-out episodes after training
    shown_episode: str | None = None  # the episode of the card's replay, in words
    learning_curve: tuple[LearningPoint, ...] | None = None  # in the order of steps
    duration_s: Duration | None = None
    comparison: tuple[ComparedRun, ...] | None = None  # other runs, as `turnppo card --compare` adds them
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys of other versions

    @classmethod
    def from_file(cls, path: str | Path) -> RunResults:
        """
        Read a run's `results.json`.

        Args:
            path (`str` or `Path`): The file, or the run's folder.

        Raises:
            `ValueError`: it is not there, is no JSON object, or has a wrong value.
        """
        file = Path(path)
        file = file / RESULTS_FILE if file.is_dir() else file
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{str(file)!r} cannot be read ({error}). `turnppo train` writes it at its end; name the run's folder."
            ) from error
        try:
            if isinstance(found, dict) and "protocol_checksum" in found:
                raise FieldError("protocol_checksum", found["protocol_checksum"], "absent: this file is of a panel")
            results = read_fields(cls, found)
            _check_algorithms(results)
            for name, summary in results.players.items():
                check_summary(summary, name)
            if results.schema_version > SCHEMA_VERSION:
                raise FieldError("schema_version", results.schema_version, f"at most {SCHEMA_VERSION}")
        except FieldError as error:
            raise ValueError(
                f"{file} is damaged, or of a newer version: {error} The figures of the run are read from it. Download "
                "it again, or upgrade turnppo-hf."
            ) from error
        return results

    def to_dict(self) -> dict[str, Any]:
        """Return what `results.json` holds."""
        return write_fields(self)

    def save(self, folder: str | Path) -> None:
        """Write `results.json` into a folder, without secrets."""
        (Path(folder) / RESULTS_FILE).write_text(redacted_json(self.to_dict()), encoding="utf-8")

    @property
    def players(self) -> dict[str, Summary]:
        """The summaries by player, in the order of the file."""
        named = {name: getattr(self, name) for name in ("before", "after", "random", "expert", "optimal")}
        return {name: summary for name, summary in named.items() if summary is not None}

    def compared(self) -> ComparedRun:
        """Return what another run's results keep of these."""
        names = ("algorithm", "seed", "model", "command", "package", "after", "learning_curve", "duration_s")
        return ComparedRun(**{name: getattr(self, name) for name in names})


def _check_algorithms(results: RunResults) -> None:
    named = {"algorithm": results.algorithm}
    named |= {f"comparison[{number}].algorithm": run.algorithm for number, run in enumerate(results.comparison or ())}
    for name, algorithm in named.items():
        if algorithm is not None and algorithm not in ALGORITHMS:
            raise FieldError(name, algorithm, f"one of {', '.join(ALGORITHMS)}")
