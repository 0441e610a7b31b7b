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
from uuid import uuid4

from turnppo_hf.environments.reading import as_number
from turnppo_hf.evaluation.calibration import CriticJudgement, Group
from turnppo_hf.evaluation.example import Example
from turnppo_hf.evaluation.json_fields import NULLABLE, FieldError, read_fields, write_fields
from turnppo_hf.evaluation.outcome import Summary, check_summary
from turnppo_hf.evaluation.results import LearningPoint, Package, RunResults
from turnppo_hf.evaluation.study.plan import PlannedRun, hash_of, run_name
from turnppo_hf.redaction import find_mask, redacted_json

# what is kept of the log, one list of numbers each; None where a step did not log it
LOGGED = (
    *("step", "num_tokens", "reward", "success", "explained_variance", "clip_fraction", "log_ratio/std"),
    *("log_ratio/p01", "log_ratio/p99", "entropy", "approx_kl", "advantages/std", "grad_norm/actor", "turns/mean"),
    *("turns/invalid_share", "episodes/failed", "time/rollout_s", "time/update_s"),
)
CUT = ("stop/token_limit", "stop/overlong")  # ends that no run of a study may have
_SIZES = ("generation_batch_size", "num_minibatches", "num_iterations")  # episodes, and the steps made of them
_BY_TURN = "advantages/turn_"
_DIGITS = 4
_NAME_A_RUN = "Name the folder of a finished run."


@dataclass(frozen=True)
class StudyResult:
    """What is kept of one run of a study."""

    study: str
    block: str
    cell: Mapping[str, str]  # axis -> value
    seed: int
    settings_hash: str
    settings: Mapping[str, Any]  # of `turnppo train`, without `output_dir`
    wall_s: float | None  # of the whole process; None where it is not known
    cpu_s: float | None  # user and system, of the process and its children; None where no study trained it
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
    def of_run(
        cls, run: PlannedRun, study: str, folder: Path, *, wall_s: float | None, cpu_s: float | None = None
    ) -> StudyResult:
        """
        Read what a finished run left in its folder.

        Raises:
            `ValueError`: the run did not finish, or its folder is damaged.
        """
        results = RunResults.from_file(folder)
        history = _read_history(folder / "trainer_state.json")
        batch, *passes = _read_sizes(folder / "training_config.json")
        cut = [sum(entry.get(name, 0.0) for name in CUT) for entry in history]
        return cls(
            study=study,
            block=run.block,
            cell=dict(run.cell),
            seed=run.seed,
            settings_hash=run.settings_hash,
            settings=dict(run.settings),
            wall_s=None if wall_s is None else round(wall_s, 1),
            cpu_s=None if cpu_s is None else round(cpu_s, 1),
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
        """Write it, whole or not at all; another command may write the same file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.stem}.{uuid4().hex}.part")
        try:
            beside.write_text(redacted_json(write_fields(self), indent=1), encoding="utf-8")
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)

    def _check(self) -> None:
        """Check what the annotations of the fields do not say."""
        for name in ("before", "after", "random", "optimal"):
            if (summary := getattr(self, name)) is not None:
                check_summary(summary, name)
        for axis, value in self.cell.items():
            if not isinstance(value, str):
                raise FieldError(f"cell.{axis}", value, "a string")
        for name, column in self.log.items():
            if not isinstance(column, list) or not all(entry is None or _is_number(entry) for entry in column):
                raise FieldError(f"log.{name}", column, "a list of numbers")
        figures = {name: getattr(self, name) for name in ("wall_s", "cpu_s", "episodes_per_step", "cut_share")}
        figures |= {f"advantages_by_turn[{turn}]": size for turn, size in enumerate(self.advantages_by_turn)}
        for number, point in enumerate(self.curve):
            figures |= {f"curve[{number}].{name}": getattr(point, name) for name in ("step", "episodes")}
            rate, mean = point.success_rate, point.mean_return
            if not (rate is None or 0 <= rate <= 1) or not (mean is None or _is_number(mean)):
                raise FieldError(f"curve[{number}]", point, "of a success between 0 and 1, and a finite return")
        for name, figure in figures.items():
            if figure is not None and not _is_number(figure, least=0):
                raise FieldError(name, figure, "a number of at least 0")
        if find_mask(self.settings) is None and hash_of(self.settings) != self.settings_hash:
            raise FieldError("settings_hash", self.settings_hash, f"{hash_of(self.settings)}, that of the settings")

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


def _is_number(value: Any, least: float = -math.inf) -> bool:
    number = as_number(value)
    return math.isfinite(number) and number >= least


def _read_history(file: Path) -> list[dict[str, Any]]:
    """Return the logged steps of a run."""
    history = _read_object(file).get("log_history", [])
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise ValueError(f"{file}: `log_history` must be a list of objects, so its steps are not known. {_NAME_A_RUN}")
    steps = [entry for entry in history if "reward" in entry]
    for number, entry in enumerate(steps):
        for name, value in entry.items():
            is_drawn = name in LOGGED and isinstance(value, float)  # which may be NaN or infinite
            is_used = name in LOGGED or name in CUT or name.startswith(_BY_TURN)
            if is_used and not is_drawn and not _is_number(value):
                raise ValueError(f"{file}: `{name}` of step {number + 1} is {value!r}, no number. {_NAME_A_RUN}")
    return steps


def _read_sizes(file: Path) -> list[int]:
    """Return the numbers that tell how many episodes a step has, 1 of what the run did not set."""
    used = _read_object(file)
    sizes = {name: used.get(name) or 1 for name in _SIZES}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{file}: `{name}` is {size!r}, it must be an integer of at least 1. {_NAME_A_RUN}")
    return list(sizes.values())


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}), and what was trained stands in it. {_NAME_A_RUN}"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object, so it is that of no run. {_NAME_A_RUN}")
    return found


def _advantages_by_turn(history: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    names = (f"{_BY_TURN}{turn}" for turn in itertools.count(1))
    last: Mapping[str, Any] = next((entry for entry in reversed(history) if f"{_BY_TURN}1" in entry), {})
    return tuple(round(float(last[name]), _DIGITS) for name in itertools.takewhile(last.__contains__, names))


def _columns(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    columns: dict[str, list[float | None]] = {}
    for name in LOGGED:
        values = [entry.get(name) for entry in history]
        if any(value is not None for value in values):
            known = (value if _is_number(value) else None for value in values)
            columns[name] = [None if value is None else round(float(value), _DIGITS) for value in known]
    return columns
