"""Calls in, futures out: threads that hold no process at its end, and whose number outlasts calls that hang."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from turnppo_hf.environments.time_limit import run_into

_Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class _Shared:
    """What the threads hold: not the pool itself, which is garbage as soon as nobody submits any more."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # reentrant: a collection of garbage may end the pool anywhere
        self.calls: deque[_Call] = deque()
        self.num_idle = 0
        self.is_over = False

    def end(self) -> None:
        """Let each thread end with the call that it is at."""
        with self.changed:
            self.is_over = True
            self.changed.notify_all()


class DaemonThreads:
    """
    Runs calls in threads; one is started where none is idle and there are fewer than the limit.

    `concurrent.futures` waits at the end of a process for each of its threads, so one environment that hangs would
    keep it from ending.

    Args:
        most (`int`): Threads at a time, those that were abandoned not counted.
        name (`str`): Of the threads.
    """

    def __init__(self, most: int, name: str) -> None:
        self.most, self.name = most, name
        self._number = 0
        self._shared = _Shared()
        weakref.finalize(self, self._shared.end).atexit = False

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call in one of the threads."""
        future: Future[Any] = Future()
        with self._shared.changed:
            self._shared.calls.append((future, call, args))
            thread = self._thread_where_needed()
        if thread is not None:
            thread.start()
        return future

    def abandon(self, step: Future[Any]) -> None:
        """Count the thread that runs a call no more until it returns: another one may take its place."""
        with self._shared.changed:
            self.most += 1
            thread = self._thread_where_needed()
        if thread is not None:
            thread.start()
        step.add_done_callback(self._count_again)

    def shutdown(self) -> None:
        """Cancel the calls that wait, and end each thread with the call that it is at."""
        with self._shared.changed:
            waiting = list(self._shared.calls)
            self._shared.calls.clear()
        for future, *_ in waiting:
            future.cancel()
        self._shared.end()

    def _count_again(self, _: Future[Any]) -> None:
        with self._shared.changed:
            self.most -= 1

    def _thread_where_needed(self) -> threading.Thread | None:
        """Wake an idle thread, or return a new one where a call would wait for none."""
        shared = self._shared
        if shared.num_idle >= len(shared.calls):
            shared.changed.notify()
            return None
        if self._number >= self.most:
            return None
        self._number += 1
        return threading.Thread(target=_serve, args=(shared,), name=f"{self.name}_{self._number}", daemon=True)


def _serve(shared: _Shared) -> None:
    while True:
        with shared.changed:
            while not shared.calls:
                if shared.is_over:
                    return
                shared.num_idle += 1
                shared.changed.wait()
                shared.num_idle -= 1
            future, call, args = shared.calls.popleft()
        run_into(future, call, *args)
        del future, call, args
