"""Code of others goes in; what it raises comes out as an error, so that an exit in it ends no run without a word."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from turnppo_hf.environments.time_limit import call_within
from turnppo_hf.trajectory import EnvironmentFailedError

# kinds of which the message is a sentence for users, as of a wrong argument
_SENTENCES = (ValueError, TypeError, OSError, ImportError, EnvironmentFailedError)
CLOSING_S = 60.0  # for an environment that nothing plays in any more

logger = logging.getLogger(__name__)


@contextmanager
def exits_as_errors(callee: str) -> Iterator[None]:
    """
    Raise a `RuntimeError` in place of what would leave the process quietly; exceptions and Ctrl-C pass as they are.

    Args:
        callee (`str`): Whose code runs in the context: the subject of the message.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RuntimeError(
            f"{callee} raised {describe_error(error)}, which would end the process with nothing saved. Raise an "
            "exception there, or return."
        ) from error


@contextmanager
def failures_as_errors(callee: str, passing: tuple[type[BaseException], ...] = _SENTENCES) -> Iterator[None]:
    """
    Raise an `EnvironmentFailedError` in place of an exit and of what is a mistake in an environment's code.

    Args:
        callee (`str`): Whose code runs in the context: the subject of the message.
        passing (`tuple[type, ...]`, *optional*): Exceptions that pass as they are, as Ctrl-C does.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, *passing)):
            raise
        cause = describe_error(error).partition("\n")[0]
        raise EnvironmentFailedError(
            f"{callee} failed, so it cannot be played. Mend its code (`turnppo --debug` shows where): {cause}"
        ) from error


def describe_error(error: BaseException) -> str:
    """Return the error's kind and text; one that cannot be encoded, or not even be made, is no error of its own."""
    try:
        text = str(error).encode(errors="backslashreplace").decode()
    except Exception as broken:
        text = f"its text cannot be made ({type(broken).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def close_environment(environment: Any) -> str | None:
    """Close an environment that nothing plays in any more; return what that raised as a text, None where nothing."""
    try:
        call_within(environment.close, CLOSING_S, "close() of an environment")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"close() raised {describe_error(error)}"
    return None


def close_unused(environment: Any) -> None:
    """Close an environment whose episode is over; what that raises is logged, since nothing depends on it."""
    if problem := close_environment(environment):
        logger.warning("An environment was not closed properly: its %s.", problem)
