"""What the test Hub remembers: accounts, repositories with commits and refs, Spaces, collections. No HTTP here."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

REPO_TYPES = ("model", "dataset", "space")
LFS_PATTERNS = ("*.bin", "*.gz", "*.h5", "*.mp4", "*.npz", "*.parquet", "*.pkl", "*.pt", "*.safetensors", "*.zip")
LFS_THRESHOLD = 10 * 1024 * 1024  # files of this size are stored outside of git whatever their name says


class HubError(Exception):
    """An answer with a status of 400 or more; `code` becomes the header that clients read the kind of error from."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Any = (), **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = dict(headers), body


@dataclass(frozen=True)
class Account:
    """Who a token speaks for, and whether it may write."""

    user: str
    token: str
    role: str = "write"


@dataclass(frozen=True)
class File:
    """A file in a commit. `sha256` is set where it is stored by LFS or Xet, `xet_hash` in Xet mode only."""

    oid: str
    size: int
    sha256: str | None = None
    xet_hash: str | None = None


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: Commit | None
    title: str
    message: str
    author: str
    date: str
    tree: Mapping[str, File]

    def history(self) -> Iterator[Commit]:
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def changes(self) -> dict[str, File | None]:
        """Path -> file of what this commit added or changed; None where it deleted."""
        before = self.parent.tree if self.parent else {}
        changed: dict[str, File | None] = {path: file for path, file in self.tree.items() if before.get(path) != file}
        return changed | {path: None for path in before if path not in self.tree}


@dataclass
class Discussion:
    num: int
    title: str
    author: str
    is_pull_request: bool
    status: str = "open"
    base: Commit | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    merge_commit: str | None = None


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Repository:
    """One repository: a chain of commits, the refs that point into it, and the bytes of its files."""

    def __init__(self, repo_id: str, repo_type: str, *, private: bool, author: str) -> None:
        self.id, self.type, self.private = repo_id, repo_type, private
        self.created = now()
        self.contents: dict[str, bytes] = {}  # git oid of a regular file, or sha256 of a large one -> bytes
        self.branches: dict[str, Commit] = {}
        self.tags: dict[str, tuple[Commit, str]] = {}
        self.pulls: dict[int, Commit] = {}
        self.discussions: list[Discussion] = []
        self.space: dict[str, Any] = {}
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        tree = {".gitattributes": self.add_regular(attributes.encode())}
        self.branches["main"] = self.new_commit(None, "initial commit", "", author, tree)

    def add_regular(self, content: bytes) -> File:
        oid = git_oid(content)
        self.contents[oid] = content
        return File(oid, len(content))

    def add_large(self, sha256: str, xet_hash: str | None = None) -> File:
        if sha256 not in self.contents:
            raise HubError(400, f"Your push was rejected because the LFS object {sha256} was not uploaded")
        size = len(self.contents[sha256])
        return File(git_oid(lfs_pointer(sha256, size)), size, sha256, xet_hash)

    def read(self, file: File) -> bytes:
        return self.contents[file.sha256 or file.oid]

    def new_commit(
        self, parent: Commit | None, title: str, message: str, author: str, tree: Mapping[str, File]
    ) -> Commit:
        return Commit(secrets.token_hex(20), parent, title, message, author, now(), dict(sorted(tree.items())))

    def all_commits(self) -> dict[str, Commit]:
        tips = [*self.branches.values(), *(commit for commit, _ in self.tags.values()), *self.pulls.values()]
        return {commit.oid: commit for tip in tips for commit in tip.history()}

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request, full ref or (shortened) commit id names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        if name in self.branches:
            return self.branches[name]
        if name in self.tags:
            return self.tags[name][0]
        number = revision.removeprefix("refs/pr/")
        if number != revision and number.isdigit() and int(number) in self.pulls:
            return self.pulls[int(number)]
        if len(revision) >= 5:
            for oid, commit in self.all_commits().items():
                if oid.startswith(revision):
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def move(self, revision: str, commit: Commit) -> None:
        """Point a branch or a pull request at a new commit; nothing else can be written to."""
        name = revision.removeprefix("refs/heads/")
        number = revision.removeprefix("refs/pr/")
        if name in self.branches:
            self.branches[name] = commit
        elif number != revision and number.isdigit() and int(number) in self.pulls:
            self.pulls[int(number)] = commit
        else:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def open_discussion(self, title: str, author: str, description: str, *, pull: Commit | None) -> Discussion:
        discussion = Discussion(len(self.discussions) + 1, title, author, pull is not None, base=pull)
        self.discussions.append(discussion)
        if pull is not None:
            self.pulls[discussion.num] = pull
        latest = {"raw": description, "html": description, "updatedAt": now(), "author": {"name": author}}
        add_event(discussion, "comment", author, edited=False, hidden=False, latest=latest, history=[])
        return discussion

    def discussion(self, number: int) -> Discussion:
        if not 1 <= number <= len(self.discussions):
            raise HubError(404, f"Discussion {number} does not exist")
        return self.discussions[number - 1]

    def merge(self, discussion: Discussion, author: str) -> Commit:
        """Apply what a pull request changed since it was opened to the head of main."""
        head, main, base = self.pulls[discussion.num], self.branches["main"], discussion.base
        before = base.tree if base else {}
        tree = {path: file for path, file in main.tree.items() if path not in before or path in head.tree}
        tree |= {path: file for path, file in head.tree.items() if before.get(path) != file}
        title = f"{discussion.title} (#{discussion.num})"
        self.branches["main"] = self.new_commit(main, title, "", author, tree)
        discussion.status, discussion.merge_commit = "merged", self.branches["main"].oid
        add_event(discussion, "status-change", author, status="merged")
        return self.branches["main"]

    def is_large(self, path: str, size: int, sample: bytes) -> bool:
        named = any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS)
        return size > 0 and (named or size >= LFS_THRESHOLD or b"\0" in sample)

    @property
    def is_running(self) -> bool:
        return bool({"app.py", "index.html", "Dockerfile"} & set(self.branches["main"].tree))


def add_event(discussion: Discussion, kind: str, author: str, **data: Any) -> None:
    number = len(discussion.events) + 1
    event = {"id": f"{discussion.num:04d}{number:04d}", "type": kind, "createdAt": now()}
    discussion.events.append({**event, "author": {"name": author}, "data": data})


class Store:
    """All accounts, repositories and collections of one Hub, and who may do what with them."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}  # token -> account
        self.organizations: dict[str, set[str]] = {}  # name -> members, all of whom may write
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.numbers = itertools.count(1)

    def add_account(self, user: str, role: str = "write") -> Account:
        account = Account(user, f"hf_{user.capitalize()}{secrets.token_hex(12)}", role)
        self.accounts[account.token] = account
        return account

    def users(self) -> set[str]:
        return {account.user for account in self.accounts.values()}

    def member_of(self, account: Account | None) -> set[str]:
        """The namespaces that an account belongs to."""
        if account is None:
            return set()
        return {account.user} | {name for name, members in self.organizations.items() if account.user in members}

    def find(self, repo_type: str, repo_id: str, account: Account | None, *, write: bool = False) -> Repository:
        """A repository, if the account may see it (or write to it); a stranger cannot tell private from missing."""
        repository = self.repositories.get((repo_type, repo_id))
        mine = repo_id.split("/")[0] in self.member_of(account)
        if repository is None or (repository.private and not mine):
            if account is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write:
            self.check_write(repo_id.split("/")[0], account, repo_type)
        return repository

    def check_write(self, namespace: str, account: Account | None, what: str) -> Account:
        if account is None:
            raise HubError(401, "Invalid username or password.")
        if namespace not in self.member_of(account) or account.role != "write":
            raise HubError(403, f'You don\'t have the rights to write a {what} under the namespace "{namespace}"')
        return account
