"""Routes that create, describe and change repositories: everything but the bytes of their files."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.fake_hub import cards
from tests.fake_hub.server import Answer, HubServer, Request, route
from tests.fake_hub.store import Commit, File, HubError, Repository, lfs_pointer

NAME = re.compile(r"(?!.*(--|\.\.))[\w][\w.-]{0,95}")
REPO = "api/{kind}/{owner}/{name}"


def web_url(hub: HubServer, repository: Repository) -> str:
    prefix = "" if repository.type == "model" else f"{repository.type}s/"
    return f"{hub.url}/{prefix}{repository.id}"


def page(hub: HubServer, request: Request, items: list[Any], size: int) -> Answer:
    """One page of a list; the way to the next one stands in a header, as on GitHub."""
    start = int(request.query.get("cursor", ["0"])[0])
    headers = {}
    if start + size < len(items):
        split = urlsplit(request.path)
        query = {**{name: values[-1] for name, values in request.query.items()}, "cursor": str(start + size)}
        headers["Link"] = f'<{hub.url}{split.path}?{urlencode(query)}>; rel="next"'
    return Answer(items[start : start + size], headers=headers)


@route("GET", "api/whoami-v2")
def whoami(hub: HubServer, request: Request) -> Any:
    if request.account is None:
        raise HubError(401, "Invalid username or password.")
    user = request.account.user
    mine = sorted(name for name, members in hub.store.organizations.items() if user in members)
    organizations = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in mine]
    token = {"displayName": "test", "role": request.account.role}
    return {
        "type": "user",
        "name": user,
        "fullname": user.capitalize(),
        "email": f"{user}@example.org",
        "isPro": False,
        "orgs": organizations,
        "auth": {"type": "access_token", "accessToken": token},
    }


@route("POST", "api/repos/create")
def create(hub: HubServer, request: Request) -> Any:
    payload = request.json()
    kind, name = payload.get("type") or "model", payload["name"]
    if request.account is None:
        raise HubError(401, "Invalid username or password.")
    namespace = payload.get("organization") or request.account.user
    if not NAME.fullmatch(name) or name.endswith((".git", "-", ".")):
        raise HubError(400, f"Invalid repository name: {name!r}")
    account = hub.store.check_write(namespace, request.account, kind)
    repo_id = f"{namespace}/{name}"
    existing = hub.store.repositories.get((kind, repo_id))
    if existing is not None:
        raise HubError(409, f"You already created this {kind} repo", url=web_url(hub, existing))
    if kind == "space" and not payload.get("sdk"):
        raise HubError(400, '"sdk" is required')
    private = payload.get("visibility") == "private" or bool(payload.get("private"))
    repository = Repository(repo_id, kind, private=private, author=account.user)
    hub.store.repositories[kind, repo_id] = repository
    if kind == "space":
        repository.space = {
            "sdk": payload["sdk"],
            "hardware": payload.get("hardware") or "cpu-basic",
            "sleep": payload.get("sleepTimeSeconds"),
            "paused": False,
            "secrets": {item["key"]: item for item in payload.get("secrets") or []},
            "variables": {item["key"]: item for item in payload.get("variables") or []},
        }
    return {"url": web_url(hub, repository), "name": repo_id, "id": repo_id}


@route("DELETE", "api/repos/delete")
def delete(hub: HubServer, request: Request) -> Any:
    payload = request.json()
    owner = payload.get("organization") or (request.account.user if request.account else "")
    key = payload.get("type") or "model", f"{owner}/{payload['name']}"
    hub.store.find(*key, request.account, write=True)
    del hub.store.repositories[key]
    return Answer(b"OK")


@route("POST", "api/validate-yaml")
def validate_yaml(hub: HubServer, request: Request) -> Any:
    payload = request.json()
    errors, warnings = cards.check(payload["content"], payload.get("repoType") or "model")
    messages = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Answer(messages, 400 if errors else 200)


@route("PUT", f"{REPO}/settings")
def settings(hub: HubServer, request: Request, kind: str, owner: str, name: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=True)
    payload = request.json()
    if {"visibility", "private"} & set(payload):
        repository.private = payload.get("visibility") == "private" or bool(payload.get("private"))
    return {"private": repository.private}


@route("GET", f"{REPO}/auth-check", f"{REPO}/auth-check/{{write}}")
def auth_check(hub: HubServer, request: Request, kind: str, owner: str, name: str, write: str = "") -> Any:
    hub.store.find(kind, f"{owner}/{name}", request.account, write=bool(write))
    return Answer(b"OK")


def sibling(repository: Repository, path: str, file: File, blobs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path}
    if blobs:
        entry |= {"size": file.size, "blobId": file.oid}
        if file.sha256:
            pointer = len(lfs_pointer(file.sha256, file.size))
            entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": pointer}
    return entry


@route("GET", REPO, f"{REPO}/revision/{{revision}}")
def info(hub: HubServer, request: Request, kind: str, owner: str, name: str, revision: str = "main") -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account)
    commit = repository.resolve(revision)
    readme = commit.tree.get("README.md")
    card = cards.front_matter(repository.read(readme).decode()) if readme else {}
    described = {
        "_id": commit.oid[:24],
        "id": repository.id,
        "author": owner,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repository.created,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": cards.tags(card, kind),
        "cardData": card,
        "siblings": [sibling(repository, path, file, request.flag("blobs")) for path, file in commit.tree.items()],
    }
    if kind == "model":
        results = cards.evaluation_results({path: repository.read(file) for path, file in commit.tree.items()})
        described |= {"modelId": repository.id, "evalResults": results, "model-index": card.get("model-index")}
        described |= {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
    if kind == "space":
        host = f"{owner}-{name}".lower()
        described |= {"sdk": repository.space["sdk"], "subdomain": host, "host": f"https://{host}.hf.space"}
    return described


def described_file(path: str, file: File, last: Commit | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    if file.sha256:
        pointer = len(lfs_pointer(file.sha256, file.size))
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer}
    if file.xet_hash:
        entry["xetHash"] = file.xet_hash
    if last is not None:
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return entry


def described_folder(path: str, commit: Commit) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": commit.oid, "size": 0}


def last_change(commit: Commit, path: str) -> Commit:
    return next(past for past in commit.history() if path in past.changes())


@route("GET", f"{REPO}/tree/{{revision}}", f"{REPO}/tree/{{revision}}/{{path}}")
def tree(hub: HubServer, request: Request, kind: str, owner: str, name: str, revision: str, path: str = "") -> Any:
    commit = hub.store.find(kind, f"{owner}/{name}", request.account).resolve(revision)
    prefix = f"{path}/" if path else ""
    files = {key: file for key, file in commit.tree.items() if key.startswith(prefix)}
    if path and not files:
        raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound", {"X-Repo-Commit": commit.oid})
    recursive, expand = request.flag("recursive"), request.flag("expand")
    folders: dict[str, Any] = {}
    items = []
    for key, file in files.items():
        below = key[len(prefix) :].split("/")
        for depth in range(1, len(below)) if recursive else range(1, min(len(below), 2)):
            folder = prefix + "/".join(below[:depth])
            folders[folder] = described_folder(folder, commit)
        if recursive or len(below) == 1:
            items.append(described_file(key, file, last_change(commit, key) if expand else None))
    return page(hub, request, [*folders.values(), *items], 50 if expand else hub.page_size)


@route("POST", f"{REPO}/paths-info/{{revision}}")
def paths_info(hub: HubServer, request: Request, kind: str, owner: str, name: str, revision: str) -> Any:
    commit = hub.store.find(kind, f"{owner}/{name}", request.account).resolve(revision)
    form = request.form()
    expand = form.get("expand", ["false"])[-1].lower() == "true"
    found = []
    for path in (path.strip("/") for path in form.get("paths", [])):
        if path in commit.tree:
            found.append(described_file(path, commit.tree[path], last_change(commit, path) if expand else None))
        elif any(key.startswith(f"{path}/") for key in commit.tree):
            found.append(described_folder(path, commit))
    return found


@route("GET", f"{REPO}/refs")
def refs(hub: HubServer, request: Request, kind: str, owner: str, name: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account)

    def listed(place: str, targets: dict[Any, Commit]) -> list[dict[str, str]]:
        return [
            {"name": str(key), "ref": f"refs/{place}/{key}", "targetCommit": commit.oid}
            for key, commit in targets.items()
        ]

    tags = {tag: commit for tag, (commit, _) in repository.tags.items()}
    answer = {"branches": listed("heads", repository.branches), "converts": [], "tags": listed("tags", tags)}
    return answer | ({"pullRequests": listed("pr", repository.pulls)} if request.flag("include_prs") else {})


@route("GET", f"{REPO}/commits/{{revision}}")
def commits(hub: HubServer, request: Request, kind: str, owner: str, name: str, revision: str) -> Any:
    history = hub.store.find(kind, f"{owner}/{name}", request.account).resolve(revision).history()
    items = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": commit.date,
        }
        for commit in history
    ]
    return page(hub, request, items, 50)


@route("POST", f"{REPO}/tag/{{revision}}")
def create_tag(hub: HubServer, request: Request, kind: str, owner: str, name: str, revision: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=True)
    payload = request.json()
    if payload["tag"] in repository.tags:
        raise HubError(409, "Tag reference exists already")
    repository.tags[payload["tag"]] = repository.resolve(revision), payload.get("message", "")
    return Answer(b"OK", 201)


@route("DELETE", f"{REPO}/tag/{{tag}}")
def delete_tag(hub: HubServer, request: Request, kind: str, owner: str, name: str, tag: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=True)
    if repository.tags.pop(tag, None) is None:
        raise HubError(404, f"Tag {tag} does not exist", "RevisionNotFound")
    return Answer(b"OK")


@route("POST", f"{REPO}/branch/{{branch}}")
def create_branch(hub: HubServer, request: Request, kind: str, owner: str, name: str, branch: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=True)
    if branch in repository.branches:
        raise HubError(409, "Reference already exists")
    repository.branches[branch] = repository.resolve(request.json().get("startingPoint") or "main")
    return Answer(b"OK", 201)


@route("DELETE", f"{REPO}/branch/{{branch}}")
def delete_branch(hub: HubServer, request: Request, kind: str, owner: str, name: str, branch: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=True)
    if branch == "main":
        raise HubError(403, "Cannot delete the main branch")
    if repository.branches.pop(branch, None) is None:
        raise HubError(404, f"Branch {branch} does not exist", "RevisionNotFound")
    return Answer(b"OK")


@route("POST", f"{REPO}/super-squash/{{branch}}")
def super_squash(hub: HubServer, request: Request, kind: str, owner: str, name: str, branch: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=True)
    title = request.json().get("message") or "Super-squash branch"
    tip = repository.resolve(branch)
    repository.move(branch, repository.new_commit(None, title, "", owner, tip.tree))
    return Answer(b"OK")
