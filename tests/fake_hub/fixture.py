"""The fixture `hub`: a test Hub for one test, with the clients of this process pointed at it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fake_hub import clients, community_routes, file_routes, repository_routes
from tests.fake_hub.faults import Fault
from tests.fake_hub.server import ROUTES, HubServer, LoggedRequest
from tests.fake_hub.store import Repository

assert ROUTES, (community_routes, file_routes, repository_routes)  # imported for the routes they register
MODES = ("lfs", "multipart", "xet")


@dataclass(frozen=True)
class CommitRecord:
    """`files` maps each path that the commit added or changed to its bytes, and each that it deleted to None."""

    oid: str
    title: str
    message: str
    author: str
    files: dict[str, bytes | None]


class Hub:
    """A running test Hub as tests see it. Accounts: `alice` (in organisation `guild`) and `bob`; see `tokens`."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode, self.home = mode, folder / "home"
        self.server = HubServer(mode, folder / "cas")
        self.store = self.server.store
        alice, reader = self.store.add_account("alice"), self.store.add_account("alice", role="read")
        self.tokens = {"alice": alice.token, "alice-read": reader.token, "bob": self.store.add_account("bob").token}
        self.store.organizations["guild"] = {"alice"}
        self.url, self.storage_url, self.token = self.server.url, self.server.storage_url, alice.token
        self.variables = clients.environment(self.url, self.token, self.home, xet=mode == "xet")
        self.waits: list[float] = []  # seconds that the clients would have waited before they tried again

    @property
    def environment(self) -> dict[str, str]:
        """For `subprocess.run(..., env=...)`: this process's variables, with the Hub's in their place."""
        return {**os.environ, **self.variables}

    @property
    def log(self) -> list[LoggedRequest]:
        return self.server.log

    @property
    def repos(self) -> dict[tuple[str, str], Repository]:
        """By (type, id), such as `("model", "alice/agent")`."""
        return self.store.repositories

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Path -> bytes at a revision; the Hub's own `.gitattributes` is left out."""
        repository = self.repos[repo_type, repo_id]
        tree = repository.resolve(revision).tree
        return {path: repository.read(file) for path, file in tree.items() if path != ".gitattributes"}

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[CommitRecord]:
        """Newest first; the last is the Hub's own "initial commit"."""
        repository = self.repos[repo_type, repo_id]
        records = []
        for commit in repository.resolve(revision).history():
            changes = commit.changes().items()
            files = {path: repository.read(file) if file else None for path, file in changes}
            records.append(CommitRecord(commit.oid, commit.title, commit.message, commit.author, files))
        return records

    def inject(
        self,
        pattern: str,
        *,
        status: int | None = None,
        delay: float = 0.0,
        drop: bool = False,
        cut_after: int | None = None,
        times: int | None = 1,
        method: str | None = None,
        retry_after: int = 0,
        error_code: str | None = None,
        message: str = "injected fault",
    ) -> Fault:
        """
        Disturb the next `times` requests (None: all) whose "METHOD path" a regular expression finds itself in.

        `retry_after` is told with status 429, `error_code` as `X-Error-Code`; the rest stands at `Fault`.
        """
        if not (status or delay or drop or cut_after is not None):
            raise ValueError("a fault needs one of `status`, `delay`, `drop` and `cut_after`")
        expression = re.compile(pattern)
        fault = Fault(expression, method, status, delay, drop, cut_after, times, retry_after, error_code, message)
        self.server.faults.rules.append(fault)
        return fault

    def heal(self) -> None:
        """Forget all faults."""
        self.server.faults.rules.clear()

    def requests(self, pattern: str = "") -> list[LoggedRequest]:
        """The logged requests whose "METHOD path" a regular expression finds itself in."""
        return [request for request in self.log if re.search(pattern, f"{request.method} {request.path}")]

    def saw_token(self, token: str) -> list[str]:
        """The places where a token stands in what was stored: files of any commit, messages, Space variables."""
        places = []
        for (kind, repo_id), repository in self.repos.items():
            for commit in repository.all_commits().values():
                if token in commit.title + commit.message:
                    places.append(f"{kind} {repo_id}: message of {commit.oid[:7]}")
                changed = {path: repository.read(file) for path, file in commit.tree.items()}
                found = [path for path, content in changed.items() if token.encode() in content]
                places += [f"{kind} {repo_id}: {path} at {commit.oid[:7]}" for path in found]
            if token in str(repository.space.get("variables", {})):
                places.append(f"{kind} {repo_id}: a variable")
            if token in str([(talk.title, talk.events) for talk in repository.discussions]):
                places.append(f"{kind} {repo_id}: a discussion")
        return places + [f"collection {slug}" for slug, item in self.store.collections.items() if token in str(item)]

    def sent_to_storage(self, token: str) -> list[LoggedRequest]:
        """Requests that carried a token to the storage provider, which is another host. There should be none."""
        host = self.storage_url.removeprefix("http://")
        return [request for request in self.log if request.host == host and token in str(request.headers)]


@pytest.fixture
def hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """
    A Hub on loopback that huggingface_hub, transformers and datasets take for the real one, as user `alice`.

    `@pytest.mark.parametrize("hub", ["lfs", "multipart", "xet"], indirect=True)` chooses how large files travel; the
    first is the default. All that is patched is put back after the test.
    """
    mode = getattr(request, "param", "lfs")
    if mode not in MODES:
        raise ValueError(f"the mode of a test Hub is one of {', '.join(MODES)}, got {mode!r}")
    if mode == "xet" and (reason := clients.xet_refusal()):
        pytest.skip(reason)
    (tmp_path / "hub" / "cas").mkdir(parents=True)
    started = Hub(mode, tmp_path / "hub")
    clients.redirect(monkeypatch, started.variables, started.waits)
    clients.forget_connections()
    started.server.start()
    yield started
    clients.forget_connections()
    started.server.stop()
