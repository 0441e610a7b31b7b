"""Pushes to the Hub that run beside the training, in order, and never stop it."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from huggingface_hub import CommitInfo

from turnppo_hf.hub.client import logger
from turnppo_hf.hub.exceptions import PushError
from turnppo_hf.hub.http_errors import explain, redact
from turnppo_hf.hub.late_threads import STARTS_NONE_AT_EXIT, LateThreads

_TENSORS = (".safetensors", ".pt", ".bin", ".pth")


class BackgroundPushes:
    """
    Pushes beside the training, one after the other. A failure is a warning and stops nothing.

    `HfApi.run_as_future` runs them in order as well; it neither logs a failure when it occurs, nor counts failures,
    nor finishes uploads that are under way when the program ends.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._jobs: list[Future[CommitInfo]] = []
        # Uploads start threads, which `concurrent.futures` refuses as soon as the interpreter ends, while it waits for
        # the push itself. What is registered here runs before that.
        getattr(threading, "_register_atexit", lambda _: None)(self._finish_at_exit)
        self._late_threads: LateThreads | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a push is under way or waits."""
        return any(not job.done() for job in self._jobs)

    def submit(self, push: Callable[[], CommitInfo]) -> Future[CommitInfo]:
        """Queue a push."""
        if STARTS_NONE_AT_EXIT and self._late_threads is None:
            self._late_threads = LateThreads()
        self._jobs.append(self._worker.submit(self._run, push))
        return self._jobs[-1]

    def wait(self) -> tuple[int, list[PushError]]:
        """Wait for every push; return how many there were since the last time, and which errors ended some."""
        wait(self._jobs)
        jobs, self._jobs = self._jobs, []
        return len(jobs), [error for job in jobs if isinstance(error := job.exception(), PushError)]

    def _run(self, push: Callable[[], CommitInfo]) -> CommitInfo:
        try:
            return push()
        except Exception as error:
            known = isinstance(error, PushError)
            failure = (
                error if known else PushError(f"Nothing was pushed: {redact(explain(error))}", is_transient=False)
            )
            logger.warning("%s The files are on the disk, and the next push sends what is newest then.", failure)
            raise failure from (error.__cause__ if known else error)

    def _finish_at_exit(self) -> None:
        if self.is_busy:
            if self._late_threads is not None:
                self._late_threads.replace()
            logger.warning("The program ends when its last pushes are through. Press Ctrl-C to leave without them.")
            self.wait()


def stage(source: Path, target: Path) -> None:
    """Copy a folder that may be deleted meanwhile; tensors, which are never rewritten, are linked where possible."""
    shutil.rmtree(target, ignore_errors=True)
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in _TENSORS:
                with contextlib.suppress(OSError):
                    os.link(path.resolve(), copy)  # of a link in the Hub's cache, the file
            if not copy.exists():
                shutil.copy2(path, copy)
