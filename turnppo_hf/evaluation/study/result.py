"""The folder of a finished run in; the small file that a study keeps of it out."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnppo_hf.evaluation.calibration import CriticJudgement, Group
from turnppo_hf.evaluation.example import Example
from turnppo_hf.evaluation.json_fields import NULLABLE, FieldError, read_fields, write_fields
from turnppo_hf.evaluation.outcome import Summary, check_summary
from turnppo_hf.evaluation.results import LearningPoint, Package, RunResults
from turnppo_hf.evaluation.study.plan import PlannedRun, run_name
from turnppo_hf.redaction import redacted_json

# what is kept of the log, one list of numbers each; None where a step did not log it
LOGGED = (
    *("step", "num_tokens", "reward", "success", "explained_variance", "clip_fraction", "log_ratio/std"),
    *("log_ratio/p01", "log_ratio/p99", "entropy", "approx_kl", "advantages/std", "grad_norm/actor", "turns/mean"),
    *("turns/invalid_share", "episodes/failed", "time/rollout_s", "time/update_s"),
)
CUT = ("stop/token_limit", "stop/overlong")  # ends that no run of a study may have
_SIZES = ("generation_batch_size", "num_minibatches", "num_iterations")  # episodes, and the steps made of them
_DIGITS = 4


@dataclass(frozen=True)
class StudyResult:
    """What is kept of one run of a study."""

    study: str
    block: str
    cell: Mapping[str, str]  # axis -> value
    seed: int
    settings_hash: str
    settings: Mapping[str, Any]  # of `turnppo train`, without `output_dir`
    wall_s: float  # of the whole process
    cpu_s: float  # user and system, of the process and its children
    episodes_per_step: float  # episodes played for one optimizer step
    cut_share: float  # largest share of a logged batch's episodes that a token limit or a long prompt ended
    package: Package = field(default_factory=Package)
    before: Summary | None = None  # held out, before training
    after: Summary | None = None
    random: Summary | None = None
    optimal: Summary | None = None
    critic: CriticJudgement | None = field(default=None, metadata=NULLABLE)
    curve: tuple[LearningPoint, ...] = ()
    log: Mapping[str, Any] = field(default_factory=dict)  # name -> one number a logged step
    advantages_by_turn: tuple[float, ...] = ()  # mean size, before whitening, when last logged
    examples: tuple[Example, ...] = ()  # held-out episodes after training
    start_digest: str = ""  # of the weights that it started from, where they lay in a folder

    @classmethod
    def of_run(cls, run: PlannedRun, study: str, folder: Path, *, wall_s: float, cpu_s: float) -> StudyResult:
        """
        Read what a finished run left in its folder.

        Raises:
            `ValueError`: the run did not finish, or its folder is damaged.
        """
        results = RunResults.from_file(folder)
        state, used = (_read_object(folder / name) for name in ("trainer_state.json", "training_config.json"))
        history = [entry for entry in state.get("log_history", ()) if "reward" in entry]
        batch, *passes = (int(used.get(name) or 1) for name in _SIZES)
        cut = [sum(entry.get(name, 0.0) for name in CUT) for entry in history]
        return cls(
            study=study,
            block=run.block,
            cell=dict(run.cell),
            seed=run.seed,
            settings_hash=run.settings_hash,
            settings=dict(run.settings),
            wall_s=round(wall_s, 1),
            cpu_s=round(cpu_s, 1),
            episodes_per_step=batch / math.prod(passes),
            cut_share=max(cut, default=0.0),
            package=results.package,
            before=results.before,
            after=results.after,
            random=results.random,
            optimal=results.optimal,
            critic=results.critic,
            curve=results.learning_curve or (),
            log=_columns(history),
            advantages_by_turn=_advantages_by_turn(history),
            examples=results.examples or (),
            start_digest=weights_digest(run.settings.get("model")),
        )

    @classmethod
    def from_file(cls, file: Path) -> StudyResult:
        """
        Read a kept result.

        Raises:
            `ValueError`: it is damaged.
        """
        try:
            result = read_fields(cls, json.loads(file.read_text(encoding="utf-8")))
            result._check()
            return result
        except (OSError, ValueError, RecursionError, FieldError) as error:
            raise ValueError(
                f"{file} is no result of a study ({error}), so a report would lack it. Remove the file: `turnppo "
                "study` makes it again."
            ) from error

    def save(self, file: Path) -> None:
        """Write it, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".part")
        beside.write_text(redacted_json(write_fields(self), indent=1), encoding="utf-8")
        beside.replace(file)

    def _check(self) -> None:
        """Check what the annotations of the fields do not say."""
        for name in ("before", "after", "random", "optimal"):
            if (summary := getattr(self, name)) is not None:
                check_summary(summary, name)
        for axis, value in self.cell.items():
            if not isinstance(value, str):
                raise FieldError(f"cell.{axis}", value, "a string")
        for name, column in self.log.items():
            if not isinstance(column, list) or not all(isinstance(entry, int | float | None) for entry in column):
                raise FieldError(f"log.{name}", column, "a list of numbers")

    def starts_as(self, other: StudyResult) -> bool:
        """
        Whether two runs that name one model as their start had the same weights: by digests, and where only one has
        any, from before they were kept, by what both scored before they trained.
        """
        digests = {self.start_digest, other.start_digest}
        is_other = self.settings.get("model") != other.settings.get("model")
        return is_other or len(digests) == 1 or ("" in digests and self.before == other.before)

    @property
    def name(self) -> str:
        """That of the run it is of."""
        return run_name(self.block, self.cell, self.seed)

    @property
    def score(self) -> float | None:
        """Held-out success after training, the mean return where success is not defined."""
        return _score(self.after)

    @property
    def curve_scores(self) -> list[float]:
        """The held-out scores from the start on: successes where all evaluations have one, else mean returns."""
        has_success = all(point.success_rate is not None for point in self.curve)
        found = [point.success_rate if has_success else point.mean_return for point in self.curve]
        return [math.nan if value is None else value for value in found]

    @property
    def fall(self) -> float | None:
        """How far `score` is below the best held-out score of the run, from the start on; 0 where it is the best."""
        return max(self.curve_scores) - self.curve_scores[-1] if self.curve else None

    @property
    def calibration(self) -> tuple[Group, ...]:
        """Values and returns that followed; none of a critic that discounts tokens, since returns discount turns."""
        if self.settings.get("algorithm") == "token_ppo" and self.settings.get("token_gamma", 1.0) != 1.0:
            return ()
        return () if self.critic is None else self.critic.groups or ()

    @property
    def start(self) -> float | None:
        """The same before training."""
        return _score(self.before)


def _score(summary: Summary | None) -> float | None:
    if summary is None:
        return None
    score = summary.mean_return if summary.success_rate is None else summary.success_rate
    return score if math.isfinite(score) else None


def weights_digest(model: Any) -> str:
    """Return what tells the weights in a model's folder from others; nothing where it is no folder."""
    files = sorted(Path(str(model)).glob("*.safetensors")) if model else []
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if files else ""


def read_results(folder: Path) -> dict[str, StudyResult]:
    """Return all results below a folder, by their path in it, without the suffix."""
    files = {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("seed_*.json"))}
    return {name: StudyResult.from_file(file) for name, file in files.items()}


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}), and what was trained stands in it. Name the folder of a finished run."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object, so it is that of no run. Name the folder of a finished run.")
    return found


def _advantages_by_turn(history: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    names = (f"advantages/turn_{turn}" for turn in itertools.count(1))
    last: Mapping[str, Any] = next((entry for entry in reversed(history) if "advantages/turn_1" in entry), {})
    return tuple(round(float(last[name]), _DIGITS) for name in itertools.takewhile(last.__contains__, names))


def _columns(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    columns: dict[str, list[float | None]] = {}
    for name in LOGGED:
        values = [entry.get(name) for entry in history]
        if any(value is not None for value in values):
            columns[name] = [None if value is None else round(float(value), _DIGITS) for value in values]
    return columns
