"""What reading a released agent and pushing one raise; imports nothing, so that `turnppo --help` stays fast."""

from __future__ import annotations

from functools import partial
from typing import Any


class ReleaseError(ValueError):
    """A repository or folder that is no agent, or that would have to be trusted further than its weights."""


class PushError(RuntimeError):
    """
    A push that failed for good; what was to be pushed is still on the disk.

    Args:
        message (`str`): What failed, why, and what to do.
        is_transient (`bool`): Whether the same push may succeed later.
    """

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # else a copy, such as the one that another process is sent, would miss its second argument
        return partial(type(self), is_transient=self.is_transient), self.args
