"""Calls of others' code in, with a limit on their time; their results out, or an error once the limit has passed."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from typing import Any, TypeVar

PATIENCE_S = 60.0  # after which a line names what is waited for
_AGAIN_S = 1.0  # code that catches everything is interrupted again
# what no library uses as a clock; a system without real-time signals has the alarm's
_SIGNAL = getattr(signal, "SIGRTMAX", None) or signal.SIGALRM

_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


class TimedOutError(RuntimeError):
    """Code of others did not return within its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"timed out: no answer within {seconds:g} s (`environment_timeout_s`), so what it waits for may never "
            "come. Raise the limit, or look at what hangs."
        )


class TimeIsUp(KeyboardInterrupt):
    """Raised inside of what took too long; it passes wherever Ctrl-C does."""


def report_slow(what: str) -> None:
    """Log that something is waited for."""
    logger.warning("%s has not answered for %g s.", what, PATIENCE_S)


def call_within(call: Callable[[], _Result], seconds: float, what: str) -> _Result:
    """
    Call code of others in this thread where it is the main one, since only there Python lets it handle signals.

    There it is interrupted, as by Ctrl-C. From any other thread it is called in one of its own, which is abandoned.

    Args:
        call (`Callable`): What to call.
        seconds (`float`): Limit; infinity is none.
        what (`str`): Its name in the line that is logged after `PATIENCE_S`.

    Raises:
        [`TimedOutError`]: it took longer.
    """
    if math.isinf(seconds):
        return call()
    if threading.current_thread() is threading.main_thread():
        return _call_interrupted(call, seconds, what)
    return _call_abandoned(call, seconds, what)


class _Watch:
    """Interrupts the main thread in a call that takes too long, again and again until it ends."""

    current: _Watch | None = None  # of the innermost call

    def __init__(self, seconds: float, what: str) -> None:
        self.seconds, self.what = seconds, what
        self.is_late = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="time-limit")

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    def end(self) -> None:
        """Interrupt nothing from here on."""
        self._ended.set()

    def ring(self) -> None:
        """End the call, in its thread."""
        if self.is_late and not self._ended.is_set():
            raise TimeIsUp

    def _run(self) -> None:
        left = self.seconds
        if left > PATIENCE_S:
            if self._ended.wait(PATIENCE_S):
                return
            report_slow(self.what)
            left -= PATIENCE_S
        while not self._ended.wait(left):
            self.is_late, left = True, _AGAIN_S
            signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)


def _ring(number: int, frame: Any) -> None:
    if _Watch.current is not None:
        _Watch.current.ring()


def _call_interrupted(call: Callable[[], _Result], seconds: float, what: str) -> _Result:
    if signal.getsignal(_SIGNAL) is not _ring:
        signal.signal(_SIGNAL, _ring)  # for good: the signal of a call that has just ended may be on its way
    outer, watch = _Watch.current, _Watch(seconds, what)
    try:
        try:
            _Watch.current = watch
            watch.start()
            return call()
        finally:
            watch.end()
    except TimeIsUp:
        if not watch.is_late:
            raise  # of a call around this one
        raise TimedOutError(seconds) from None
    finally:
        watch.end()  # once more: time may have been up in the line above
        _Watch.current = outer


def _call_abandoned(call: Callable[[], _Result], seconds: float, what: str) -> _Result:
    future: Future[_Result] = Future()
    threading.Thread(target=run_into, args=(future, call), daemon=True, name="time-limit").start()
    waits = [seconds] if seconds <= PATIENCE_S else [PATIENCE_S, seconds - PATIENCE_S]
    for number, wait in enumerate(waits, start=1):
        try:
            return future.result(wait)
        except NotDone:
            if future.done():
                raise  # the call's own
            if number < len(waits):
                report_slow(what)
    raise TimedOutError(seconds)


def run_into(future: Future[Any], call: Callable[..., Any], *args: Any) -> None:
    """Call, unless the future was cancelled, and put what is returned or raised into it."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call(*args)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
