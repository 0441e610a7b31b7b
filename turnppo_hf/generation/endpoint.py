"""A conversation in, the next answer of a model behind an OpenAI-compatible address out: texts, no tokens."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from turnppo_hf.environments.messages import Message
from turnppo_hf.environments.time_limit import TimedOutError, call_within
from turnppo_hf.redaction import redact_text, remember_secrets
from turnppo_hf.trajectory import GenerationError

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_ANSWER_LENGTH = 1 << 20  # characters; what is longer is cut
MAX_WAIT_S = 30.0  # before a request is sent again
MAX_LOST = 8  # episodes that fail before any request was answered

_REFUSED = {401: "does not accept the key", 403: "does not allow the request", 404: "has no such address or model"}
_PASSES = (408, 409, 425, 429, *range(500, 600))  # statuses of faults that pass


class EndpointError(RuntimeError):
    """A request got no usable answer, after all of its attempts."""


class ContextFullError(RuntimeError):
    """The conversation is longer than the model reads."""


@dataclass(frozen=True)
class Answer:
    """What the model wrote. `Answer("Up Up", "stop")`."""

    text: str  # empty where it wrote nothing
    finish_reason: str  # "stop" or "length"


@dataclass
class Counts:
    """What an endpoint was asked, and what came of it."""

    requests: int = 0  # sent, repeated ones included
    repeated: int = 0  # sent again after a fault
    failed: int = 0  # of them, those that got no usable answer: faults, time limits, bodies that are none
    empty: int = 0  # answers without text
    completion_tokens: int = 0  # as the endpoint counts them


class ChatEndpoint:
    """
    A model behind an OpenAI-compatible address, such as a vLLM, llama.cpp or `transformers serve` server.

    A request that fails for a reason that passes (a broken connection, no answer in time, 429, 5xx, a body that is no
    completion) is sent again. Threads may share it.

    Args:
        url (`str`): The address before `/chat/completions`, such as `"http://127.0.0.1:8000/v1"`.
        model (`str`): The model's name there.
        max_tokens (`int`): Of one answer.
        temperature (`float`, *optional*, defaults to 0): 0 is greedy.
        timeout_s (`float`, *optional*, defaults to 60): Of one request, from its beginning to the end of its answer.
        retries (`int`, *optional*, defaults to 3): Times that a request is sent again.
        max_requests (`int`, *optional*): Requests altogether, repeated ones included; none is sent after it.
        sleep (`Callable`, *optional*): Waits, in seconds.

    Raises:
        `ImportError`: the client is not installed.
        `ValueError`: an address that is none, or a limit that allows nothing.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        timeout_s: float = 60.0,
        retries: int = 3,
        max_requests: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        _check(url, model, temperature, timeout_s, retries, max_requests)
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                f"The client of OpenAI-compatible servers cannot be imported ({error}), so no endpoint can be asked. "
                'Install it: pip install "turnppo-hf[openai]".'
            ) from error
        self.url, self.model = url, model
        self.timeout_s, self.retries, self.max_requests = timeout_s, retries, max_requests
        self.counts = Counts()
        self._settings: dict[str, Any] = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        key = os.environ.get(KEY_VARIABLE) or "none"
        remember_secrets({"api_key": key})
        self._openai = openai
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=timeout_s)
        self._sleep = sleep
        self._lock = threading.Lock()
        self._answered = self._lost = 0

    def answer(self, messages: Sequence[Message], *, seed: int | None = None) -> Answer:
        """
        Ask for the next answer of a conversation.

        Args:
            messages (`Sequence[dict]`): The conversation, the user's message last.
            seed (`int`, *optional*): Of the sampling, for a temperature above 0; not every server uses it.

        Raises:
            [`EndpointError`]: no usable answer, or no request is left.
            [`ContextFullError`]: the conversation is longer than the model reads.
            [`~turnppo_hf.trajectory.GenerationError`]: no request will ever be answered.
        """
        problem, attempt = "", 0
        while attempt <= self.retries:
            self._spend(repeated=attempt > 0)
            pause, settings = min(0.5 * 2**attempt, MAX_WAIT_S), dict(self._settings)
            try:
                ask = partial(self._ask, messages, seed, settings)
                # the client's own limit is one of each read: an endpoint that sends a byte at a time outlasts it
                return self._read(call_within(ask, self.timeout_s, f"The endpoint {self.url}"))
            except (TimedOutError, self._openai.APITimeoutError):
                problem = f"no answer within {self.timeout_s:g} s"
            except self._openai.APIStatusError as error:
                problem = f"status {error.status_code}: {_reason(error)}"
                if error.status_code == 400 and self._adapts_to(error, settings):
                    continue
                if error.status_code not in _PASSES:
                    self._count("failed")
                    raise self._refusal(error, problem) from None
                pause = max(pause, _asked_wait(error.response.headers))
            except (self._openai.OpenAIError, ValueError, TypeError, AttributeError, OSError) as error:
                problem = f"{type(error).__name__}: {_reason(error)}"
            self._count("failed")
            attempt += 1
            if attempt <= self.retries:
                self._sleep(pause)
        self._lose(problem)
        raise EndpointError(f"The endpoint gave no answer in {self.retries + 1} attempts; the last: {problem}")

    def summary(self) -> dict[str, int]:
        """Return what was asked so far, and what came of it."""
        with self._lock:
            return asdict(self.counts)

    def _ask(self, messages: Sequence[Message], seed: int | None, settings: Mapping[str, Any]) -> Any:
        sampled = {"seed": seed} if settings["temperature"] > 0 and seed is not None else {}
        return self._client.chat.completions.create(messages=list(messages), **settings, **sampled)

    def _read(self, reply: Any) -> Answer:
        """Read a completion, of which any field may be anything."""
        choices = getattr(reply, "choices", None)
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"the body is no completion: {str(reply)[:200]!r}")
        choice = choices[0]
        content = getattr(getattr(choice, "message", None), "content", None)
        if isinstance(content, list):
            parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
            content = "".join(part for part in parts if isinstance(part, str))
        if content is not None and not isinstance(content, str):
            raise ValueError(f"the content is {type(content).__name__}, no text")
        text = (content or "")[:MAX_ANSWER_LENGTH].encode(errors="replace").decode()
        used = getattr(getattr(reply, "usage", None), "completion_tokens", None)
        with self._lock:
            self._answered += 1
            self.counts.empty += not text.strip()
            self.counts.completion_tokens += used if isinstance(used, int) and used > 0 else 0
        return Answer(text, "length" if getattr(choice, "finish_reason", None) == "length" else "stop")

    def _adapts_to(self, error: Any, settings: Mapping[str, Any]) -> bool:
        """Whether the fault is that the server calls the limit of tokens by its other name, which is used from now."""
        if "max_tokens" not in settings or "max_completion_tokens" not in str(error):
            return False
        with self._lock:
            if "max_tokens" in self._settings:
                self._settings["max_completion_tokens"] = self._settings.pop("max_tokens")
        return True

    def _refusal(self, error: Any, problem: str) -> Exception:
        text = str(error).lower()
        if (
            error.status_code in (400, 413, 422)
            and "context" in text
            and any(word in text for word in ("length", "window", "exceed", "maximum"))
        ):
            return ContextFullError(problem)
        if error.status_code in _REFUSED and not self._answered:
            return GenerationError(
                f"The endpoint {redact_text(self.url)} {_REFUSED[error.status_code]} ({problem}), so no episode can "
                f"be played. Check the address, the name {self.model!r} and {KEY_VARIABLE}."
            )
        return EndpointError(f"The endpoint refused the request: {problem}")

    def _spend(self, *, repeated: bool) -> None:
        with self._lock:
            if self.max_requests is not None and self.counts.requests >= self.max_requests:
                raise EndpointError(f"no request is left of --max_requests {self.max_requests}")
            self.counts.requests += 1
            self.counts.repeated += repeated

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self.counts, name, getattr(self.counts, name) + 1)

    def _lose(self, problem: str) -> None:
        with self._lock:
            self._lost += 1
            is_dead = not self._answered and self._lost >= MAX_LOST
        if is_dead:
            raise GenerationError(
                f"The endpoint {redact_text(self.url)} has answered none of {self.counts.requests} requests; last: "
                f"{problem}. No episode can be played. Check the address, and that the server runs."
            )


def _check(url: str, model: str, temperature: float, timeout_s: float, retries: int, max_requests: int | None) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError(
            f"The endpoint {redact_text(url)!r} is no address: it begins with neither http:// nor https://. No "
            "request can be sent. Name it like http://127.0.0.1:8000/v1."
        )
    if not model.strip():
        raise ValueError(
            "The endpoint's model has no name. A server may hold several. Name one with --model, as GET /models lists "
            "them."
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"`temperature` must be 0 (greedy) or positive and finite, got {temperature}: nothing could be drawn. "
            "Leave it out to be greedy."
        )
    for name, value, low in (("request_timeout", timeout_s, 0.01), ("retries", retries, 0)):
        if not low <= value < 1e6:
            raise ValueError(f"--{name} must be from {low} on, got {value}: no answer could come. Leave it out.")
    if max_requests is not None and max_requests < 1:
        raise ValueError(
            f"--max_requests must be at least 1, got {max_requests}: no request would be sent. Leave it out."
        )


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redact_text(lines[0])[:200]


def _asked_wait(headers: Mapping[str, str]) -> float:
    try:
        return min(max(float(headers.get("retry-after", 0)), 0.0), MAX_WAIT_S)
    except ValueError:  # a date
        return 0.0
