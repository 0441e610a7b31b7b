"""HTTP: requests in, routes found, faults applied, everything logged, answers out. What the routes do is elsewhere."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fake_hub.faults import Fault, Faults
from tests.fake_hub.store import Account, HubError, Store

API_HOST, STORAGE_HOST = "127.0.0.1", "localhost"  # one server under two names: the second plays the storage provider
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass(frozen=True)
class LoggedRequest:
    """
    `path` is as sent, with its query; `headers` have names in lower case; `status` is None where the connection was
    closed without an answer.
    """

    method: str
    path: str
    host: str
    user: str | None
    status: int | None
    headers: dict[str, str]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    account: Account | None

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error

    def form(self) -> dict[str, list[str]]:
        """Fields of an HTML form, or of the same in JSON."""
        if "json" not in self.headers.get("content-type", ""):
            return parse_qs(self.body.decode())
        fields = {name: value if isinstance(value, list) else [value] for name, value in self.json().items()}
        return {name: [str(value) for value in values] for name, values in fields.items()}

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


@dataclass(frozen=True)
class Answer:
    body: Any = b""  # bytes, or whatever JSON can say
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def payload(self) -> tuple[bytes, dict[str, str]]:
        if isinstance(self.body, bytes):
            return self.body, {"Content-Type": "application/octet-stream"}
        return json.dumps(self.body).encode(), {"Content-Type": "application/json"}


Action = Callable[..., Any]
ROUTES: list[tuple[str, bool, list[re.Pattern[str]], Action]] = []


def route(methods: str, *patterns: str, storage: bool = False) -> Callable[[Action], Action]:
    """
    Serve `methods` (words) of the paths that a pattern matches by the decorated function.

    `{x}` in a pattern takes one segment of the path, a last `{path}` all the rest; `{kind}` takes `models`,
    `datasets` or `spaces` and arrives as the singular. With `storage`, the route is the storage provider's.
    """

    def register(action: Action) -> Action:
        for pattern in patterns:
            ROUTES.extend((method, storage, compile_pattern(pattern), action) for method in methods.split())
        return action

    return register


def compile_pattern(pattern: str) -> list[re.Pattern[str]]:
    """One regular expression for each segment; `{x:...}` may say what `x` looks like."""
    segments = []
    for part in pattern.replace("{kind}", "{kind:models|datasets|spaces}").split("/"):
        pieces = re.split(r"\{(\w+)(?::([^}]*))?\}", part)  # text, name, expression, text, ...
        for position in range(1, len(pieces), 3):
            pieces[position : position + 2] = ["(?P<", f"{pieces[position]}>{pieces[position + 1] or '.+'})"]
        pieces[::3] = [re.escape(text) for text in pieces[::3]]
        segments.append(re.compile("".join(pieces), re.DOTALL))
    return segments


def match(pattern: list[re.Pattern[str]], segments: list[str]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    if "path" in pattern[-1].groupindex and len(segments) > len(pattern):
        segments = [*segments[: len(pattern) - 1], "/".join(segments[len(pattern) - 1 :])]
    if len(pattern) != len(segments):
        return None
    for part, segment in zip(pattern, segments, strict=True):
        fit = part.fullmatch(segment)
        if fit is None:
            return None
        found |= fit.groupdict()
    if "kind" in found:
        found["kind"] = KINDS[found["kind"]]
    return found


class HubServer(ThreadingHTTPServer):
    """The Hub as an object: its store, its faults and its log, served on loopback from a thread."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, mode: str, folder: Path) -> None:
        super().__init__((API_HOST, 0), Handler)
        self.mode, self.folder = mode, folder
        self.part_size = 50_000 if mode == "multipart" else None  # bytes of one part of a large file
        self.page_size = 1000  # entries of a tree in one answer
        self.store, self.faults = Store(), Faults()
        self.log: list[LoggedRequest] = []
        self.parts: dict[str, dict[int, bytes]] = {}  # sha256 -> part number -> bytes
        self.lock, self.stopping = threading.RLock(), threading.Event()
        self.url = f"http://{API_HOST}:{self.server_port}"
        self.storage_url = f"http://{STORAGE_HOST}:{self.server_port}"

    def start(self) -> None:
        threading.Thread(target=partial(self.serve_forever, poll_interval=0.02), daemon=True).start()

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def server_close(self) -> None:
        socket.socket.close(self.socket)  # not waiting for the threads of clients that keep their connection

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def respond(self, request: Request, raw_path: str, is_storage: bool) -> Answer:
        segments = [unquote(part) for part in raw_path.strip("/").split("/")]
        for method, storage, pattern, action in ROUTES:
            if storage == is_storage and method == request.method:
                found = match(pattern, segments)
                if found is not None:
                    with self.lock:
                        answer = action(self, request, **found)
                    return answer if isinstance(answer, Answer) else Answer(answer)
        code = "RepoNotFound" if "resolve" in segments or (len(segments) > 1 and segments[1] in KINDS) else None
        raise HubError(404, f"The test Hub has nothing at {request.method} {request.path}", code)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def do_GET(self) -> None:
        fault = self.server.faults.next(self.command, self.path)
        is_storage = self.headers.get("Host", "").startswith(STORAGE_HOST)
        if fault and (fault.drop or (fault.cut_after is not None and self.has_body)):
            for _ in self.body_pieces(None if fault.drop else fault.cut_after):
                pass
            self.note(None, None)  # first, so that a client which sees the end finds it in the log
            self.close_abruptly(reset=not fault.drop)
            return
        body = b"".join(self.body_pieces())
        account, answer = None, None
        try:
            account = self.account(is_storage)
            if fault:
                self.suffer(fault)
            split = urlsplit(self.path)
            query = parse_qs(split.query, keep_blank_values=True)
            request = Request(self.command, self.path, query, self.lower_headers(), body, account)
            answer = self.server.respond(request, split.path, is_storage)
        except HubError as error:
            headers = {"X-Error-Message": error.message, **error.headers}
            if error.code:
                headers["X-Error-Code"] = error.code
            answer = Answer({"error": error.message, **error.body}, error.status, headers)
        self.note(account, answer.status)
        self.send(answer, fault.cut_after if fault else None)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def account(self, is_storage: bool) -> Account | None:
        """Who asks. The storage provider works with signed addresses and refuses a token, as the real one does."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if is_storage and scheme:
            raise HubError(400, "Only one auth mechanism allowed")
        if not scheme:
            return None
        account = self.server.store.accounts.get(token)
        if account is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return account

    def suffer(self, fault: Fault) -> None:
        self.server.stopping.wait(fault.delay)
        if fault.status is not None:
            waits = {"Retry-After": str(fault.retry_after)} if fault.status == 429 else {}
            raise HubError(fault.status, fault.message, fault.error_code, waits)

    @property
    def has_body(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "") or int(self.headers.get("Content-Length", 0)) > 0

    def body_pieces(self, limit: int | None = None) -> Iterator[bytes]:
        """The request's body; up to `limit` bytes of it."""
        left = int(self.headers.get("Content-Length", 0))
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            yield self.rfile.read(left if limit is None else min(left, limit))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size if limit is None else min(size, limit))
            if limit is not None and (limit := limit - size) <= 0:
                return
            self.rfile.readline()
        self.rfile.readline()

    def send(self, answer: Answer, cut_after: int | None) -> None:
        payload, headers = answer.payload()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(payload)), **headers, **answer.headers}.items():
            self.send_header(name, re.sub(r"[^\x20-\x7e]+", " ", value))
        if self.command == "HEAD" or answer.status == 304:
            payload = b""
        self._headers_buffer.append(b"\r\n" + payload[:cut_after])  # one packet
        self.flush_headers()
        if cut_after is not None:
            self.close_abruptly(reset=False)

    def close_abruptly(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def lower_headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def note(self, account: Account | None, status: int | None) -> None:
        user = account.user if account else None
        host = self.headers.get("Host", "")
        self.server.log.append(LoggedRequest(self.command, self.path, host, user, status, self.lower_headers()))

    def log_message(self, *arguments: Any) -> None:
        """The log is a list, not a stream."""
