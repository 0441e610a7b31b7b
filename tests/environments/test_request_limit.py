"""Bodies above the limit are answered with 413, whether their header names their size or not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from turnppo_hf.environments.integrations.request_limit import RequestLimit


def ask(chunks: list[bytes], length: str | None, max_bytes: int = 10) -> tuple[int, list[bytes]]:
    """Send a body in chunks; return the status of the answer and the chunks that the application read."""
    read: list[bytes] = []
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["more_body"]:
            read.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if length is None else [(b"content-length", length.encode())]
    asyncio.run(RequestLimit(app, max_bytes)({"type": "http", "headers": headers}, receive, send))
    return sent[0]["status"], read


def test_body_within_the_limit_reaches_the_application() -> None:
    assert ask([b"12345", b"67890"], "10") == (200, [b"12345", b"67890"])
    assert ask([], None) == (200, [])


@pytest.mark.parametrize("length", ["11", "200000000", "-5", "many"])
def test_body_whose_header_names_too_much_is_never_read(length: str) -> None:
    assert ask([b"x" * 11], length) == (413, [])


def test_body_that_grows_above_the_limit_is_read_no_further() -> None:
    assert ask([b"x" * 6] * 100, None) == (413, [b"x" * 6])
    assert ask([b"x" * 6] * 100, "5") == (413, [b"x" * 6]), "a header may be false"
