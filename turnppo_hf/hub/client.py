"""A folder in, a commit on the Hub out, and back: with retries, and with errors that name cause and remedy."""

from __future__ import annotations

import glob
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitInfo, HfApi, get_session, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from turnppo_hf.hub.exceptions import PushError, ReleaseError
from turnppo_hf.hub.files import (
    ADDED_RESULTS,
    OWNED_FILES,
    PRIVATE_FILES,
    PUBLIC_FILES,
    UNREAD_FOLDERS,
    check_names,
    published_files,
    read_text,
)
from turnppo_hf.hub.http_errors import (
    HUB_ERRORS,
    REQUEST_TIMEOUT_S,
    asked_wait,
    cause_and_remedy,
    explain,
    is_transient,
    redact,
)
from turnppo_hf.hub.secret_check import check_no_secrets

RETRY_WAITS_S = (2.0, 8.0, 30.0)  # before the second, third and fourth attempt


logger = logging.getLogger(__name__)


def create_repository(
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    repo_type: str = "model",
    retry: bool = True,
    **space: Any,
) -> str:
    """
    Create a repository, or find that it exists.

    Args:
        repo_id (`str`): `"name"` in the namespace of the token, or `"namespace/name"`.
        token (`str`, *optional*): Defaults to the one that `hf auth login` or `HF_TOKEN` gives.
        private (`bool`, *optional*): The Hub's default otherwise; of no effect where it exists.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"`, `"dataset"` or `"space"`.
        retry (`bool`, *optional*, defaults to `True`): Try again where it fails for a reason that passes.
        space: Further arguments of `HfApi.create_repo`.

    Returns:
        `str`: its full id.

    Raises:
        `PushError`: the Hub refuses, or does not answer.
    """

    def create() -> str:
        created = HfApi(token=token).create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **space)
        return str(created.repo_id)

    waits = RETRY_WAITS_S if retry else ()
    return str(with_retries(create, f"The repository {repo_id!r} was not created", token=token, waits=waits))


def check_write_access(repo_id: str, *, token: str | None = None) -> None:
    """
    Ask the Hub whether a token may write to a repository, which a repository that exists does not show.

    Args:
        repo_id (`str`): `"namespace/name"`.
        token (`str`, *optional*): Defaults to the one that `hf auth login` or `HF_TOKEN` gives.

    Raises:
        `PushError`: it may not, or the Hub does not answer.
    """
    what_failed = f"Nothing could be pushed to {repo_id!r}"
    with_retries(lambda: HfApi(token=token).auth_check(repo_id, write=True), what_failed, token=token, waits=())


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
    names: Sequence[str] | None = None,
    called: str | None = None,
    **space: Any,
) -> CommitInfo:
    """
    Create the repository where it is missing and upload a folder as one commit; what is there already stays.

    What fails for a reason that passes (rate limits, a failing or busy Hub, a broken connection) is tried again after
    `RETRY_WAITS_S`; an upload that was cut goes on with the files that are missing.

    Args:
        folder (`str` or `Path`): What to upload.
        repo_id (`str`): `"name"` in the namespace of the token, or `"namespace/name"`.
        message (`str`): Title of the commit.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"`, `"dataset"` or `"space"`.
        private (`bool`, *optional*): Of a repository that is created; the Hub's default otherwise.
        token (`str`, *optional*): Defaults to the one that `hf auth login` or `HF_TOKEN` gives.
        revision (`str`, *optional*): Branch, created where it is missing; or a pull request, `"refs/pr/1"`.
        create_pr (`bool`, *optional*): Open a pull request instead. A broken connection is not tried again then,
            because the request may have been opened.
        names (`Sequence[str]`, *optional*): Relative paths of what is uploaded; by default all but pickles and the
            trainer's state.
        called (`str`, *optional*): What is pushed, in messages, where the folder is a copy; its path by default.
        space: Further arguments of `HfApi.create_repo`.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        `PushError`: nothing was committed; the message names the reason and what to do.
    """
    create = {"repo_type": repo_type, "private": private, **space}
    upload: dict[str, Any] = {"commit_message": message, "revision": revision, "create_pr": create_pr}
    if names is None:
        upload["ignore_patterns"] = list(PRIVATE_FILES)
    else:
        upload["allow_patterns"] = names_as_patterns(names)
    return _upload(Path(folder), repo_id, create, upload, token=token, called=called)


def names_as_patterns(names: Iterable[str]) -> list[str]:
    """Return patterns that match these file names and no others; the Hub's client takes names for patterns."""
    return [glob.escape(name) for name in names]


def push_release(
    folder: str | Path,
    repo_id: str,
    *,
    message: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    called: str | None = None,
    is_other_agent: bool = False,
) -> CommitInfo:
    """
    Upload what belongs to the release of an agent, and delete what an earlier release left of it, as one commit.

    Args:
        folder, repo_id, message, private, token, revision, create_pr: As in `push_folder`.
        is_other_agent (`bool`, *optional*, defaults to `False`): Whether evaluations that others added are of other
            weights than these, and go.
        called: As in `push_folder`.

    Raises:
        `PushError`: nothing was committed; the message names the reason and what to do.
    """
    upload: dict[str, Any] = {"commit_message": message, "revision": revision, "create_pr": create_pr}
    deleted = (*OWNED_FILES, ADDED_RESULTS) if is_other_agent else OWNED_FILES
    upload |= {"allow_patterns": names_as_patterns(published_files(Path(folder))), "delete_patterns": list(deleted)}
    return _upload(Path(folder), repo_id, {"private": private}, upload, token=token, called=called)


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    path_in_repo: str,
    *,
    message: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    called: str | None = None,
) -> CommitInfo:
    """
    Upload a whole checkpoint, the optimizer's state included, into a folder of the repository, in place of what is
    there.

    Args:
        path_in_repo (`str`): The folder in the repository.
        folder, repo_id, message, private, token, revision: As in `push_folder`.
        called: As in `push_release`.

    Raises:
        `PushError`: nothing was committed; the message names the reason and what to do.
    """
    upload: dict[str, Any] = {"commit_message": message, "revision": revision, "path_in_repo": path_in_repo}
    upload["delete_patterns"] = "*"
    return _upload(Path(folder), repo_id, {"private": private}, upload, token=token, called=called)


def _upload(
    folder: Path,
    repo_id: str,
    create: Mapping[str, Any],
    upload: Mapping[str, Any],
    *,
    token: str | None,
    called: str | None = None,
) -> CommitInfo:
    """Call `HfApi.create_repo` with `create` and `HfApi.upload_folder` with `upload`, again where they may succeed."""
    if not folder.is_dir():
        raise PushError(
            f"{str(folder)!r} is no folder, so there is nothing to push. Check the path.", is_transient=False
        )
    patterns = {name: upload.get(name) for name in ("allow_patterns", "ignore_patterns")}
    check_no_secrets(folder, called=called, **patterns)
    api = HfApi(token=token)
    repo_type = create.get("repo_type", "model")
    create_pr, revision = upload.get("create_pr", False), upload["revision"]

    def push() -> CommitInfo:
        target = repo_id
        if not create_pr:
            target = api.create_repo(repo_id, exist_ok=True, **create).repo_id
            if revision is not None and revision != "main" and not revision.startswith("refs/"):
                api.create_branch(target, branch=revision, repo_type=repo_type, exist_ok=True)
        return api.upload_folder(repo_id=target, folder_path=folder, repo_type=repo_type, **upload)

    what_failed = f"{called or folder} was not pushed to {repo_id!r}"
    commit: CommitInfo = with_retries(push, what_failed, token=token, repeatable=not create_pr)
    return commit


def with_retries(
    action: Callable[[], Any],
    what_failed: str,
    *,
    token: str | None = None,
    waits: Sequence[float] | None = None,
    repeatable: bool = True,
) -> Any:
    """
    Run a request to the Hub, again where it fails for a reason that passes.

    `huggingface_hub.utils.http_backoff` repeats single requests; this one repeats whole actions of several requests,
    such as an upload, waits as long as the Hub asks, and turns what remains into a `PushError`.

    Args:
        action (`Callable`): Makes the request.
        what_failed (`str`): Beginning of the error, such as "The folder was not pushed".
        token (`str`, *optional*): That must not stand in a message.
        waits (`Sequence[float]`, *optional*): Seconds before each further attempt, `RETRY_WAITS_S` by default. Where
            the Hub names a longer time it is waited for, up to `MAX_WAIT_S`.
        repeatable (`bool`, *optional*, defaults to `True`): Whether a request may be sent again that may have arrived.

    Raises:
        `PushError`: it failed for good.
    """
    waits = RETRY_WAITS_S if waits is None else waits
    for attempt, pause in enumerate((*waits, None), start=1):
        try:
            _bound_waiting()
            return action()
        except (PushError, ReleaseError):
            raise
        except HUB_ERRORS as error:
            transient = is_transient(error)
            if pause is None or not transient or not (repeatable or isinstance(error, HfHubHTTPError)):
                attempts = f", after {attempt} attempts" if attempt > 1 else ""
                reason = redact(explain(error), token)
                raise PushError(f"{what_failed}{attempts}: {reason}", is_transient=transient) from None
            pause = max(pause, asked_wait(error))
            reason = redact(cause_and_remedy(error)[0], token)
            coming = f"Attempt {attempt + 1} of {len(waits) + 1} follows in {pause:g} s."
            logger.warning("%s yet: %s %s", what_failed, reason, coming)
            time.sleep(pause)
    raise AssertionError("unreachable")


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
        `ReleaseError`: it has to be refused, or cannot be downloaded; the message names the reason.
    """
    reason: Exception | None = None
    try:
        pinned = revision
        if not local_files_only:
            try:
                pinned = _check_listing(repo_id, revision, token, cache_dir)
            except (OSError, httpx2.HTTPError, RevisionResolutionError) as error:
                if not is_transient(error) and not isinstance(error, OfflineModeIsEnabled):
                    raise
                # the cache holds what was checked before; the Hub may be back by now, with names that were not
                local_files_only, reason = True, error
        return Path(
            snapshot_download(
                repo_id,
                revision=pinned,
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
    except LocalEntryNotFoundError as error:
        why = "no request was allowed." if reason is None else explain(reason)
        raise ReleaseError(f"{repo_id!r} is not, or not wholly, in the cache, and {redact(why)}") from error
    except HUB_ERRORS as error:
        raise ReleaseError(f"{repo_id!r} could not be had from the Hub: {redact(explain(error))}") from error


def read_published(
    repo_id: str, name: str = "README.md", *, token: str | None = None, revision: str | None = None
) -> str | None:
    """
    Return a text file that a repository shows now, such as its card with what its owner wrote there.

    A branch that does not exist yet will begin as the main one, and so does its card.

    Args:
        repo_id (`str`): Model on the Hub.
        name (`str`, *optional*, defaults to `"README.md"`): Of the file.
        token (`str`, *optional*): Defaults to the one that `hf auth login` or `HF_TOKEN` gives.
        revision (`str`, *optional*): Branch.

    Returns:
        `str` or `None`: its text; `None` where there is none.

    Raises:
        `PushError`: it cannot be read, so that a push might overwrite it.
        `ReleaseError`: it is not in UTF-8.
    """

    def read() -> str | None:
        # a cache of its own: where the Hub fails, the client would take an older card for the one shown now
        with tempfile.TemporaryDirectory() as scratch:
            for at in dict.fromkeys((revision, None)):
                try:
                    path = hf_hub_download(repo_id, name, token=token, revision=at, cache_dir=scratch)
                    return read_text(Path(path), f"{name} of {repo_id!r}")
                except RevisionNotFoundError:
                    continue
                except (RepositoryNotFoundError, EntryNotFoundError) as error:
                    if isinstance(error, GatedRepoError | LocalEntryNotFoundError):
                        raise
                    return None
        return None

    found: str | None = with_retries(read, f"{name} of {repo_id!r} was not read", token=token)
    return found


def read_account(token: str | None = None) -> dict[str, Any]:
    """
    Return the owner of the token as the Hub names it, with `name` and `orgs`.

    Raises:
        `PushError`: there is no token, or the Hub does not accept it.
    """
    api = HfApi(token=token)
    return dict(with_retries(api.whoami, "The Hub was not asked who pushes", token=token))


def is_writable(repo_id: str, *, token: str | None = None) -> bool:
    """
    Whether a token may write to a repository, as the Hub says.

    Raises:
        `PushError`: there is no token, or the Hub does not accept it or does not answer.
    """
    read_account(token)
    try:
        check_write_access(repo_id, token=token)
    except PushError as error:
        if error.is_transient:
            raise
        return False
    return True


def _check_listing(repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None) -> str:
    """Check the names of a repository's files at the commit that a revision names; return that, for the download."""
    _bound_waiting()
    api = HfApi(token=token)
    # the cache remembers by it what the branch was, for a reload without a connection
    pinned = api.resolve_revision(repo_id, revision=revision, cache_dir=cache_dir)
    info = api.model_info(repo_id, revision=pinned.resolved)
    check_names([item.rfilename for item in info.siblings or ()], repo_id)
    return pinned


def _bound_waiting() -> None:
    """Give the client a time-out where neither it nor the user has set one."""
    session = get_session()
    if session.timeout == httpx2.Timeout(None):
        session.timeout = httpx2.Timeout(REQUEST_TIMEOUT_S)
