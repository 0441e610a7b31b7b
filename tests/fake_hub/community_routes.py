"""Routes of discussions and pull requests, Spaces and collections."""

from __future__ import annotations

import re
from typing import Any

from tests.fake_hub.repository_routes import REPO
from tests.fake_hub.server import Answer, HubServer, Request, route
from tests.fake_hub.store import Discussion, HubError, Repository, add_event, now

SPACE = "api/spaces/{owner}/{name}"


def summary(repository: Repository, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.events[0]["createdAt"],
        "status": discussion.status,
        "repo": {"name": repository.id, "type": repository.type},
        "isPullRequest": discussion.is_pull_request,
    }


@route("GET", f"{REPO}/discussions")
def discussions(hub: HubServer, request: Request, kind: str, owner: str, name: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account)
    wanted = request.query.get("type", ["all"])[0]
    listed = [
        summary(repository, discussion)
        for discussion in reversed(repository.discussions)
        if wanted == "all" or discussion.is_pull_request == (wanted == "pull_request")
    ]
    return {"discussions": listed, "count": len(listed), "start": 0}


@route("POST", f"{REPO}/discussions")
def open_discussion(hub: HubServer, request: Request, kind: str, owner: str, name: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account)
    if request.account is None:
        raise HubError(401, "Invalid username or password.")
    payload = request.json()
    pull = repository.branches["main"] if payload.get("pullRequest") else None
    user = request.account.user
    discussion = repository.open_discussion(payload["title"], user, payload.get("description", ""), pull=pull)
    if pull is not None:
        discussion.status = "draft"
    return summary(repository, discussion)


@route("GET", f"{REPO}/discussions/{{number}}")
def discussion_details(hub: HubServer, request: Request, kind: str, owner: str, name: str, number: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account)
    discussion = repository.discussion(int(number))
    details = summary(repository, discussion) | {"events": discussion.events}
    if discussion.is_pull_request:
        details |= {"filesWithConflicts": [], "diff": "", "changes": {"base": "refs/heads/main"}}
        details["changes"]["mergeCommitId"] = discussion.merge_commit
    return details


@route("POST", f"{REPO}/discussions/{{number}}/{{action:comment|status|title|merge}}")
def change_discussion(
    hub: HubServer, request: Request, kind: str, owner: str, name: str, number: str, action: str
) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=action != "comment")
    discussion, payload = repository.discussion(int(number)), request.json()
    if request.account is None:
        raise HubError(401, "Invalid username or password.")
    user = request.account.user
    if action == "comment":
        text = payload["comment"]
        latest = {"raw": text, "html": text, "updatedAt": now(), "author": {"name": user}}
        add_event(discussion, "comment", user, edited=False, hidden=False, latest=latest, history=[])
    elif action == "status":
        discussion.status = payload["status"]
        add_event(discussion, "status-change", user, status=payload["status"])
    elif action == "title":
        add_event(discussion, "title-change", user, **{"from": discussion.title, "to": payload["title"]})
        discussion.title = payload["title"]
    else:
        if discussion.status not in ("open", "draft"):
            raise HubError(409, f"This pull request is {discussion.status}")
        repository.merge(discussion, user)
    return {"newTitle": discussion.title, "newStatus": discussion.events[-1], "newMessage": discussion.events[-1]}


def runtime_of(repository: Repository) -> dict[str, Any]:
    space = repository.space
    stage = "PAUSED" if space["paused"] else "RUNNING" if repository.is_running else "NO_APP_FILE"
    current = space["hardware"] if stage == "RUNNING" else None
    hardware = {"current": current, "requested": space["hardware"]}
    return {"stage": stage, "hardware": hardware, "gcTimeout": space["sleep"], "storage": None, "replicas": {}}


@route("GET", f"{SPACE}/runtime")
def runtime(hub: HubServer, request: Request, owner: str, name: str) -> Any:
    return runtime_of(hub.store.find("space", f"{owner}/{name}", request.account))


@route("POST", f"{SPACE}/{{action:secrets|variables|hardware|sleeptime|pause|restart}}")
def change_space(hub: HubServer, request: Request, owner: str, name: str, action: str) -> Any:
    repository = hub.store.find("space", f"{owner}/{name}", request.account, write=True)
    if action in ("secrets", "variables"):
        item = request.json()
        repository.space[action][item["key"]] = {**item, "updatedAt": now()}
        return keys(repository, action)
    if action == "hardware":
        repository.space["hardware"] = request.json()["flavor"]
    elif action == "sleeptime":
        repository.space["sleep"] = request.json()["seconds"]
    else:
        repository.space["paused"] = action == "pause"
    return runtime_of(repository)


def keys(repository: Repository, what: str) -> dict[str, Any]:
    """Secrets or variables as they are read back: a secret's value never is."""
    hidden = {"key", "value"} if what == "secrets" else {"key"}
    return {
        key: {field: value for field, value in item.items() if field not in hidden}
        for key, item in repository.space[what].items()
    }


@route("GET DELETE", f"{SPACE}/secrets")
def secrets(hub: HubServer, request: Request, owner: str, name: str) -> Any:
    return read_or_delete(hub, request, f"{owner}/{name}", "secrets")


@route("GET DELETE", f"{SPACE}/variables")
def variables(hub: HubServer, request: Request, owner: str, name: str) -> Any:
    return read_or_delete(hub, request, f"{owner}/{name}", "variables")


def read_or_delete(hub: HubServer, request: Request, repo_id: str, what: str) -> Any:
    repository = hub.store.find("space", repo_id, request.account, write=True)
    if request.method == "DELETE":
        repository.space[what].pop(request.json()["key"], None)
    return keys(repository, what)


@route("POST", "api/collections")
def create_collection(hub: HubServer, request: Request) -> Any:
    payload = request.json()
    owner = payload["namespace"]
    hub.store.check_write(owner, request.account, "collection")
    name = re.sub(r"[^a-z0-9]+", "-", payload["title"].lower()).strip("-")
    for slug, collection in hub.store.collections.items():
        if collection["owner"]["name"] == owner and collection["title"] == payload["title"]:
            raise HubError(409, "This collection already exists", slug=slug)
    slug = f"{owner}/{name}-{next(hub.store.numbers):024x}"
    hub.store.collections[slug] = {
        "slug": slug,
        "title": payload["title"],
        "description": payload.get("description"),
        "owner": {"name": owner},
        "private": bool(payload.get("private")),
        "items": [],
        "lastUpdated": now(),
        "position": len(hub.store.collections),
        "theme": "blue",
        "upvotes": 0,
    }
    return hub.store.collections[slug]


def collection_of(hub: HubServer, request: Request, slug: str, *, write: bool = False) -> dict[str, Any]:
    collection = hub.store.collections.get(slug)
    owner = slug.split("/")[0]
    if collection is None or (collection["private"] and owner not in hub.store.member_of(request.account)):
        raise HubError(404, "Collection not found")
    if write:
        hub.store.check_write(owner, request.account, "collection")
    return collection


@route("GET DELETE", "api/collections/{owner}/{slug}")
def collection(hub: HubServer, request: Request, owner: str, slug: str) -> Any:
    found = collection_of(hub, request, f"{owner}/{slug}", write=request.method == "DELETE")
    if request.method == "DELETE":
        del hub.store.collections[f"{owner}/{slug}"]
        return Answer(b"OK")
    return found


@route("POST", "api/collections/{owner}/{slug}/items")
def add_item(hub: HubServer, request: Request, owner: str, slug: str) -> Any:
    found, payload = collection_of(hub, request, f"{owner}/{slug}", write=True), request.json()
    item = payload["item"]
    if item["type"] in ("model", "dataset", "space"):
        hub.store.find(item["type"], item["id"], request.account)
    if any((item["type"], item["id"]) == (other["type"], other["id"]) for other in found["items"]):
        raise HubError(409, "This item is already in the collection")
    note = {"note": {"text": payload["note"]}} if "note" in payload else {}
    entry = {**item, "_id": f"{next(hub.store.numbers):024x}", "position": len(found["items"]), **note}
    found["items"].append(entry)
    found["lastUpdated"] = now()
    return found
