"""Threads for the end of a program on CPython 3.12.0 and 3.12.1, which start none from there on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

# https://github.com/python/cpython/issues/113964, not in 3.12.2; to be removed with Python 3.12
STARTS_NONE_AT_EXIT = sys.version_info[:3] in ((3, 12, 0), (3, 12, 1))
_STARTER = "_start_new_thread"
_SPARE = 64  # an upload takes about ten; an idle one costs some kilobytes


class LateThreads:
    """
    Threads that are started in time and wait; each is used once, for what is to run in a thread later.

    Uploads start threads in several places of huggingface_hub, all of which end in one function of `threading`.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._left = _SPARE
        for _ in range(_SPARE):
            # bare ones, in which a `threading.Thread` begins and ends as in one that was made for it
            vars(threading)[_STARTER](lambda: self._work.get()(), ())

    def start(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> int:
        """
        Run a function in a waiting thread; in place of `_thread.start_new_thread`.

        Raises:
            `RuntimeError`: every one was used, as where the system gives no further thread.
        """
        if not self._left:
            raise RuntimeError(f"can't start new thread: the {_SPARE} that were kept for the end are used up")
        self._left -= 1
        self._work.put(partial(function, *arguments))
        return 0

    def replace(self) -> None:
        """Let every thread that is to be started from now on be one of these."""
        vars(threading)[_STARTER] = self.start
