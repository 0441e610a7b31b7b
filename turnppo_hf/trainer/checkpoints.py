"""A training's state in, a checkpoint that is complete or absent out, and the newest complete one found again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import TrainerState
from transformers.utils import logging

from turnppo_hf.hub.files import CHECKPOINT_FILE
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig

_BESIDE, _REPLACED = "_saving-", "_replaced-"  # what a checkpoint is called before and after it has its name
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0/", "latest")  # the last is DeepSpeed's, with its schedule

# what a disk that refuses makes of a write: Python, torch and safetensors each raise an error of their own
_DISK_ERRORS = (OSError, RuntimeError, SafetensorError)

logger = logging.get_logger(__name__)

_Result = TypeVar("_Result")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or a run cannot go on from it."""


@dataclass(frozen=True)
class CheckpointRecord:
    """
    What `checkpoint.json` holds; it is written last, so a folder without it was interrupted.

    Example: `CheckpointRecord(step=80, files={"optimizer.pt": [4312, "9f86..."]}, settings={"seed": 42})`.
    """

    step: int  # optimizer steps made
    files: Mapping[str, list[Any]]  # relative path, with `/` -> size in bytes and SHA-256
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the run, see `run_settings`
    duration_s: Mapping[str, float] = field(default_factory=dict)  # of the run until here, see `Duration`

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint, with a checksum of its own."""
        content = asdict(self)
        _write(folder / CHECKPOINT_FILE, json.dumps({"sha256": _digest(content), **content}, indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> CheckpointRecord:
        """
        Read it from a checkpoint.

        Raises:
            `CheckpointError`: there is none, or it is damaged; the message continues a sentence.
        """
        if not (folder / CHECKPOINT_FILE).exists():
            raise CheckpointError(f"holds no {CHECKPOINT_FILE}, which is written last, so it is incomplete")
        try:
            content = json.loads((folder / CHECKPOINT_FILE).read_text(encoding="utf-8"))
            if content.pop("sha256") != _digest(content):
                raise ValueError("its checksum differs")
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"has a damaged {CHECKPOINT_FILE} ({error})") from error


def verify(folder: Path, *, resumable: bool = True) -> CheckpointRecord:
    """
    Check that a folder is a checkpoint, by the size and checksum of each file.

    Args:
        folder (`Path`): The checkpoint.
        resumable (`bool`, *optional*, defaults to `True`): Whether a run has to be able to go on from it.

    Raises:
        `CheckpointError`: it is not; the message continues a sentence that begins with the folder.
    """
    if not folder.is_dir():
        raise CheckpointError("does not exist" if not folder.exists() else "is a file, not a checkpoint's folder")
    if not (folder / CHECKPOINT_FILE).exists() and any(folder.glob("checkpoint-*")):
        raise CheckpointError("is a run's folder, not one of its checkpoints, and holds no optimizer to go on with")
    record = CheckpointRecord.load(folder)
    for name, (size, checksum) in record.files.items():
        file = folder / name
        try:
            if not file.is_file():
                raise CheckpointError(f"lacks its file {name}")
            if file.stat().st_size != size:
                raise CheckpointError(f"has {file.stat().st_size} of {size} bytes of its file {name}")
            if _digest_file(file) != checksum:
                raise CheckpointError(f"has a file {name} whose checksum differs from the recorded one")
        except OSError as error:
            raise CheckpointError(f"has a file {name} that cannot be read ({error.strerror})") from error
    has = tuple(record.files)
    missing = [
        what
        for what, names in (
            ("state of the trainer", ("trainer_state.json",)),
            ("optimizer", _OPTIMIZERS),
            ("schedule", ("scheduler.pt", "latest")),
        )
        if not any(name == wanted or name.startswith(wanted) for wanted in names for name in has)
    ]
    if missing and resumable:
        raise CheckpointError(f"was saved without its {missing[0]} (`save_only_model`), so a run cannot go on from it")
    return record


def newest_complete(
    run_folder: Path, report: Callable[[str], object] = logger.warning, last_step: float = math.inf
) -> Path | None:
    """
    Find the newest checkpoint that a run can go on from; report each newer one that is skipped, in a sentence.

    Args:
        run_folder (`Path`): The run's `output_dir`.
        report (`Callable`, *optional*): Takes the sentences.
        last_step (`int`, *optional*): Checkpoints of later steps are passed over. No limit by default.
    """
    candidates = [folder for folder in _checkpoints(run_folder) if _step_of(folder) <= last_step]
    for folder in sorted(candidates, key=_step_of, reverse=True):
        try:
            verify(folder)
        except CheckpointError as error:
            report(f"{folder} {error}: it is skipped for the checkpoint before it.")
        else:
            return folder
    return None


def describe_newest(run_folder: Path) -> str:
    """Return a sentence with the newest complete checkpoint of a run."""
    folder = newest_complete(run_folder, report=lambda sentence: None)
    return f"No complete checkpoint lies in {run_folder}." if folder is None else f"The last good one is {folder}."


def note_best(state: TrainerState, folder: Path) -> None:
    """Let the state name its best checkpoint, where that is the one that is written, `folder`, or still there."""
    best = folder.with_name(f"checkpoint-{state.best_global_step}")
    if state.best_global_step and (best == folder or best.exists()):
        state.best_model_checkpoint = str(best)


def check_best(folder: str, run_folder: Path) -> None:
    """
    Check the checkpoint that `load_best_model_at_end` loads.

    Raises:
        `CheckpointError`: it is incomplete or damaged.
    """
    try:
        verify(Path(folder), resumable=False)
    except CheckpointError as error:
        raise CheckpointError(
            f"The best checkpoint, {folder}, {error}, so `load_best_model_at_end` cannot load it. "
            f"{describe_newest(run_folder)} Resume from it without `load_best_model_at_end`."
        ) from error


def find_checkpoint(asked: str | bool | None, run_folder: Path) -> tuple[Path, CheckpointRecord] | None:
    """
    Resolve `resume_from_checkpoint`, and check what it names.

    Args:
        asked (`str` or `bool`, *optional*): A checkpoint's folder; True or `"true"` for the newest complete one.
        run_folder (`Path`): The run's `output_dir`.

    Returns:
        `tuple[Path, CheckpointRecord]`: the checkpoint; None where none is asked for.

    Raises:
        `CheckpointError`: there is none, or the one named is incomplete or damaged.
    """
    if asked is None or asked is False or str(asked).lower() in ("", "false"):
        return None
    if str(asked).lower() == "true":
        newest = newest_complete(run_folder)
        if newest is None:
            raise CheckpointError(
                f"`resume_from_checkpoint` is true, but {run_folder} holds no complete checkpoint to go on from. "
                "Leave it out to start anew, or name a checkpoint's folder."
            )
        return newest, CheckpointRecord.load(newest)
    folder = Path(str(asked))
    try:
        return folder, verify(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"`resume_from_checkpoint`: {folder} {error}, and going on from it would compute other numbers. "
            f"{describe_newest(folder if any(_checkpoints(folder)) else run_folder)} Name a complete one, or `true` "
            "for the newest."
        ) from error


@contextmanager
def write_checkpoint(
    folder: Path, args: TurnPPOConfig, settings: Mapping[str, Any], duration_s: Mapping[str, float]
) -> Iterator[str]:
    """
    Open a folder beside a checkpoint's; when it is left, it is checksummed, synced to the disk and renamed.

    Every rank enters and leaves it. A run that is killed at any moment leaves the checkpoint complete or absent.

    Args:
        folder (`Path`): The checkpoint, `checkpoint-<step>`.
        args ([`TurnPPOConfig`]): Which rank writes.
        settings (`Mapping`), duration_s (`Mapping`): For its record.

    Raises:
        `CheckpointError`: on every rank, where one of them could not write.
    """
    beside = folder.with_name(_BESIDE + folder.name)
    problem: str | None = None
    cause: Exception | None = None
    try:
        try:
            if args.should_save:
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
            gather_object([None])  # no rank writes before the folder is there
            yield str(beside)
        except _DISK_ERRORS as error:
            if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
                raise  # torch raises the plain class where a write fails
            problem, cause = str(error).split("\n")[0], error
        if not any(gather_object([problem])):
            # the first rank of all, then those of machines with a disk of their own
            for is_turn in (args.process_index == 0, args.process_index > 0 and args.local_process_index == 0):
                try:
                    if is_turn and beside.exists():
                        _seal(beside, _step_of(folder), settings, duration_s)
                        _rename(beside, folder)
                except OSError as error:
                    problem, cause = str(error), error
                gather_object([None])
        if problems := [item for item in gather_object([problem]) if item]:
            raise CheckpointError(
                f"The checkpoint of step {_step_of(folder)} cannot be written ({problems[0]}), and a run that goes on "
                f"could lose all that follows. {describe_newest(folder.parent)} Make room for new ones, and resume "
                "with `resume_from_checkpoint`."
            ) from cause
    finally:
        if args.should_save:
            shutil.rmtree(beside, ignore_errors=True)


def on_first_rank(args: TurnPPOConfig, action: Callable[[], _Result]) -> _Result:
    """
    Call an action on the first rank; return its result, or raise its error, on every rank.

    Raises:
        `ValueError`, `OSError`: what the action raises.
    """
    outcome: tuple[_Result | None, Exception | None] = None, None
    if args.process_index == 0:
        try:
            outcome = action(), None
        except (ValueError, OSError) as error:
            outcome = None, error
    result, problem = gather_object([outcome])[0]
    if problem is not None:
        raise problem
    return result


def set_aside(run_folder: Path, last_step: int, aside: str = "_earlier") -> None:
    """
    Move checkpoints of later steps than a run starts from into a folder of their own: they are another past's.

    Args:
        run_folder (`Path`): The run's `output_dir`.
        last_step (`int`): The step of the checkpoint that the run starts from; -1 without one.
        aside (`str`, *optional*): The name of that folder.
    """
    later = [folder for folder in _checkpoints(run_folder) if _step_of(folder) > last_step]
    for folder in later:
        target = run_folder / aside / folder.name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
    if later:
        logger.warning(
            "%d checkpoints after step %d, where this run starts, were moved to %s.",
            len(later),
            max(last_step, 0),
            run_folder / aside,
        )


def finish_interrupted(run_folder: Path) -> None:
    """Remove what a killed run left half written, and give a checkpoint its name back that was being replaced."""
    for folder in run_folder.glob(f"{_REPLACED}checkpoint-*"):
        name = run_folder / folder.name.removeprefix(_REPLACED)
        if name.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(name)
    for folder in run_folder.glob(f"{_BESIDE}checkpoint-*"):
        shutil.rmtree(folder, ignore_errors=True)


def try_write(run_folder: Path) -> None:
    """
    Write, sync, rename and delete a small file, as a checkpoint will.

    Raises:
        `CheckpointError`: the folder cannot be written.
    """
    file = run_folder / f"{_BESIDE}test-{os.getpid()}"
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        try:
            _write(file, b"\0" * 4096)
            file = file.rename(f"{file}ed")
        finally:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"`output_dir` {run_folder} cannot be written ({error.strerror}), so nothing that is learned could be "
            "saved. Name a folder with room that is yours to write."
        ) from error


def _seal(folder: Path, step: int, settings: Mapping[str, Any], duration_s: Mapping[str, float]) -> None:
    """Sync each file to the disk and write the record of them all."""
    files: dict[str, list[Any]] = {}
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        files[file.relative_to(folder).as_posix()] = [file.stat().st_size, _digest_file(file)]
    for part in (item for item in folder.rglob("*") if item.is_dir()):
        _sync_folder(part)
    CheckpointRecord(step, files, settings, duration_s).save(folder)
    _sync_folder(folder)


def _rename(beside: Path, folder: Path) -> None:
    replaced = folder.with_name(_REPLACED + folder.name)
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    beside.rename(folder)
    _sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _checkpoints(run_folder: Path) -> list[Path]:
    return [item for item in run_folder.glob("checkpoint-*") if item.is_dir() and item.name[11:].isdecimal()]


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
