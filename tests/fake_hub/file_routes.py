"""Routes that bytes take: upload modes, LFS and Xet, the commit itself, downloads."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import math
import re
import time
from typing import Any
from urllib.parse import quote

from tests.fake_hub import cards, xet
from tests.fake_hub.repository_routes import REPO, web_url
from tests.fake_hub.server import Answer, HubServer, Request, route
from tests.fake_hub.store import Discussion, File, HubError, Repository, add_event, git_oid

SIGNATURE = "signature=not-a-token"  # what makes an address of the storage provider valid


@route("POST", f"{REPO}/preupload/{{revision}}")
def preupload(hub: HubServer, request: Request, kind: str, owner: str, name: str, revision: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=not request.flag("create_pr"))
    tree = repository.resolve(revision).tree
    payload = request.json()
    ignored = [line.strip() for line in payload.get("gitIgnore", "").splitlines() if line.strip()[:1] not in ("", "#")]
    files = []
    for item in payload["files"]:
        path, sample = item["path"], base64.b64decode(item.get("sample", ""))
        known = tree.get(path)
        files.append(
            {
                "path": path,
                "uploadMode": "lfs" if repository.is_large(path, item["size"], sample) else "regular",
                "shouldIgnore": any(fnmatch.fnmatch(path, rule.rstrip("/") + "*") for rule in ignored),
                "oid": (known.sha256 or known.oid) if known else None,
            }
        )
    return {"files": files}


def storage_address(hub: HubServer, kind: str, repo_id: str, sha256: str, **query: Any) -> str:
    extra = "".join(f"&{key}={value}" for key, value in query.items())
    return f"{hub.storage_url}/{kind}s/{repo_id}/{sha256}?{SIGNATURE}{extra}"


@route("POST", "{owner}/{name}.git/info/lfs/objects/batch")
def lfs_batch_model(hub: HubServer, request: Request, owner: str, name: str) -> Any:
    return lfs_batch(hub, request, "model", owner, name)


@route("POST", "{kind}/{owner}/{name}.git/info/lfs/objects/batch")
def lfs_batch(hub: HubServer, request: Request, kind: str, owner: str, name: str) -> Any:
    repo_id = f"{owner}/{name}"
    repository = hub.store.find(kind, repo_id, request.account, write=True)
    objects = []
    for item in request.json()["objects"]:
        answer, sha256 = {"oid": item["oid"], "size": item["size"]}, item["oid"]
        if sha256 not in repository.contents:
            upload: dict[str, Any] = {"href": storage_address(hub, kind, repo_id, sha256)}
            if hub.part_size and item["size"] > hub.part_size:
                parts = range(1, math.ceil(item["size"] / hub.part_size) + 1)
                addresses = {str(part): storage_address(hub, kind, repo_id, sha256, part=part) for part in parts}
                upload = {
                    "href": f"{hub.url}/api/{kind}s/{repo_id}/complete-multipart",
                    "header": {"chunk_size": str(hub.part_size), **addresses},
                }
            answer["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/api/{kind}s/{repo_id}/lfs-verify"}}
        objects.append(answer)
    return {"transfer": "multipart" if hub.part_size else "basic", "objects": objects}


def stored(hub: HubServer, request: Request, kind: str, owner: str, name: str) -> Repository:
    """The repository behind an address of the storage provider, whose signature stands for the permission."""
    if SIGNATURE not in request.path:
        raise HubError(403, "Access denied: the request is not signed")
    return hub.store.repositories[kind, f"{owner}/{name}"]


@route("PUT", "{kind}/{owner}/{name}/{sha256}", storage=True)
def put_object(hub: HubServer, request: Request, kind: str, owner: str, name: str, sha256: str) -> Any:
    repository = stored(hub, request, kind, owner, name)
    if "part" in request.query:
        hub.parts.setdefault(sha256, {})[int(request.query["part"][0])] = request.body
    else:
        keep(repository, sha256, request.body)
    return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def keep(repository: Repository, sha256: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise HubError(400, "The uploaded bytes do not have the announced sha256")
    repository.contents[sha256] = content


@route("POST", f"{REPO}/complete-multipart")
def complete_multipart(hub: HubServer, request: Request, kind: str, owner: str, name: str) -> Any:
    payload = request.json()
    parts = hub.parts.pop(payload["oid"], {})
    told = [(item["partNumber"], item["etag"].strip('"')) for item in payload["parts"]]
    if told != [(number, hashlib.md5(part).hexdigest()) for number, part in sorted(parts.items())]:
        raise HubError(400, "The parts of the upload do not fit")
    content = b"".join(part for _, part in sorted(parts.items()))
    keep(hub.store.repositories[kind, f"{owner}/{name}"], payload["oid"], content)
    return {"success": True}


@route("POST", f"{REPO}/lfs-verify")
def lfs_verify(hub: HubServer, request: Request, kind: str, owner: str, name: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=True)
    payload = request.json()
    if len(repository.contents.get(payload["oid"], b"")) != payload["size"]:
        raise HubError(404, "The object was not uploaded")
    return {"message": "OK"}


@route("GET", f"{REPO}/xet-{{right}}-token/{{revision}}")
def xet_token(hub: HubServer, request: Request, kind: str, owner: str, name: str, right: str, revision: str) -> Any:
    write = right == "write" and not request.flag("create_pr")
    hub.store.find(kind, f"{owner}/{name}", request.account, write=write)
    address, token, expiry = f"local://{hub.folder}", "xet-token", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expiry)}
    return Answer({"casUrl": address, "accessToken": token, "exp": expiry}, headers=headers)


def large_file(hub: HubServer, repository: Repository, sha256: str) -> File:
    """The entry of a large file that a commit names; in Xet mode its bytes come from what hf_xet left on disk."""
    xet_hash = None
    if hub.mode == "xet":
        xet_hash = xet.file_hashes(hub.folder).get(sha256)
        if xet_hash and sha256 not in repository.contents:
            keep(repository, sha256, xet.read_file(hub.folder, xet_hash))
    return repository.add_large(sha256, xet_hash)


def check_path(path: str) -> str:
    if path.startswith("/") or {"", ".", "..", ".git"} & set(path.split("/")):
        raise HubError(400, f"Invalid path in the commit: {path!r}")
    return path


def apply(hub: HubServer, repository: Repository, tree: dict[str, File], operation: dict[str, Any]) -> None:
    """One line of a commit, applied to the tree."""
    key, value = operation["key"], operation["value"]
    path = check_path(value["path"].rstrip("/"))
    if key == "file":
        content = base64.b64decode(value["content"])
        if path == "README.md" and (errors := cards.check(content.decode(), repository.type)[0]):
            raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        tree[path] = repository.add_regular(content)
    elif key == "lfsFile":
        tree[path] = large_file(hub, repository, value["oid"])
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in tree if name == path] if key == "deletedFile" else []
        gone = gone or [name for name in tree if key == "deletedFolder" and name.startswith(f"{path}/")]
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del tree[name]
    else:
        raise HubError(400, f"Unknown operation {key!r} in the commit")


@route("POST", f"{REPO}/commit/{{revision}}")
def commit(hub: HubServer, request: Request, kind: str, owner: str, name: str, revision: str) -> Any:
    create_pr = request.flag("create_pr")
    repository = hub.store.find(kind, f"{owner}/{name}", request.account, write=not create_pr)
    if request.account is None:
        raise HubError(401, "Invalid username or password.")
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header, parent = lines[0]["value"], repository.resolve(revision)
    if header.get("parentCommit") and not parent.oid.startswith(header["parentCommit"]):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(parent.tree)
    for operation in lines[1:]:
        apply(hub, repository, tree, operation)
    user = request.account.user
    made = repository.new_commit(parent, header["summary"], header.get("description", ""), user, tree)
    discussion: Discussion | None = None
    if create_pr:
        discussion = repository.open_discussion(header["summary"], user, header.get("description", ""), pull=parent)
        revision = f"refs/pr/{discussion.num}"
    elif number := re.fullmatch(r"refs/pr/(\d+)", revision):
        discussion = repository.discussion(int(number[1]))
    repository.move(revision, made)
    if discussion is not None:
        add_event(discussion, "commit", user, subject=made.title, oid=made.oid)
    address = web_url(hub, repository)
    pull = f"{address}/discussions/{discussion.num}" if discussion and create_pr else None
    return {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{address}/commit/{made.oid}",
        "hookOutput": "",
        "pullRequestUrl": pull,
    }


def partial_content(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
    """The bytes, or the part of them that a Range header asks for."""
    headers = {"Accept-Ranges": "bytes", **headers}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if asked is None or asked.groups() == ("", ""):
        return Answer(content, headers=headers)
    size = len(content)
    first = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
    last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
    if first > last:
        raise HubError(416, "The requested range does not lie in the file", None, {"Content-Range": f"bytes */{size}"})
    return Answer(content[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})


@route("GET HEAD", "{owner}/{name}/resolve/{revision}/{path}")
def resolve_model(hub: HubServer, request: Request, owner: str, name: str, revision: str, path: str) -> Any:
    return resolve(hub, request, "model", owner, name, revision, path)


@route("GET HEAD", "{kind}/{owner}/{name}/resolve/{revision}/{path}")
def resolve(hub: HubServer, request: Request, kind: str, owner: str, name: str, revision: str, path: str) -> Any:
    repository = hub.store.find(kind, f"{owner}/{name}", request.account)
    at = repository.resolve(revision)
    headers = {"X-Repo-Commit": at.oid}
    file = at.tree.get(path)
    if file is None:
        raise HubError(404, f"{path} does not exist", "EntryNotFound", headers)
    headers |= {"ETag": f'"{file.oid}"', "Content-Disposition": f'inline; filename="{path.split("/")[-1]}"'}
    if file.sha256 is None:
        return partial_content(request, repository.read(file), headers)
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    if file.xet_hash:
        token = f"{hub.url}/api/{kind}s/{repository.id}/xet-read-token/{quote(revision, safe='')}"
        headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    headers["Location"] = storage_address(hub, kind, repository.id, file.sha256)
    return Answer(b"Found. Redirecting", 302, headers)


@route("GET HEAD", "{kind}/{owner}/{name}/{sha256}", storage=True)
def get_object(hub: HubServer, request: Request, kind: str, owner: str, name: str, sha256: str) -> Any:
    content = stored(hub, request, kind, owner, name).contents.get(sha256)
    if content is None:
        raise HubError(404, "NoSuchKey")
    return partial_content(request, content, {"ETag": f'"{git_oid(content)}"'})
