"""A study in; its runs trained in processes of one thread each, and a result file for each that finished, out."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import yaml

from turnppo_hf.cli.train_arguments import parse_run
from turnppo_hf.evaluation.study.plan import Block, PlannedRun, Study, StudyError, run_name
from turnppo_hf.evaluation.study.result import StudyResult, read_results, weights_digest
from turnppo_hf.hub.agent_record import RECORD_FILE
from turnppo_hf.hub.processes import end_process, left_by_signals

_POLL_S = 0.5
_VARIABLE = re.compile(r"[A-Z_]+=")
_STOP_S = 10.0  # that a process has to end in, before it is killed
_DEATH_SIGNAL = 1  # of Linux' prctl: the signal that a process gets when its parent is gone


@dataclass
class _Job:
    """A process of a run that is under way."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    begun: float = field(default_factory=time.monotonic)


class StudyRunner:
    """
    Trains what is missing of a study.

    A run is finished when its result file exists with the hash of its settings; it is never trained again. A run with
    the settings of another block's finished run takes over its result.

    Args:
        study ([`~turnppo_hf.evaluation.study.plan.Study`]): What is asked for.
        workers (`int`, *optional*): Runs at a time. Defaults to the number of cores.
        only (`str`, *optional*): Text in the names of the runs to train.
        minutes (`float`, *optional*): After these no run is started.

    Raises:
        `StudyError`: `only` names no run, or `workers` is below 1. `run` raises it where runs would start from other
            weights than finished ones from the same folder.
    """

    def __init__(
        self, study: Study, workers: int | None = None, only: str | None = None, minutes: float | None = None
    ) -> None:
        if workers is not None and workers < 1:
            raise StudyError(f"`--workers` must be at least 1, got {workers}: no run would start.")
        self.study = study
        self.workers = workers or os.cpu_count() or 1
        self.only, self.minutes = only, minutes
        self.results = {result.name: result for result in read_results(study.results)}
        self.failed: dict[str, str] = {}  # run -> the last line that it printed
        self._seconds: list[float] = []
        self.blocks = [block for block in study.blocks if any((only or "") in name for name in _names(block))]
        if only is not None and not self.blocks:
            raise StudyError(f"`--only {only}` is in no run's name. `--list` prints all names.")

    def check(self) -> None:
        """
        Read every run's settings as `turnppo train` would, before any is started.

        Raises:
            `StudyError`: a run that would be refused; the message names it.
        """
        self.study.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.study.work, prefix="check-") as folder:  # others may check as well
            file = Path(folder) / "run.yaml"
            for block in self.study.blocks:
                best = self._best(block)
                candidates = best or {
                    key: next(c for c in of.cells() if all(c[axis] == value for axis, value in held.items()))
                    for key, (of, held) in self.study.best_requests(block).items()
                }
                with warnings.catch_warnings():
                    if best is None:  # the first candidate may be none that is chosen
                        warnings.simplefilter("ignore")
                    for run in self.study.runs(block, candidates):
                        if run.seed == block.seeds[0]:
                            self._check_run(run, file)

    def _check_run(self, run: PlannedRun, file: Path) -> None:
        self._write_config(run, file, self.study.work / run.name)
        try:
            parse_run([str(file)])
        except (ValueError, TypeError) as error:
            reason = str(error).replace(f"{file}: ", "")
            raise StudyError(f"{self.study.path}: {run.name} cannot run. {reason}") from error

    def overview(self) -> str:
        """Return one line a chosen run: finished with its score, or not run."""
        lines = []
        for block in self.blocks:
            best = self._best(block)
            if best is None:
                lines.append(f"{block.name}: waits for the block that its settings come from")
                continue
            for run in self._chosen(block, best):
                result = self._finished(run)
                known = "not run" if result is None else f"{result.start:.3f} -> {result.score:.3f}"
                lines.append(f"{run.name:<60} {known}")
        return "\n".join(lines)

    def run(self) -> bool:
        """
        Train block after block, each after the folders that its runs start from; stop where the time is over.

        Returns:
            `bool`: whether every chosen run is finished.
        """
        end = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        with left_by_signals():
            complete = all([self._run_block(block, end) for block in self.blocks])
        for name, reason in self.failed.items():
            print(f"failed: {name}: {reason}")
        return complete and not self.failed

    def _run_block(self, block: Block, end: float | None) -> bool:
        best = self._best(block)
        if best is None:
            print(f"{block.name}: left out, the block that its settings come from is not finished", flush=True)
            return False
        wanted = self._chosen(block, best)
        waiting = [run for run in wanted if not self._take_over(run)]
        if waiting:
            print(f"{block.name}: {len(wanted) - len(waiting)} of {len(wanted)} runs are finished", flush=True)
        if waiting and not _is_over(end):
            self._make_starts(waiting)
            self._check_starts(waiting)
        jobs: list[_Job] = []
        try:
            while jobs or (waiting and not _is_over(end)):
                while waiting and len(jobs) < self.workers and not _is_over(end):
                    jobs.append(self._start(waiting.pop(0)))
                time.sleep(_POLL_S)
                for job in [job for job in jobs if self._has_ended(job, left=len(waiting) + len(jobs) - 1)]:
                    jobs.remove(job)
        finally:
            for job in jobs:
                end_process(job.process, _STOP_S)
        return not waiting

    def _start(self, run: PlannedRun) -> _Job:
        folder = self.study.work / run.name
        config, log = folder.with_suffix(".yaml"), folder.with_suffix(".log")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # what a run that was stopped left
        self._write_config(run, config, folder)
        command = [sys.executable, "-m", "turnppo_hf.cli", "train", str(config)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        return _Job(run, process, folder, log)

    def _has_ended(self, job: _Job, left: int) -> bool:
        """Whether a job's process ended; then its result is kept, or its failure is."""
        pid, status, usage = os.wait4(job.process.pid, os.WNOHANG)
        seconds = time.monotonic() - job.begun
        if pid == 0:
            if seconds < 60 * self.study.minutes_per_run:
                return False
            end_process(job.process, _STOP_S)
            self._fail(job.run, f"it took more than {self.study.minutes_per_run:g} minutes")
            return True
        job.process.returncode = os.waitstatus_to_exitcode(status)
        if job.process.returncode != 0:
            self._fail(job.run, f"{_last_line(job.log)} (exit {job.process.returncode}, {job.log})")
            return True
        try:
            result = StudyResult.of_run(
                job.run, self.study.name, job.folder, wall_s=seconds, cpu_s=usage.ru_utime + usage.ru_stime
            )
        except (ValueError, OSError) as error:
            self._fail(job.run, str(error))
            return True
        self._keep(job.run, result)
        self._seconds.append(seconds)
        hours = fmean(self._seconds) * left / self.workers / 3600
        print(
            f"{job.run.name}: {result.start:.3f} -> {result.score:.3f} in {seconds / 60:.1f} min; {left} left in this "
            f"block, about {hours:.1f} h",
            flush=True,
        )
        return True

    def _fail(self, run: PlannedRun, reason: str) -> None:
        self.failed[run.name] = reason
        print(f"{run.name}: failed: {reason}", flush=True)

    def _take_over(self, run: PlannedRun) -> bool:
        """Whether a run is finished, here or with equal settings in another block, whose result is then kept twice."""
        if self._finished(run) is not None:
            return True
        for result in list(self.results.values()):
            if result.settings_hash == run.settings_hash:
                self._keep(run, replace(result, block=run.block, cell=dict(run.cell)))
                return True
        return False

    def _finished(self, run: PlannedRun) -> StudyResult | None:
        result = self.results.get(run.name)
        return result if result is not None and result.settings_hash == run.settings_hash else None

    def _keep(self, run: PlannedRun, result: StudyResult) -> None:
        result.save(self.study.results / f"{run.name}.json")
        self.results[run.name] = result

    def _best(self, block: Block) -> dict[str, Mapping[str, str]] | None:
        """Return the cells that the block's `best_of` asks for, None while their block has no finished runs at all."""
        best: dict[str, Mapping[str, str]] = {}
        for key, (of, held) in self.study.best_requests(block).items():
            runs = self._best(of)
            scores: dict[tuple[tuple[str, str], ...], list[float]] = {}
            for run in [] if runs is None else self.study.runs(of, runs):
                if all(run.cell[axis] == value for axis, value in held.items()):
                    result = self._finished(run)
                    if result is None or result.score is None:
                        return None
                    scores.setdefault(tuple(run.cell.items()), []).append(result.score)
            if not scores:
                return None
            best[key] = dict(max(scores.items(), key=lambda item: fmean(item[1]))[0])
        return best

    def _make_starts(self, runs: list[PlannedRun]) -> None:
        named = json.dumps([run.settings for run in runs])
        for folder, words in self.study.starts.items():
            if json.dumps(folder) not in named or _is_whole(folder):
                continue
            kept = self.study.results / "starts" / Path(folder).name
            if _is_whole(kept):  # weights that the command would give on some processors only
                print(f"{folder}: copied from {kept}", flush=True)
                _copy_folder(kept, Path(folder))
                continue
            variables, command = _variables_and_command(words)
            shown = " ".join(f"{name}={value}" for name, value in variables.items())
            print(f"{shown} turnppo {shlex.join(command)}".lstrip(), flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
            done = subprocess.run(
                [sys.executable, "-m", "turnppo_hf.cli", *command],
                env=environment,
                check=False,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
            if done.returncode or not _is_whole(folder):
                raise StudyError(
                    f"`turnppo {words}` made no {folder} (exit {done.returncode}), which "
                    f"runs of {self.study.path} start from."
                )

    def _check_starts(self, runs: list[PlannedRun]) -> None:
        """Check that runs start from the weights that finished ones from the same folder started from."""
        for folder in sorted({str(run.settings.get("model")) for run in runs}):
            digest = weights_digest(folder)
            from_it = [result for result in self.results.values() if str(result.settings.get("model")) == folder]
            unlike = [result.name for result in from_it if result.start_digest not in ("", digest)]
            if unlike:
                raise StudyError(
                    f"{folder} holds other weights than the ones that {len(unlike)} finished runs of "
                    f"{self.study.path} started from ({unlike[0]} was one), so new runs could not be compared with "
                    "them. Processors with other instruction sets make other weights by the same command. Bring that "
                    f"folder back, or move {self.study.results} away and train all of them again."
                )

    def _write_config(self, run: PlannedRun, file: Path, folder: Path) -> None:
        settings = {**run.settings, "output_dir": str(folder)}
        file.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def _chosen(self, block: Block, best: dict[str, Mapping[str, str]]) -> list[PlannedRun]:
        return [run for run in self.study.runs(block, best) if (self.only or "") in run.name]


def _names(block: Block) -> list[str]:
    return [run_name(block.name, cell, seed) for seed in block.seeds for cell in block.cells()]


def _variables_and_command(words: str) -> tuple[dict[str, str], list[str]]:
    """Split a command as a shell does: what stands before it as NAME=value is its environment."""
    parts = shlex.split(words)
    count = next((number for number, part in enumerate(parts) if not _VARIABLE.match(part)), len(parts))
    return dict(part.split("=", 1) for part in parts[:count]), parts[count:]


def _is_whole(folder: str | Path) -> bool:
    """Whether a start was made to its end: its record is what is written last."""
    return (Path(folder) / RECORD_FILE).is_file()


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a folder so that it is there whole or not at all, also where another study copies it meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        shutil.copytree(source, Path(folder) / "copy")
        shutil.rmtree(target, ignore_errors=True)  # what is left of one that was never finished
        (Path(folder) / "copy").replace(target)


def _is_over(end: float | None) -> bool:
    return end is not None and time.monotonic() > end


def _die_with_parent() -> None:
    """In a child: ask Linux to end it with the study, however that ends, so that no run is left on a core."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
