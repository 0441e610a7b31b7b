"""A folder in, a commit on the Hub out, and back: with retries, and with errors that say what to do."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitInfo, HfApi, get_session, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from turnppo_hf.release import (
    PRIVATE_FILES,
    PUBLIC_FILES,
    UNREAD_FOLDERS,
    PushError,
    ReleaseError,
    check_names,
)

RETRY_WAITS_S = (2.0, 8.0, 30.0)  # before the second, third and fourth attempt
REQUEST_TIMEOUT_S = 300.0  # without an answer; the client itself would wait for ever
# what the client and its storage backend raise where the network or the Hub fails
HUB_ERRORS = (OSError, httpx2.HTTPError, HFValidationError, RuntimeError, ValueError)

_TRANSIENT = {408, 409, 412, 425, 429, 500, 502, 503, 504}
_TENSORS = (".safetensors", ".pt", ".bin", ".pth")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{4,}|Bearer +\S+")

logger = logging.getLogger(__name__)


def create_repository(
    repo_id: str, *, token: str | None = None, private: bool | None = None, repo_type: str = "model", **space: Any
) -> str:
    """
    Create a repository, or find that it exists.

    Args:
        repo_id (`str`): `"name"` in the namespace of the token, or `"namespace/name"`.
        token (`str`, *optional*): Defaults to the one that `hf auth login` or `HF_TOKEN` gives.
        private (`bool`, *optional*): The Hub's default otherwise; of no effect where it exists.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"`, `"dataset"` or `"space"`.
        space: Further arguments of `HfApi.create_repo`.

    Returns:
        `str`: its full id.

    Raises:
        `PushError`: the Hub refuses, or does not answer.
    """

    def create() -> str:
        _bound_waiting()
        created = HfApi(token=token).create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **space)
        return str(created.repo_id)

    return str(with_retries(create, f"The repository {repo_id!r} was not created"))


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    message: str,
    repo_type: str = "model",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    path_in_repo: str | None = None,
    ignore_patterns: tuple[str, ...] = PRIVATE_FILES,
    **space: Any,
) -> CommitInfo:
    """
    Create the repository where it is missing and upload a folder as one commit.

    What fails for a reason that passes (rate limits, a failing or busy Hub, a broken connection) is tried again after
    `RETRY_WAITS_S`; an upload that was cut goes on with the files that are missing.

    Args:
        folder (`str` or `Path`): What to upload.
        repo_id (`str`): `"name"` in the namespace of the token, or `"namespace/name"`.
        message (`str`): Title of the commit.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"`, `"dataset"` or `"space"`.
        private (`bool`, *optional*): Of a repository that is created; the Hub's default otherwise.
        token (`str`, *optional*): Defaults to the one that `hf auth login` or `HF_TOKEN` gives.
        revision (`str`, *optional*): Branch; created where it is missing.
        create_pr (`bool`, *optional*): Open a pull request instead.
        path_in_repo (`str`, *optional*): Where in the repository.
        ignore_patterns (`tuple[str, ...]`, *optional*): What stays here; by default pickles and the trainer's state.
        space: Further arguments of `HfApi.create_repo`.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        `PushError`: nothing was committed; the message says why and what to do.
    """
    api = HfApi(token=token)

    def push() -> CommitInfo:
        _bound_waiting()
        target = repo_id
        if not create_pr:
            target = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **space).repo_id
            if revision is not None and revision != "main":
                api.create_branch(target, branch=revision, repo_type=repo_type, exist_ok=True)
        return api.upload_folder(
            repo_id=target,
            folder_path=folder,
            path_in_repo=path_in_repo,
            repo_type=repo_type,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=list(ignore_patterns),
        )

    return with_retries(push, f"{folder} was not pushed to {repo_id!r}")


def with_retries(action: Callable[[], Any], what_failed: str) -> Any:
    """
    Run a request to the Hub, again after `RETRY_WAITS_S` where it fails for a reason that passes.

    Raises:
        `PushError`: it failed for good.
    """
    for pause in (*RETRY_WAITS_S, None):
        try:
            return action()
        except HUB_ERRORS as error:
            if pause is None or not is_transient(error):
                attempts = "" if pause is not None else f", after {len(RETRY_WAITS_S) + 1} attempts"
                message = f"{what_failed}{attempts}: {explain(error)}"
                raise PushError(message, is_transient=is_transient(error)) from None
            logger.warning("%s yet: %s Trying again in %g s.", what_failed, explain(error), pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError | HFValidationError | FileNotFoundError):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response is None or error.response.status_code in _TRANSIENT
    # hf_xet, which moves large files, has no class of its own for a broken connection
    return isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError | RuntimeError)


def explain(error: Exception) -> str:
    """Say in a sentence or two what the Hub's answer means and what to do; never with a token in it."""
    detail = _TOKEN.sub("<token>", str(error)).strip()
    detail = " ".join(detail.splitlines()[:1]) or type(error).__name__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so no request was made. Unset it to reach the Hub."
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token. Run `hf auth login`, or set HF_TOKEN to a token with write permission."
    if isinstance(error, HFValidationError):
        return f"{detail} Name it as `name` or `namespace/name`."
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision. Name a branch, a tag or a commit of it."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, RepositoryNotFoundError) and status == 401:
        return "the Hub shows no such repository to strangers (401). Check the name, and log in with `hf auth login`."
    sentences = {
        401: "the Hub does not accept the token (401). Run `hf auth login`, or set HF_TOKEN to a valid one.",
        402: "the Hub wants a paid plan for this (402). Choose another kind of repository or hardware.",
        403: "the token may not write there (403). Use a token with write permission, or a namespace of yours.",
        404: "the Hub knows no such repository, or it is private (404). Check the name and the token.",
        409: "the repository is being changed by somebody else (409). Push again.",
        412: "the repository was changed in between (412). Push again.",
        413: "the Hub refuses a file as too large (413). Remove it from the folder, or save in smaller shards.",
        429: "the Hub asks for a pause: too many requests (429). Push again in some minutes.",
    }
    if status in sentences:
        return sentences[status]
    if status is not None and status >= 500:
        return f"the Hub fails ({status}). See https://status.huggingface.co and push again later."
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return f"no answer within {REQUEST_TIMEOUT_S:g} s. Check the connection and push again."
    if isinstance(error, httpx2.TransportError | ConnectionError):
        return f"the connection failed ({detail}). Check the network and HF_ENDPOINT, and push again."
    return detail


class BackgroundPushes:
    """Pushes beside the training, one after the other. A failure is a warning and is kept; it stops nothing."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._jobs: list[Future[CommitInfo]] = []
        self.failures: list[str] = []
        self.commits: list[CommitInfo] = []

    @property
    def is_busy(self) -> bool:
        """Whether a push is under way or waits."""
        return any(not job.done() for job in self._jobs)

    def submit(self, push: Callable[[], CommitInfo]) -> Future[CommitInfo]:
        """Queue a push."""
        self._jobs.append(self._worker.submit(self._run, push))
        return self._jobs[-1]

    def wait(self) -> None:
        """Wait for every push."""
        wait(self._jobs)
        self._jobs.clear()

    def _run(self, push: Callable[[], CommitInfo]) -> CommitInfo:
        try:
            self.commits.append(push())
        except Exception as error:
            self.failures.append(str(error))
            logger.warning("%s Training goes on, and the next save pushes again.", error)
            raise
        return self.commits[-1]


def stage(source: Path, target: Path) -> None:
    """Copy a folder that its owner may delete meanwhile; tensors, which nobody rewrites, are linked where possible."""
    shutil.rmtree(target, ignore_errors=True)
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in _TENSORS:
                with contextlib.suppress(OSError):
                    os.link(path, copy)
            if not copy.exists():
                shutil.copy2(path, copy)


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """
    Download what an agent consists of, all of one commit.

    Args:
        repo_id (`str`): Model on the Hub.
        revision (`str`, *optional*): Branch, tag or commit; the main branch by default.
        token, cache_dir, force_download, local_files_only: As in [`~huggingface_hub.snapshot_download`].

    Returns:
        `Path`: the local copy.

    Raises:
        `ReleaseError`: it has to be refused, or cannot be had; the message says why.
    """
    try:
        if not local_files_only:
            _check_listing(repo_id, revision, token)
        # by the user's revision and not by its commit, so that the cache knows offline what the branch was
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                allow_patterns=list(PUBLIC_FILES),
                ignore_patterns=list(UNREAD_FOLDERS),
            )
        )
    except ReleaseError:
        raise
    except HUB_ERRORS as error:
        raise ReleaseError(f"{repo_id!r} could not be had from the Hub: {explain(error)}") from error


def read_card(repo_id: str, *, token: str | None = None, revision: str | None = None) -> str | None:
    """Return the card that a repository shows now, with what its owner wrote there; None where there is none."""
    try:
        path = hf_hub_download(repo_id, "README.md", token=token, revision=revision)
    except HUB_ERRORS:  # a repository that is new, or a Hub that fails: the push itself will say so
        return None
    return Path(path).read_text(encoding="utf-8")


def is_writable(repo_id: str, *, token: str | None = None) -> bool:
    """
    Whether the token's user, or an organisation of theirs, owns a repository.

    Raises:
        `PushError`: the Hub does not say who that is.
    """
    account = with_retries(lambda: HfApi(token=token).whoami(), "The Hub was not told who pushes")
    namespaces = {account["name"], *(org["name"] for org in account.get("orgs", ()))}
    return repo_id.partition("/")[0] in namespaces


def _check_listing(repo_id: str, revision: str | None, token: str | bool | None) -> None:
    """Check the names of a repository's files; where only the cache can answer they were checked before."""
    _bound_waiting()
    try:
        info = HfApi().model_info(repo_id, revision=revision, token=token)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx2.TransportError):
        return
    check_names([item.rfilename for item in info.siblings or ()], repo_id)


def _bound_waiting() -> None:
    """Give the client a time-out where neither it nor the user has set one."""
    session = get_session()
    if session.timeout == httpx2.Timeout(None):
        session.timeout = httpx2.Timeout(REQUEST_TIMEOUT_S)
