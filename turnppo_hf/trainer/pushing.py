"""A trainer that pushes: its checkpoints beside the training, and its release when asked."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from turnppo_hf.hub.card.card import prepare_release
from turnppo_hf.trainer.ending import EndingTrainer
from turnppo_hf.trainer.hub_push import HubPusher


class PushingTrainer(EndingTrainer):
    """
    What [`~transformers.Trainer`] does with the Hub, done with releases.

    Attributes:
        hub ([`HubPusher`]): Pushes.
    """

    hub: HubPusher

    @property
    def hub_model_id(self) -> str | None:
        """The repository that is pushed to; None before `init_hf_repo`, and on other ranks than the first."""
        return self.hub.repo_id

    @hub_model_id.setter
    def hub_model_id(self, repo_id: str | None) -> None:
        self.hub.repo_id = repo_id

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository; where the Hub fails for a while, every push tries again instead of ending the run."""
        if self.is_world_process_zero():
            self.hub.create_repository(token=token, private=private)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the card of the output folder, its pictures and evaluation results, from what the run has recorded."""
        if self.is_world_process_zero():
            self.save_state()
            tags = [tags] if isinstance(tags, str) else tags
            prepare_release(self.args.output_dir, self.hub_model_id, title=model_name, dataset=dataset_name, tags=tags)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Push actor, critic, tokenizer, record and card as one commit; pickles and checkpoints stay here.

        The arguments are those of [`~transformers.Trainer.push_to_hub`], and so is what is returned. With
        `blocking=False`, save nothing to the output folder before the `Future` is done.

        Raises:
            `PushError`: nothing was committed, after retries; the output folder is complete, and
            `turnppo push FOLDER` pushes it again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        target = {"token": token, "revision": revision, "private": private}
        write_card = partial(self.create_model_card, **kwargs)
        return self.hub.push_release(write_card, commit_message, target, blocking=blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.accelerator.wait_for_everyone()  # every rank has its own part in a checkpoint
        if self.is_world_process_zero():
            on_begin = partial(self.callback_handler.on_push_begin, self.args, self.state, self.control)
            self.hub.push_checkpoint(Path(checkpoint_folder), self.state, on_begin)

    def _finish_current_push(self) -> None:
        self.hub.finish()
