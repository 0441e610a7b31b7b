"""What the Hub's client raised in; out: whether it passes, what it means and what to do, never with a token in it."""

from __future__ import annotations

import httpx2
from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from turnppo_hf.redaction import MASK, redact_text

MAX_WAIT_S = 300.0  # where the Hub itself names the time: its limits count in windows of five minutes
REQUEST_TIMEOUT_S = 300.0  # without an answer; the client itself would wait for ever
# what the client and its storage backend raise where the network or the Hub fails
HUB_ERRORS = (
    *(OSError, httpx2.HTTPError, httpx2.InvalidURL),
    *(HFValidationError, RevisionResolutionError, RuntimeError, ValueError),
)

_TRANSIENT = {408, 409, 412, 425, 429, 500, 502, 503, 504}
_SENTENCES = {  # status -> what it means, what to do
    400: ("the Hub refuses what was sent", "Fix it and try again."),
    401: ("the Hub does not accept the token", "Run `hf auth login`, or set HF_TOKEN to a valid one."),
    402: ("the Hub asks for a paid plan for this", "Choose another kind of repository or hardware."),
    403: (
        "the token may not write there",
        "Use a token with write permission, and a namespace that its user may write to.",
    ),
    404: ("the Hub has no such repository, or it is private", "Check the name and the token."),
    409: ("the repository is being changed by somebody else", "Try again."),
    412: ("the repository was changed in between", "Try again."),
    413: ("the Hub refuses a file as too large", "Remove it from the folder, or save in smaller shards."),
    429: ("the Hub asks for a pause: too many requests", "Try again in some minutes."),
}


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    if isinstance(error, OfflineModeIsEnabled | httpx2.LocalProtocolError | httpx2.UnsupportedProtocol):
        return False
    if (wrapped := _wrapped(error)) is not None:
        return is_transient(wrapped)
    if isinstance(error, LocalEntryNotFoundError | RevisionResolutionError):
        return False
    # hf_xet, which moves large files, has no class of its own for a broken connection
    return isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError) or type(error) is RuntimeError


def explain(error: Exception) -> str:
    """Return in a sentence or two what the Hub's answer means and what to do; never with a token in it."""
    cause, remedy = cause_and_remedy(error)
    return f"{cause} {remedy}".strip()


def asked_wait(error: Exception) -> float:
    """Seconds that the Hub asks to wait before the next request; 0 where it names none."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    limits = parse_ratelimit_headers(error.response.headers)
    asked = error.response.headers.get("Retry-After", "")
    seconds = float(asked) if asked.isdigit() else 0.0
    if error.response.status_code == 429 and limits is not None and limits.remaining == 0:
        seconds = max(seconds, float(limits.reset_in_seconds))
    return min(seconds, MAX_WAIT_S)


def redact(text: str, *tokens: str | None) -> str:
    """Mask everything in a text that is a secret, by its form or because it is in use."""
    for token in (*tokens, get_token()):
        if isinstance(token, str) and len(token.strip()) >= 8:
            text = text.replace(token.strip(), MASK)
    return redact_text(text)


def cause_and_remedy(error: Exception) -> tuple[str, str]:
    """What an error means, and what to do about it, each a sentence; the second is empty where none is known."""
    if (wrapped := _wrapped(error)) is not None:
        cause, remedy = cause_and_remedy(wrapped)
        about = f"{_one_line(str(error)).rstrip('.')}: " if type(error) is RuntimeError else ""
        return about + cause, remedy
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so no request was made.", "Unset it to reach the Hub."
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token.", "Run `hf auth login`, or set HF_TOKEN to a token with write permission."
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision.", "Name a branch, a tag or a commit of it."
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error)
    detail = _one_line(str(error)) or type(error).__name__
    if isinstance(error, HFValidationError):
        return detail, "Name it as `name` or `namespace/name`."
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return f"no answer within {REQUEST_TIMEOUT_S:g} s.", "Check the connection and try again."
    if isinstance(error, httpx2.LocalProtocolError):
        return f"the request cannot be sent ({detail}).", "Check the token for spaces and line breaks."
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return f"the Hub's address is none ({detail}).", "Set HF_ENDPOINT to one with https://, or unset it."
    if isinstance(error, httpx2.TransportError | ConnectionError):
        return f"the connection failed ({detail}).", "Check the network and HF_ENDPOINT, and try again."
    return detail, ""


def _wrapped(error: Exception) -> Exception | None:
    """Return the error behind one of the client's that only names the request."""
    wraps = isinstance(error, LocalEntryNotFoundError | RevisionResolutionError) or type(error) is RuntimeError
    return error.__cause__ if wraps and isinstance(error.__cause__, Exception) else None


def _explain_status(error: HfHubHTTPError) -> tuple[str, str]:
    status, message = error.response.status_code, _one_line(error.server_message or "")
    answer = f"{status}: {message}" if message else str(status)
    cause, remedy = _SENTENCES.get(status, ("the Hub refuses", "Check what was asked for."))
    if isinstance(error, GatedRepoError):
        cause, remedy = "its owner gives access to it on request", "Ask for it on its page on the Hub."
    elif isinstance(error, RepositoryNotFoundError) and status == 401:
        cause, remedy = "the Hub shows no such repository to strangers", "Check the name, and run `hf auth login`."
    elif status >= 500:
        cause, remedy = "the Hub fails", "See https://status.huggingface.co and try again later."
    return f"{cause} ({answer}).", remedy


def _one_line(text: str) -> str:
    """The first line of a message that may be a page, short enough for a sentence."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return redact(line if len(line) <= 200 else line[:199] + "…")
