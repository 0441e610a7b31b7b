"""Requests to a server in; those with a body above a limit are answered with 413 before the body is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MAX_REQUEST_BYTES = 1 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_ANSWER = b'{"detail": "The request is larger than this server reads (%d bytes). Send less."}'


class RequestLimit:
    """
    ASGI middleware that bounds the body of every HTTP request.

    Args:
        app (`Callable`): The application behind it.
        max_bytes (`int`, *optional*, defaults to `1048576`): Of a body, as its header names it and as it arrives.
    """

    def __init__(self, app: Any, max_bytes: int = MAX_REQUEST_BYTES) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        named = dict(scope["headers"]).get(b"content-length", b"0")
        if not named.isdigit() or int(named) > self.max_bytes:
            await self._refuse(send)
            return
        read, begun = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLargeError:
            if begun:
                raise
            await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        body = _ANSWER % self.max_bytes
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _TooLargeError(Exception):
    """A body that grew above the limit while it was read."""
