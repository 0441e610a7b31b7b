"""A command that starts processes goes in; one that leaves none of them behind, however it is ended, comes out."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_DEATH_SIGNAL = 1  # of Linux' prctl: the signal that a process gets when its parent is gone


@contextmanager
def left_by_signals() -> Iterator[None]:
    """Turn SIGTERM into an exit that passes through `finally`, as Ctrl-C does, in the thread that gets signals."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_process(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """
    End a process, which may have ended by itself.

    Args:
        process (`subprocess.Popen`): It.
        grace_s (`float`): Seconds that it has after SIGTERM, before it is killed.
    """
    process.terminate()
    try:
        process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def die_with_parent() -> Callable[[], None] | None:
    """Return the `preexec_fn` of a process that Linux ends with its parent, however that ends; None elsewhere."""

    def ask() -> None:
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)

    return ask if sys.platform == "linux" else None
