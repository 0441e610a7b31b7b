"""Faults on request: what the test Hub does instead of, or before, answering."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass
class Fault:
    """
    One rule. It strikes requests whose `"METHOD /path?query"` matches `pattern` until it did so `times` times.

    `status` answers with that error, `delay` waits so many seconds and then goes on as usual, `drop` takes the request
    and closes the connection without a word, `cut_after` closes it after so many bytes of the body: of the request's
    where it has one (an upload that breaks off), of the response's otherwise (a download that does).
    """

    pattern: re.Pattern[str]
    method: str | None = None
    status: int | None = None
    delay: float = 0.0
    drop: bool = False
    cut_after: int | None = None
    times: int | None = 1
    retry_after: int = 0
    error_code: str | None = None
    message: str = "injected fault"

    def strikes(self, method: str, target: str) -> bool:
        if self.times == 0 or (self.method and self.method != method):
            return False
        return self.pattern.search(f"{method} {target}") is not None


class Faults:
    """The rules in the order they were added; the first that matches strikes."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []

    def next(self, method: str, target: str) -> Fault | None:
        for fault in self.rules:
            if fault.strikes(method, target):
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None
