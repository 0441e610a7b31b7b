"""What a training pushes to the Hub and when: its repository, its checkpoints beside the training, its release."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import TrainerState
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from turnppo_hf.hub.background import BackgroundPushes, stage
from turnppo_hf.hub.card.card import Published, prepare_release
from turnppo_hf.hub.client import (
    check_write_access,
    create_repository,
    names_as_patterns,
    push_checkpoint,
    push_release,
)
from turnppo_hf.hub.exceptions import PushError
from turnppo_hf.hub.files import CHECKPOINT_FILE, published_files
from turnppo_hf.hub.http_errors import explain, redact
from turnppo_hf.hub.run_record import read_run
from turnppo_hf.hub.secret_check import check_no_secrets
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig

_COPIES = "_push-"  # of checkpoints, each for as long as it is pushed

logger = logging.get_logger(__name__)


class HubPusher:
    """
    Pushes a training to its repository; only the first rank calls it.

    Args:
        args ([`TurnPPOConfig`]): Repository, token, revision, strategy and output folder.

    Attributes:
        repo_id (`str` or `None`): The repository; None until `create_repository`, and without a namespace until the
            Hub has answered.
    """

    def __init__(self, args: TurnPPOConfig) -> None:
        self.args = args
        self.repo_id: str | None = None
        self.background = BackgroundPushes()

    def create_repository(self, *, token: str | None = None, private: bool | None = None) -> None:
        """
        Create the repository; where the Hub fails for a while, every push tries again instead of ending the run.

        Raises:
            [`~turnppo_hf.hub.exceptions.PushError`]: no push could ever succeed.
        """
        output_dir = Path(str(self.args.output_dir))
        for left in output_dir.glob(f"{_COPIES}*"):  # by a run that was killed while it pushed
            shutil.rmtree(left, ignore_errors=True)
        self.repo_id = self.args.hub_model_id or output_dir.absolute().name
        target = self._target(token=token, private=private)
        try:
            self.repo_id = create_repository(
                self.repo_id, token=target["token"], private=target["private"], retry=False
            )
        except PushError as error:
            if not error.is_transient:
                raise
            logger.warning("%s Training starts all the same, and every push tries to create it.", error)

    def rehearse(self, folder: Path) -> None:
        """
        Ask the Hub, before anything is trained, whether a folder may be pushed; a Hub that fails for a while may be
        asked again later.

        Args:
            folder (`Path`): What a push would send, as far as it is known.

        Raises:
            [`~turnppo_hf.hub.exceptions.PushError`]: a file holds a secret, or the token may not write.
        """
        sent = names_as_patterns(published_files(folder))
        check_no_secrets(folder, called=str(self.args.output_dir), allow_patterns=sent)
        if self.repo_id is None or "/" not in self.repo_id:
            return  # the Hub did not answer at the start
        try:
            check_write_access(self.repo_id, token=self.args.hub_token)
        except PushError as error:
            if not error.is_transient:
                raise
            logger.warning("%s Training starts all the same.", error)

    def push_release(
        self, write_card: Callable[[], None], message: str | None, target: Mapping[str, Any], *, blocking: bool
    ) -> CommitInfo | Future[CommitInfo]:
        """
        Push the output folder as one commit, after the pushes under way.

        Args:
            write_card (`Callable`): Writes the folder's card, once the repository's full name is found.
            message (`str`, *optional*): Of the commit, `"End of training"` by default.
            target (`Mapping`): `token`, `revision` and `private`; None leaves the configuration's.
            blocking (`bool`): Whether to wait for it.

        Raises:
            [`~turnppo_hf.hub.exceptions.PushError`]: nothing was committed, after retries.
        """
        self.finish()
        where = self._target(**target)
        self._find_namespace(where)
        write_card()
        push = partial(self._push_folder, Path(str(self.args.output_dir)), message or "End of training", where)
        return push() if blocking else self.background.submit(push)

    def push_checkpoint(self, folder: Path, state: TrainerState, on_begin: Callable[[], Any]) -> None:
        """
        Push both networks of a checkpoint beside the training, from a copy that no rotation deletes.

        Args:
            folder (`Path`): The checkpoint.
            state ([`~transformers.TrainerState`]): Names the commit.
            on_begin (`Callable`): Called before the copy is made; an error of it stops this push and nothing else.
        """
        if self.args.hub_strategy == HubStrategy.END:
            return
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {state.global_step}" if by_steps else f"epoch {int(state.epoch or 0)}"
        if self.background.is_busy and not self.args.hub_always_push:
            logger.warning(
                "The checkpoint of %s is not pushed, because the push of an earlier one is still under way. Save less "
                "often, or set `hub_always_push=True` to queue every one.",
                when,
            )
            return
        copy = Path(str(self.args.output_dir)) / f"{_COPIES}{state.global_step}-{time.monotonic_ns()}"
        try:
            on_begin()
            stage(folder, copy)
        except Exception as error:  # of a callback that reaches for the network, or of the disk
            shutil.rmtree(copy, ignore_errors=True)
            logger.warning("The checkpoint of %s is not pushed: %s Training goes on.", when, redact(explain(error)))
            return
        message = f"Training in progress, {when}"
        self.background.submit(lambda: self._push_copy(copy, message, folder))

    def finish(self) -> None:
        """Wait for the pushes under way, and log how many of them failed."""
        if self.background.is_busy:
            logger.info("Waiting for the pushes under way.")
        number, errors = self.background.wait()
        if errors:
            logger.warning(
                "%d of %d pushes failed; the last: %s Every checkpoint that was kept is on the disk, and "
                "`push_to_hub()` or `turnppo push FOLDER` sends it.",
                len(errors),
                number,
                errors[-1],
            )

    def _push_copy(self, copy: Path, message: str, checkpoint: Path) -> CommitInfo:
        """Push the release in a copy of a checkpoint, and the whole of it where the strategy keeps checkpoints."""
        target = {**self._target(), "called": str(checkpoint)}
        release = copy.with_name(f"{copy.name}-release")
        names = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        try:
            self._find_namespace(target)
            stage(copy, release)
            (release / CHECKPOINT_FILE).unlink(missing_ok=True)  # of the checkpoint, which stays as it was saved
            prepare_release(release, self.repo_id)
            commit = self._push_folder(release, message, target)
            if folder := names.get(self.args.hub_strategy):  # type: ignore[call-overload]  # an enum after __post_init__
                # what a run resumes from, pickles of its optimizer included, because the strategy asks for it
                push_checkpoint(copy, str(self.repo_id), folder, message=f"{message}, checkpoint", **target)
            return commit
        finally:
            for folder_of_mine in (copy, release):
                shutil.rmtree(folder_of_mine, ignore_errors=True)

    def _push_folder(self, folder: Path, message: str, target: dict[str, Any]) -> CommitInfo:
        """Push a release with the sections of its card that the repository's users wrote meanwhile."""
        published = Published.read(str(self.repo_id), token=target["token"], revision=target["revision"])
        run = read_run(folder)
        published.adopt_into(folder, run)
        is_other = published.is_of_other_figures(run)
        return push_release(folder, str(self.repo_id), message=message, is_other_agent=is_other, **target)

    def _target(self, **given: Any) -> dict[str, Any]:
        """Return where and as whom to push: what is given, else what the configuration names."""
        args = self.args
        target = {"token": args.hub_token, "revision": args.hub_revision, "private": args.hub_private_repo}
        return target | {name: value for name, value in given.items() if value is not None}

    def _find_namespace(self, target: dict[str, Any]) -> None:
        """Complete the repository's name where the Hub did not answer at the start: `name` alone may be another's."""
        if "/" not in str(self.repo_id):
            self.repo_id = create_repository(str(self.repo_id), token=target["token"], private=target["private"])
