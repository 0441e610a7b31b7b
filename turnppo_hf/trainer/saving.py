"""What a trainer of two networks saves, resumes from and pushes, in the place of what `Trainer` does with one."""

from __future__ import annotations

import glob
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from turnppo_hf._trl import BaseTrainer, get_config_model_id
from turnppo_hf.evaluation.results import HeldOut
from turnppo_hf.hub.agent_record import AgentRecord, Example
from turnppo_hf.hub.background import BackgroundPushes, stage
from turnppo_hf.hub.card.card import README, prepare_release
from turnppo_hf.hub.card.merge import merge_cards
from turnppo_hf.hub.client import create_repository, push_checkpoint, push_release, read_card
from turnppo_hf.hub.exceptions import PushError
from turnppo_hf.hub.http_errors import explain, redact
from turnppo_hf.models.checkpoint import load_networks, save_networks
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.trainer.distributed import Sharding
from turnppo_hf.trainer.record import agent_record, find_example
from turnppo_hf.trainer.rollout_batch import RolloutBatch, load_pending, save_pending
from turnppo_hf.trajectory import Trajectory

_COPIES = "_push-"  # of checkpoints, each for as long as it is pushed

logger = logging.get_logger(__name__)


class SavingTrainer(BaseTrainer):
    """
    The part of [`TurnPPOTrainer`] that reads and writes folders.

    Its subclass sets `environment_record`, what [`~turnppo_hf.environments.factory.open_environments`] returns.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "turn-ppo"]
    _name = "Turn-PPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Turn-PPO: Turn-Level Advantage Estimation with PPO for Improved Multi-Turn RL in Agentic LLMs",
        "id": "2512.17008",
        "citation": "@article{li2025turnppo,\n  title = {{Turn-PPO: Turn-Level Advantage Estimation with PPO for "
        "Improved Multi-Turn RL in Agentic LLMs}},\n  author = {Li and Zhou and Meng and Vadera and Li and Li},\n"
        "  year = 2025,\n  eprint = {arXiv:2512.17008}\n}",
    }
    environment_record: Mapping[str, Any]
    held_out: HeldOut | None = None  # the episodes on which the agent is judged; set before training, for the record
    _example: Example | None = None
    model: Any
    processing_class: Any
    chat: Chat
    sharding: Sharding
    optimizer: Any
    control: Any
    _rollout: RolloutBatch | None = None  # under way; set where updates of it are left
    _pending_file: Path | None = None  # where a resumed run finds the one that was under way
    _last_trajectories: Sequence[Trajectory] = ()  # of all ranks
    _pushes: BackgroundPushes

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what plain transformers loads, however the launch shares the networks out; every rank calls it."""
        self._save(output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        networks = self.accelerator.unwrap_model(self.model)
        states = None
        if self.sharding.is_split:
            keep = self.args.should_save
            states = {name: self.sharding.full_state(item, keep=keep) for name, item in networks.networks.items()}
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        save_networks(networks, self.processing_class, self.make_record(), folder, states)
        settings = {**self.args.to_dict(), "output_dir": Path(str(self.args.output_dir)).name}
        text = redact(json.dumps(settings, indent=2, default=str), self.args.hub_token)
        (Path(folder) / "training_config.json").write_text(f"{text}\n", encoding="utf-8")

    def make_record(self) -> AgentRecord:
        """Return what `turnppo.json` holds: the environment, and how the actor is prompted, sampled and judged."""
        if self._example is None:
            uses_tools = "tools" in self.environment_record
            self._example = find_example(self.chat, self._last_trajectories, uses_tools=uses_tools)
        return agent_record(
            self.args,
            self.environment_record,
            base_model=get_config_model_id(self.model.config),
            evaluation=self.held_out,
            example=self._example,
        )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        pending = self.state.global_step % self.args.updates_per_batch != 0
        if pending and self._rollout is not None and self._rollout.is_scored:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            save_pending(self._rollout, folder / self._pending_name)
        super()._save_checkpoint(model, trial)  # pushes it, too

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.sharding.is_fsdp:
            self.sharding.load_shards(self.model, resume_from_checkpoint)
        else:
            load_networks(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.sharding.check_checkpoint(checkpoint)
            self._rollout = None
            self._pending_file = Path(checkpoint) / self._pending_name
        super()._load_optimizer_and_scheduler(checkpoint)

    @property
    def _pending_name(self) -> str:
        # with another number of ranks no rank finds its file, and all of them collect anew
        return f"rollout_{self.accelerator.process_index}_of_{self.accelerator.num_processes}.safetensors"

    def _load_pending(self) -> bool:
        """Take up the rollout batch that a checkpoint in the middle of its updates left; False where there is none."""
        found = self._pending_file is not None and self._pending_file.exists()
        if not all(gather_object([found])):  # the ranks collect together or not at all
            return False
        assert self._pending_file is not None
        self._rollout = load_pending(self._pending_file, self.accelerator.device)
        return True

    def _load_best_model(self) -> None:
        if self.sharding.in_step:
            super()._load_best_model()
            return
        load_networks(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository; where the Hub fails for a while, every push tries again instead of ending the run."""
        if not self.is_world_process_zero():
            return
        self._pushes = BackgroundPushes()
        for left in Path(self.args.output_dir).glob(f"{_COPIES}*"):  # by a run that was killed while it pushed
            shutil.rmtree(left, ignore_errors=True)
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        target = self._target(token=token, private=private)
        try:
            self.hub_model_id = create_repository(
                self.hub_model_id, token=target["token"], private=target["private"], retry=False
            )
        except PushError as error:
            if not error.is_transient:
                raise
            logger.warning("%s Training starts all the same, and every push tries to create it.", error)

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

        Args:
            commit_message, token, revision, private, kwargs: As in [`~transformers.Trainer.push_to_hub`].
            blocking (`bool`, *optional*, defaults to `True`): Wait for the push. Where it is not waited for, save
                nothing to the output folder before its `Future` is done.

        Returns:
            The commit, or its `Future` where it is not waited for; `None` on other ranks than the first.

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
        self._finish_current_push()
        target = self._target(token=token, revision=revision, private=private)
        self._find_namespace(target)
        self.create_model_card(**kwargs)
        push = partial(self._push_folder, Path(self.args.output_dir), commit_message or "End of training", target)
        return push() if blocking else self._pushes.submit(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push both networks of a checkpoint beside the training, from a copy that no rotation deletes."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        self.accelerator.wait_for_everyone()  # every rank has its own part in a checkpoint
        if not self.is_world_process_zero():
            return
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        if self._pushes.is_busy and not self.args.hub_always_push:
            logger.warning(
                "The checkpoint of %s is not pushed, because the push of an earlier one is still under way. Save less "
                "often, or set `hub_always_push=True` to queue every one.",
                when,
            )
            return
        copy = Path(self.args.output_dir) / f"{_COPIES}{self.state.global_step}-{time.monotonic_ns()}"
        try:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            stage(Path(checkpoint_folder), copy)
        except Exception as error:  # of a callback that reaches for the network, or of the disk
            shutil.rmtree(copy, ignore_errors=True)
            logger.warning("The checkpoint of %s is not pushed: %s Training goes on.", when, redact(explain(error)))
            return
        message = f"Training in progress, {when}"
        self._pushes.submit(partial(self._push_copy, copy, message, Path(checkpoint_folder)))

    def _push_copy(self, copy: Path, message: str, checkpoint: Path) -> CommitInfo:
        """Push the release in a copy of a checkpoint, and the whole of it where the strategy keeps checkpoints."""
        target = {**self._target(), "called": str(checkpoint)}
        names = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        try:
            self._find_namespace(target)
            saved = {path.relative_to(copy).as_posix() for path in copy.rglob("*")}
            prepare_release(copy, self.hub_model_id)
            commit = self._push_folder(copy, message, target)
            if folder := names.get(self.args.hub_strategy):
                # what a run resumes from, pickles of its optimizer included, because the strategy asks for it
                added = {path.relative_to(copy).as_posix() for path in copy.rglob("*")} - saved
                push_checkpoint(
                    copy,
                    self.hub_model_id,
                    folder,
                    message=f"{message}, checkpoint",
                    ignore_patterns=tuple(glob.escape(name) for name in added),
                    **target,
                )
            return commit
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _push_folder(self, folder: Path, message: str, target: dict[str, Any]) -> CommitInfo:
        """Push a release with the sections of its card that the repository's users wrote meanwhile."""
        published = read_card(self.hub_model_id, token=target["token"], revision=target["revision"])
        if published is not None:
            card = folder / README
            card.write_text(merge_cards(published, card.read_text(encoding="utf-8")), encoding="utf-8")
        return push_release(folder, self.hub_model_id, message=message, **target)

    def _target(self, **given: Any) -> dict[str, Any]:
        """Say where and as whom to push: what was given, else what the configuration says."""
        args = self.args
        target = {"token": args.hub_token, "revision": args.hub_revision, "private": args.hub_private_repo}
        return target | {name: value for name, value in given.items() if value is not None}

    def _find_namespace(self, target: dict[str, Any]) -> None:
        """Learn whose the repository is, where the Hub did not say it at the start: `name` may be another's, too."""
        if "/" not in self.hub_model_id:
            self.hub_model_id = create_repository(self.hub_model_id, token=target["token"], private=target["private"])

    def _finish_current_push(self) -> None:
        """Wait for the pushes under way, and say which of them failed."""
        if not hasattr(self, "_pushes"):
            return
        if self._pushes.is_busy:
            logger.info("Waiting for the pushes under way.")
        number, errors = self._pushes.wait()
        if errors:
            logger.warning(
                "%d of %d pushes failed; the last: %s Every checkpoint that was kept is on the disk, and "
                "`push_to_hub()` or `turnppo push FOLDER` sends it.",
                len(errors),
                number,
                errors[-1],
            )
