"""Calls in, futures out: threads that hold no process at its end, and whose number outlasts calls that hang."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from turnppo_hf.environments.time_limit import run_into

_Work = SimpleQueue["tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None"]


class DaemonThreads:
    """
    Runs calls in threads, one for each as long as there are fewer than the limit.

    `concurrent.futures` waits at the end of a process for each of its threads, so one environment that hangs would
    keep it from ending.

    Args:
        most (`int`): Threads at a time, those that were abandoned not counted.
        name (`str`): Of the threads.
    """

    def __init__(self, most: int, name: str) -> None:
        self.most, self.name = most, name
        self._work: _Work = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._number = 0
        weakref.finalize(self, self._work.put, None).atexit = False

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call in one of the threads."""
        future: Future[Any] = Future()
        self._work.put((future, call, args))
        self._start_where_needed()
        return future

    def abandon(self, step: Future[Any]) -> None:
        """Count the thread that runs a call no more until it returns: another one may take its place."""
        with self._lock:
            self.most += 1
        step.add_done_callback(self._count_again)
        if not self._work.empty():
            self._start_where_needed()

    def shutdown(self) -> None:
        """Cancel the calls that wait, and end each thread with the call that it is at."""
        while True:
            try:
                item = self._work.get_nowait()
            except Empty:
                break
            if item is not None:
                item[0].cancel()
        self._work.put(None)

    def _count_again(self, _: Future[Any]) -> None:
        with self._lock:
            self.most -= 1

    def _start_where_needed(self) -> None:
        if self._idle.acquire(blocking=False):
            return
        with self._lock:
            if self._number >= self.most:
                return
            self._number += 1
            number = self._number
        # without a reference to this object: it is garbage as soon as nobody submits any more
        threading.Thread(
            target=_serve, args=(self._work, self._idle), name=f"{self.name}_{number}", daemon=True
        ).start()


def _serve(work: _Work, idle: threading.Semaphore) -> None:
    while True:
        try:
            item = work.get_nowait()
        except Empty:
            idle.release()
            item = work.get()
        if item is None:
            work.put(None)  # for the next thread
            return
        run_into(item[0], item[1], *item[2])
        del item
