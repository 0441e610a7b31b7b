"""A study in; its runs trained in processes of one thread each, and a result file for each that finished, out."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import yaml

from turnppo_hf.cli.study_starts import check_starts, prepare_start
from turnppo_hf.cli.train_arguments import parse_run
from turnppo_hf.environments import find_environment
from turnppo_hf.evaluation.study.finished import FinishedRuns
from turnppo_hf.evaluation.study.plan import Block, PlannedRun, Study, StudyError, check_claims, run_name
from turnppo_hf.evaluation.study.result import StudyResult
from turnppo_hf.hub.processes import die_with_parent, end_process, left_by_signals
from turnppo_hf.hub.run_record import TRAIN_CONFIG

_POLL_S = 0.5
_STOP_S = 10.0  # that a process has to end in, before it is killed


@dataclass
class _Job:
    """A process of a run that is under way."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    lock: int  # an open file, which keeps other commands from training the same run
    begun: float = field(default_factory=time.monotonic)


class StudyRunner:
    """
    Trains what is missing of a study.

    A finished run is never trained again, see [`~turnppo_hf.evaluation.study.finished.FinishedRuns`]. A run with the
    settings of another one that is finished takes over its result. A run that another command trains is left to it.

    Args:
        study ([`~turnppo_hf.evaluation.study.plan.Study`]): What is asked for.
        workers (`int`, *optional*): Runs at a time. Defaults to the number of cores.
        only (`str`, *optional*): Text in the names of the runs to train.
        minutes (`float`, *optional*): After these no run is started.

    Raises:
        `StudyError`: `only` names no run, `workers` is below 1, or `minutes` below 0. `run` raises it where results
            or work cannot be written.
    """

    def __init__(
        self, study: Study, workers: int | None = None, only: str | None = None, minutes: float | None = None
    ) -> None:
        if workers is not None and workers < 1:
            raise StudyError(f"`--workers` must be at least 1, got {workers}: no run would start.")
        if minutes is not None and not minutes >= 0:
            raise StudyError(
                f"`--minutes` must be at least 0, got {minutes:g}: it is a time. Leave it out for no limit."
            )
        self.study = study
        self.workers = workers or os.cpu_count() or 1
        self.only, self.minutes = only, minutes
        self.finished = FinishedRuns(study)
        self.failed: dict[str, str] = {}  # run -> the last line that it printed; start -> why none is made from it
        self._seconds: list[float] = []
        self.blocks = [block for block in study.blocks if any((only or "") in name for name in _names(block))]
        if only is not None and not self.blocks:
            raise StudyError(f"`--only {only}` is in no run's name. `--list` prints all names.")

    def check(self) -> None:
        """
        Read every run's settings as `turnppo train` would, before any is started.

        Raises:
            `StudyError`: a run that would be refused, a claim that compares equal runs, or a start that no command
                makes; the message names it.
        """
        check_starts(self.study)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.yaml"
            for block in self.study.blocks:
                best = self.finished.best(block)
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
                if best is not None:
                    check_claims(self.study, block, best)

    def _check_run(self, run: PlannedRun, file: Path) -> None:
        try:
            self._write_config(run, file, self._folder(run))
            with _kept_environment():
                task = parse_run([str(file)]).task
            assert isinstance(task.environment_kwargs, dict) and isinstance(task.eval_environment_kwargs, dict)
            find_environment(task.environment, {**task.environment_kwargs, **task.eval_environment_kwargs})
        except (ValueError, TypeError, ImportError) as error:
            reason = str(error).replace(f"{file}: ", "")
            raise StudyError(f"{self.study.path}: {run.name} cannot run. {reason}") from error

    def overview(self) -> str:
        """Return one line a chosen run: finished with its score, or not run."""
        lines = []
        for block in self.blocks:
            best = self.finished.best(block)
            if best is None:
                lines.append(f"{block.name}: waits for the block that its settings come from")
                continue
            for run in self._chosen(block, best):
                result = self.finished.of(run)
                known = "not run" if result is None else _scores(result)
                lines.append(f"{run.name:<60} {known}")
        return "\n".join(lines)

    def run(self) -> bool:
        """
        Train block after block, each after the folders that its runs start from; stop where the time is over.

        Returns:
            `bool`: whether every chosen run is finished.
        """
        end = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        self._check_folders()
        with left_by_signals():
            complete = all([self._run_block(block, end) for block in self.blocks])
        for name, reason in self.failed.items():
            print(f"failed: {name}: {reason}")
        return complete and not self.failed

    def _check_folders(self) -> None:
        for key, folder in (("results", self.study.results), ("work", self.study.work)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise StudyError(
                    f"The folder {folder} cannot be written ({error.strerror}), so no run could be kept. Make it "
                    f"writable, or name another as `{key}` in {self.study.path}."
                ) from error

    def _run_block(self, block: Block, end: float | None) -> bool:
        best = self.finished.best(block)
        if best is None:
            print(f"{block.name}: left out, the block that its settings come from is not finished", flush=True)
            return False
        try:
            check_claims(self.study, block, best)  # of a best cell that was not known when the study was checked
        except StudyError as error:
            self.failed[block.name] = str(error)
            print(f"{block.name}: left out, {error}", flush=True)
            return False
        wanted = self._chosen(block, best)
        waiting = [run for run in wanted if not self._take_over(run)]
        if waiting:
            print(f"{block.name}: {len(wanted) - len(waiting)} of {len(wanted)} runs are finished", flush=True)
        if waiting and not _is_over(end):
            waiting = self._startable(waiting)
        jobs: list[_Job] = []
        try:
            while jobs or (waiting and not _is_over(end)):
                while len(jobs) < self.workers and not _is_over(end) and (job := self._next(waiting, jobs)):
                    jobs.append(job)
                if waiting and not jobs and not _is_over(end):
                    print(f"{block.name}: {len(waiting)} runs are trained by another command now", flush=True)
                    break
                time.sleep(_POLL_S if jobs else 0)
                for job in list(jobs):
                    if self._has_ended(job, left=len(waiting) + len(jobs) - 1):
                        jobs.remove(job)
                        os.close(job.lock)
        finally:
            for job in jobs:
                end_process(job.process, _STOP_S)
                os.close(job.lock)
        return not waiting

    def _startable(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Prepare what runs start from; return the runs whose start is there and is that of finished ones."""
        for folder in sorted({_start_of(run) for run in runs} - set(self.failed)):
            try:
                prepare_start(self.study, folder, self.finished.planned())
            except (ValueError, OSError) as error:
                self.failed[folder] = str(error)
                print(f"{folder}: {error}", flush=True)
        return [run for run in runs if _start_of(run) not in self.failed]

    def _next(self, waiting: list[PlannedRun], jobs: list[_Job]) -> _Job | None:
        """Start the first waiting run that neither another command trains nor a job with equal settings."""
        running = {job.run.settings_hash for job in jobs}
        for run in list(waiting):
            lock = None
            try:
                if run.settings_hash in running or (lock := self._lock(run)) is None:
                    continue
                self.finished.reread()
                if not self._take_over(run):  # another command may have finished it, or one with its settings
                    job = self._start(run, lock)
                    waiting.remove(run)
                    return job
            except (OSError, ValueError) as error:
                self._fail(run, f"it cannot be started: {error}")
            waiting.remove(run)
            if lock is not None:
                os.close(lock)
        return None

    def _lock(self, run: PlannedRun) -> int | None:
        """Open the file that whoever trains these settings holds locked; None where another process does."""
        file = self.study.work / "locks" / run.settings_hash
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            return None
        return opened

    def _folder(self, run: PlannedRun) -> Path:
        """Where a run is trained: whoever holds the lock of its settings is alone there."""
        return self.study.work / f"{run.name}-{run.settings_hash}"

    def _start(self, run: PlannedRun, lock: int) -> _Job:
        folder = self._folder(run)
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
                preexec_fn=die_with_parent(),
            )
        return _Job(run, process, folder, log, lock)

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
        try:
            if job.process.returncode != 0:
                raise ValueError(f"{_last_line(job.log)} (exit {job.process.returncode}, {job.log})")
            self._check_trained(job)
            result = StudyResult.of_run(
                job.run, self.study.name, job.folder, wall_s=seconds, cpu_s=usage.ru_utime + usage.ru_stime
            )
            self.finished.keep(job.run, result)
        except (ValueError, TypeError, OSError) as error:
            self._fail(job.run, str(error))
            return True
        self._seconds.append(seconds)
        hours = fmean(self._seconds) * left / self.workers / 3600
        print(
            f"{job.run.name}: {_scores(result)} in {seconds / 60:.1f} min; {left} left in this block, about "
            f"{hours:.1f} h",
            flush=True,
        )
        return True

    def _check_trained(self, job: _Job) -> None:
        """Check that what a run's folder holds was trained with its settings."""
        found = (job.folder / TRAIN_CONFIG).read_text(encoding="utf-8")
        with _kept_environment(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself has warned
            asked = parse_run([str(job.folder.with_suffix(".yaml"))]).again()
        if found != asked:
            raise ValueError(
                f"{job.folder / TRAIN_CONFIG} is that of other settings, so what lies there is not this run. Train "
                "nothing else in that folder, and start the study again."
            )

    def _fail(self, run: PlannedRun, reason: str) -> None:
        self.failed[run.name] = reason
        print(f"{run.name}: failed: {reason}", flush=True)

    def _take_over(self, run: PlannedRun) -> bool:
        """Whether a run is finished, or another one with equal settings, whose result is then kept twice."""
        found = self.finished.equal_to(run)
        if found is not None and self.finished.of(run) is None:
            try:
                self.finished.keep(run, replace(found, study=self.study.name, block=run.block, cell=dict(run.cell)))
            except OSError as error:
                self._fail(run, f"its result, that of {found.name}, cannot be kept: {error}")
        return found is not None

    def _write_config(self, run: PlannedRun, file: Path, folder: Path) -> None:
        settings = {**run.settings, "output_dir": str(folder)}
        file.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def _chosen(self, block: Block, best: dict[str, Mapping[str, str]]) -> list[PlannedRun]:
        return [run for run in self.study.runs(block, best) if (self.only or "") in run.name]


def _names(block: Block) -> list[str]:
    return [run_name(block.name, cell, seed) for seed in block.seeds for cell in block.cells()]


def _start_of(run: PlannedRun) -> str:
    return str(run.settings.get("model"))


def _is_over(end: float | None) -> bool:
    return end is not None and time.monotonic() > end


@contextmanager
def _kept_environment() -> Iterator[None]:
    """Undo what a run's `env` sets: it is that run's alone, which sets it again in its own process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _scores(result: StudyResult) -> str:
    shown = ("-" if score is None else f"{score:.3f}" for score in (result.start, result.score))
    return " -> ".join(shown)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
