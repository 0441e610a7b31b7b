"""A folder that a study's runs start from in; the same, copied from what is kept or made by its command, out."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.evaluation.study.plan import Study, StudyError
from turnppo_hf.evaluation.study.result import StudyResult, weights_digest
from turnppo_hf.hub.agent_record import RECORD_FILE
from turnppo_hf.hub.processes import die_with_parent

_MAKERS = ("imitate", "train")  # commands that write an agent's folder
_VARIABLE = re.compile(r"[A-Za-z_]\w*=")


def check_starts(study: Study) -> None:
    """
    Check the commands of a study's starts, before any is needed.

    Raises:
        `StudyError`: one that cannot be read, or that makes no agent.
    """
    for folder, words in study.starts.items():
        at = f"{study.path}: starts.{folder}"
        try:
            _, command = _variables_and_command(words)
        except ValueError as error:
            raise StudyError(f"{at}: {words!r} cannot be split into words: {error}. Correct its quotes.") from error
        first = command[0] if command else ""
        if first not in _MAKERS:
            raise StudyError(
                f"{at}: {first!r} is no command that makes an agent to start from.{did_you_mean(first, _MAKERS)} "
                f"Write one of {', '.join(_MAKERS)}, with its arguments."
            )


def prepare_start(study: Study, folder: str, finished: Iterable[StudyResult]) -> None:
    """
    Make a folder that runs start from, where the study does and it is missing, and check what it holds.

    Args:
        study ([`~turnppo_hf.evaluation.study.plan.Study`]): It has the commands.
        folder (`str`): The `model` of runs; another command that makes it is waited for.
        finished (`Iterable[StudyResult]`): Of the study.

    Raises:
        `StudyError`: the command made no such folder, or it holds other weights than finished runs started from.
    """
    if folder in study.starts:
        with _locked(Path(f"{folder}.lock")):
            if not _is_whole(folder):
                _make_start(study, folder)
    digest = weights_digest(folder)
    from_it = [result for result in finished if str(result.settings.get("model")) == folder]
    unlike = [result.name for result in from_it if result.start_digest not in ("", digest)]
    if unlike:
        there = "holds other weights than the ones" if digest else "is not there; it held the weights"
        raise StudyError(
            f"{folder} {there} that {len(unlike)} finished runs of {study.path} started from ({unlike[0]} was one), "
            "so new runs could not be compared with them. Processors with other instruction sets make other weights "
            f"by the same command. Bring that folder back, or move {study.results} away and train all of them again."
        )


def _make_start(study: Study, folder: str) -> None:
    kept = study.results / "starts" / Path(folder).name
    if _is_whole(kept):  # weights that the command would give on some processors only
        print(f"{folder}: copied from {kept}", flush=True)
        _copy_folder(kept, Path(folder))
        return
    words = study.starts[folder]
    variables, command = _variables_and_command(words)
    shown = " ".join(f"{name}={value}" for name, value in variables.items())
    print(f"{shown} turnppo {shlex.join(command)}".lstrip(), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "turnppo_hf.cli", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        check=False,
        preexec_fn=die_with_parent(),
    )
    if done.returncode or not _is_whole(folder):
        raise StudyError(
            f"`turnppo {words}` made no {folder} (exit {done.returncode}), which runs of {study.path} start from."
        )


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a file locked; wait while another process does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _variables_and_command(words: str) -> tuple[dict[str, str], list[str]]:
    """Split a command as a shell does: what stands before it as NAME=value is its environment."""
    parts = shlex.split(words)
    count = next((number for number, part in enumerate(parts) if not _VARIABLE.match(part)), len(parts))
    return dict(part.split("=", 1) for part in parts[:count]), parts[count:]


def _is_whole(folder: str | Path) -> bool:
    """Whether a start was made to its end: its record is what is written last."""
    return (Path(folder) / RECORD_FILE).is_file()


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a folder so that it is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        shutil.copytree(source, Path(folder) / "copy")
        shutil.rmtree(target, ignore_errors=True)  # what is left of one that was never finished
        (Path(folder) / "copy").replace(target)
