"""SIGINT and SIGTERM in: a run that ends after its step, or at once at the second of them, out."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

GRACE_S = 1.5  # in which a command that was told to end at once may clean up
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# where others handle a signal, or a shell has it ignored in a command in the background, that stays so
_REPLACED = (signal.SIG_DFL, signal.default_int_handler)


class Interrupted(KeyboardInterrupt):
    """
    A signal ended the run.

    Args:
        number (`int`): Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """
    What a run was told to do by signals.

    Attributes:
        number (`int`): The first signal while something was to be finished, 0 where there was none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._finishes = False

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Note a first signal in here; outside of it, one ends the run at once."""
        self.number, self._finishes = 0, True
        try:
            yield
        finally:
            self._finishes = False

    @property
    def ends_next(self) -> bool:
        """Whether the next signal ends the run at once."""
        return bool(self.number) or not self._finishes

    def handle(self, number: int, frame: Any) -> None:
        """Take a signal."""
        if self.ends_next:
            raise Interrupted(number)
        self.number = number
        name = signal.Signals(number).name
        with suppress(OSError):  # no print: what it interrupts may be one
            os.write(2, f"\n{name}: the step is finished and saved, then the run ends. Again: at once.\n".encode())


_active: Signals | None = None


@contextmanager
def interruptible(*, exits: bool = False) -> Iterator[Signals]:
    """
    Handle signals until it is left: within another such context, with that one's handlers; in other threads than the
    main one, which get no signals, with none.

    Args:
        exits (`bool`, *optional*, defaults to `False`):
            Whether a signal that ends the run at once ends the process after `GRACE_S`, whatever holds it. Not for a
            notebook.

    Raises:
        `KeyboardInterrupt`: SIGINT ended the run.
        `SystemExit`: with 143, SIGTERM did.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or Signals()
        return
    signals = _active = Signals()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    watch = _Watch(signals) if exits else None
    try:
        for number, handler in before.items():
            if handler in _REPLACED:
                signal.signal(number, signals.handle)
        yield signals
    except Interrupted as ended:
        if ended.number == signal.SIGTERM:
            raise SystemExit(128 + ended.number) from None
        raise
    finally:
        _active = None
        for number, handler in before.items():
            if handler in _REPLACED:
                signal.signal(number, handler)
        if watch is not None:
            watch.close()


class _Watch:
    """
    Ends the process where the main thread does not, as in a collective call that waits for a rank that is gone.

    Python runs handlers in the main thread alone, but writes a signal's number to a file at once.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._run, daemon=True, name="signals").start()

    def close(self) -> None:
        """Look no further; an end that has begun goes on."""
        signal.set_wakeup_fd(self._before)
        os.close(self._write)

    def _run(self) -> None:
        is_noted = False
        while numbers := os.read(self._read, 1):
            if numbers[0] in _SIGNALS and signal.getsignal(numbers[0]) == self.signals.handle:
                if is_noted or not self.signals._finishes:
                    time.sleep(GRACE_S)
                    os._exit(128 + numbers[0])
                is_noted = True
        os.close(self._read)
