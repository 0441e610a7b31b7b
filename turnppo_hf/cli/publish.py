"""What `turnppo card`, `turnppo push` and `turnppo evaluate --push` do: an agent's folder in, a release out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo, HfApi, eval_result_entries_to_yaml

from turnppo_hf.evaluation.summary import Summary
from turnppo_hf.hub.background import stage
from turnppo_hf.hub.card.card import EVAL_RESULTS_FILE, Published, eval_results, parse_results, prepare_release
from turnppo_hf.hub.client import (
    create_repository,
    is_writable,
    push_folder,
    push_release,
    read_account,
    with_retries,
)
from turnppo_hf.hub.exceptions import PushError, ReleaseError
from turnppo_hf.hub.files import CHECKPOINT_FILE, EMBEDDED_MODELS, check_folder
from turnppo_hf.hub.run_record import RunRecord, add_comparison, read_run
from turnppo_hf.hub.secret_check import check_no_secrets
from turnppo_hf.hub.trajectory_dataset import push_dataset, write_dataset
from turnppo_hf.models.pretrained import find_model


def make_card(folder: str, *, repo_id: str | None, compare: Sequence[str]) -> Path:
    """
    Write card, pictures and evaluation results of a run into its folder.

    Args:
        folder (`str`): Of a run, or of a checkpoint.
        repo_id (`str`, *optional*): Where it will go, for the commands in the card.
        compare (`Sequence[str]`): Folders of runs on the same held-out tasks, such as baselines; they stay in the
            run's results.

    Returns:
        `Path`: the card.

    Raises:
        `ReleaseError`: no agent, or runs that do not compare.
    """
    path = _local(folder)
    if compare:
        add_comparison(path, compare)
    prepare_release(path, repo_id)
    return path / "README.md"


def push_run(
    model: str,
    repo_id: str,
    *,
    message: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    episodes: str | None = None,
    collection: str | None = None,
) -> list[CommitInfo]:
    """
    Push an agent as a release, and its held-out episodes as a dataset where asked.

    Args:
        model (`str`): Folder of a run or checkpoint, or the name of an actor in the package.
        repo_id (`str`): `"name"` or `"namespace/name"`.
        message (`str`): Title of the commit.
        private (`bool`, *optional*): Of repositories that are created.
        revision (`str`, *optional*): Branch.
        create_pr (`bool`, *optional*): Open a pull request instead.
        episodes (`str`, *optional*): Dataset repository for the held-out episodes.
        collection (`str`, *optional*): Title or slug of a collection that shows them together; created by its title
            in the agent's namespace where it is missing.

    Returns:
        `list[CommitInfo]`: of the model, and of the dataset.

    Raises:
        `ReleaseError`: it is no agent, or has no recorded episodes.
        `PushError`: nothing was committed, or the agent alone; the message says which, and gives the reason.
    """
    source = find_model(model) if model in EMBEDDED_MODELS else _local(model)
    check_folder(source, model)
    run = read_run(source)
    if episodes is not None and not run.episodes:
        raise ReleaseError(
            f"{model!r} holds no episodes, so there is no dataset to push. `turnppo train` records the held-out ones; "
            "push the folder of a finished run."
        )
    if "/" not in repo_id:
        repo_id = f"{read_account()['name']}/{repo_id}"
    if episodes is not None and "/" not in episodes:
        episodes = f"{repo_id.partition('/')[0]}/{episodes}"
    if episodes is not None and (create_pr or (revision or "").startswith("refs/")):
        raise ReleaseError(
            "A pull request is of the agent's repository, and the episodes would be committed to the dataset at once. "
            "Push the agent without --episodes, or not as a pull request."
        )
    commits = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = source
        if model in EMBEDDED_MODELS or (source / CHECKPOINT_FILE).exists():  # which stay as they are
            folder = Path(scratch, "agent")
            stage(source, folder)
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        data = Path(scratch, "episodes")
        if episodes is not None:
            kwargs = run.record.evaluation.environment_kwargs or {}
            write_dataset(run.episodes, data, agent=repo_id, repo_id=episodes, environment_kwargs=kwargs)
            check_no_secrets(data, called=f"{model}, whose episodes come from it,")
        published = Published.read(repo_id, revision=revision)
        if episodes is not None:  # before a card names it
            create_repository(episodes, private=private, repo_type="dataset")
        prepare_release(folder, repo_id, dataset=episodes, published=published)
        where: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr}
        where["is_other_agent"] = published.is_of_other_figures(run)
        commits.append(push_release(folder, repo_id, message=message, called=str(model), **where))
        if episodes is not None:
            try:
                commits.append(push_dataset(data, episodes, private=private, revision=revision))
            except PushError as error:
                address = commits[0].commit_url
                message = f"The agent is pushed ({address}), but its episodes are not: {error}"
                raise PushError(message, is_transient=error.is_transient) from error
    if collection is not None:
        _collect(collection, repo_id, episodes, private)
    return commits


def check_pushable(repo_id: str, revision: str | None = None) -> None:
    """
    Check before an evaluation that its result can be pushed.

    Args:
        repo_id (`str`): The agent that will be evaluated.
        revision (`str`, *optional*): Branch, tag or commit of it.

    Raises:
        `ReleaseError`: it is no repository on the Hub, or the revision is not what its main branch shows.
        `PushError`: there is no token, the Hub does not accept it, or it may only read.
    """
    if Path(repo_id).is_dir() or repo_id in EMBEDDED_MODELS:
        raise ReleaseError(
            f"{repo_id!r} is no repository on the Hub, so there is nothing to add an evaluation to. Push the agent "
            "first: turnppo push FOLDER NAME."
        )
    if read_account().get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PushError(
            "The token may read and not write, so no result could be pushed after the evaluation. Make a token with "
            "write permission at https://huggingface.co/settings/tokens, or leave --push out.",
            is_transient=False,
        )
    if revision is not None:
        api, what_failed = HfApi(), f"{repo_id!r} was not asked which commit {revision!r} is"
        shown, judged = (
            with_retries(partial(api.model_info, repo_id, revision=name), what_failed).sha for name in (None, revision)
        )
        if shown != judged:
            raise ReleaseError(
                f"{revision!r} of {repo_id!r} is the commit {judged}, and the repository shows {shown}, whose agent "
                "would be given the figures of another. Evaluate without --push, or without --revision."
            )


def push_evaluation(repo_id: str, summary: Summary, *, protocol: str) -> CommitInfo:
    """
    Add an evaluation to a released agent: a commit in an own repository, a pull request in another's.

    Args:
        repo_id (`str`): The agent that was evaluated.
        summary (`Summary`): Its result.
        protocol (`str`): How it was made, such as "seeds 5 to 12, temperature 0".

    Raises:
        `PushError`: nothing was committed; the message gives the reason.
    """
    account = read_account()
    released = find_model(repo_id)
    run: RunRecord = read_run(released)
    own = released / EVAL_RESULTS_FILE
    named = parse_results(own.read_text(encoding="utf-8")) if own.exists() else []
    dataset = str(named[0]["dataset"]["id"]) if named else f"{repo_id}-episodes"
    entries = eval_results(summary, run, dataset, protocol)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, ".eval_results", f"turnppo-{account['name']}.yaml")
        file.parent.mkdir()
        file.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
        return push_folder(
            folder,
            repo_id,
            message=f"Evaluation by {account['name']}",
            create_pr=not is_writable(repo_id),
            called="The evaluation",
        )


def _collect(collection: str, model: str, dataset: str | None, private: bool | None) -> None:
    """Show the agent, and its episodes, in a collection; what it shows already stays once."""
    api = HfApi()
    namespace = model.partition("/")[0]

    def add() -> None:
        slug = collection
        if "/" not in collection:
            slug = api.create_collection(collection, namespace=namespace, private=bool(private), exists_ok=True).slug
        api.add_collection_item(slug, model, "model", exists_ok=True)
        if dataset is not None:
            api.add_collection_item(slug, dataset, "dataset", exists_ok=True)

    with_retries(add, f"The agent is pushed, but was not added to the collection {collection!r}")


def _local(folder: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise ReleaseError(f"There is no folder {folder!r}. Name the `output_dir` of a run, or a checkpoint in it.")
    return path
