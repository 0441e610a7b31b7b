"""What a trainer of two networks saves, resumes from and pushes, in the place of what `Trainer` does with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import CommitInfo
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from turnppo_hf._trl import BaseTrainer, get_config_model_id
from turnppo_hf.card import prepare_release
from turnppo_hf.chat import Chat
from turnppo_hf.checkpoint import RolloutBatch, load_networks, load_pending, save_networks, save_pending
from turnppo_hf.hub import BackgroundPushes, create_repository, push_folder, read_card, stage
from turnppo_hf.release import PushError
from turnppo_hf.run_record import package_version
from turnppo_hf.trajectory import Trajectory

# where the critic of an algorithm was trained to speak
VALUE_POSITIONS = {
    "turn_ppo": "last prompt token of each turn",
    "token_ppo": "last prompt token of each turn, and each sampled token but the last",
}

logger = logging.get_logger(__name__)


class SavingTrainer(BaseTrainer):
    """
    The part of [`TurnPPOTrainer`] that reads and writes folders.

    Its subclass sets `environment_record`, what [`~turnppo_hf.loading.open_environments`] returns; what is added to
    it enters every `turnppo.json`.
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
    environment_record: dict[str, Any]
    model: Any
    processing_class: Any
    chat: Chat
    optimizer: Any
    control: Any
    _rollout: RolloutBatch | None = None  # under way; set where updates of it are left
    _pending_file: Path | None = None  # where a resumed run finds the one that was under way
    _first_epoch = 0
    _last_trajectories: Sequence[Trajectory] = ()  # of all ranks
    _pushes: BackgroundPushes

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        save_networks(self.accelerator.unwrap_model(self.model), self.processing_class, self.make_record(), folder)
        settings = {**self.args.to_dict(), "output_dir": Path(str(self.args.output_dir)).name}  # tokens are masked
        (Path(folder) / "training_config.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")

    def make_record(self) -> dict[str, Any]:
        """Return what `turnppo.json` holds: the environment, and how the actor is prompted, sampled and judged."""
        limits = ("max_turns", "max_turn_length", "max_completion_length")
        discounts = {"turn_ppo": ("gamma", "lam"), "token_ppo": ("token_gamma", "token_lam")}
        record = {
            "package": package_version(),
            "limits": {name: getattr(self.args, name) for name in limits},
            "chat_template_kwargs": self.args.chat_template_kwargs or {},
            "sampling": {name: getattr(self.args, name) for name in ("temperature", "top_p", "top_k")},
            "algorithm": self.args.algorithm,
            **{name: getattr(self.args, name) for name in discounts.get(self.args.algorithm, ())},
            **({"value_position": VALUE_POSITIONS[self.args.algorithm]} if self.args.uses_critic else {}),
            "base_model": _name_of_base(get_config_model_id(self.model.config)),
            "seed": self.args.seed,
        }
        for trajectory in self._last_trajectories:
            if trajectory.turns and "example" not in self.environment_record:
                opening = self.chat.start(trajectory.turns[0].observation, trajectory.task.get("prompt") or ())
                self.environment_record["example"] = {"messages": opening.messages, "prompt": opening.text}
        return {**record, **self.environment_record}

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        pending = self.state.global_step % self.args.updates_per_batch != 0
        if pending and self._rollout is not None and self._rollout.is_scored:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            save_pending(self._rollout, folder / self._pending_name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_networks(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)
        self._rollout = None
        state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
        self._first_epoch = int(state.epoch or 0)
        self._pending_file = Path(resume_from_checkpoint) / self._pending_name

    @property
    def _pending_name(self) -> str:
        # with another number of ranks no rank finds its file, and all of them collect anew
        return f"rollout_{self.accelerator.process_index}_of_{self.accelerator.num_processes}.safetensors"

    def _load_pending(self) -> bool:
        """Take up the rollout batch that a checkpoint in the middle of its updates left; False where there is none."""
        if self._pending_file is None or not self._pending_file.exists():
            return False
        self._rollout = load_pending(self._pending_file, self.accelerator.device)
        return True

    def _load_best_model(self) -> None:
        load_networks(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository; where the Hub fails for a while, every push tries again instead of ending the run."""
        if not self.is_world_process_zero():
            return
        self._pushes = BackgroundPushes()
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        private = self.args.hub_private_repo if private is None else private
        try:
            self.hub_model_id = create_repository(
                self.hub_model_id, token=token or self.args.hub_token, private=private
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
            self._prepare(self.args.output_dir, title=model_name, dataset=dataset_name, tags=tags)

    def _prepare(self, folder: str | Path, **card: Any) -> None:
        published = None
        if self.hub_model_id is not None:
            published = read_card(self.hub_model_id, token=self.args.hub_token, revision=self.args.hub_revision)
        prepare_release(folder, self.hub_model_id, published=published, **card)

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
            commit_message, blocking, token, revision, private, kwargs: As in [`~transformers.Trainer.push_to_hub`].

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
        self.create_model_card(**kwargs)
        self._finish_current_push()
        push = partial(
            push_folder,
            self.args.output_dir,
            self.hub_model_id,
            message=commit_message or "End of training",
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            private=self.args.hub_private_repo if private is None else private,
        )
        return push() if blocking else self._pushes.submit(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push both networks of a checkpoint beside the training, from a copy that no rotation deletes."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self._pushes.is_busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        copy = Path(self.args.output_dir) / f"_push-{self.state.global_step}"
        stage(Path(checkpoint_folder), copy)
        self._pushes.submit(
            partial(self._push_copy, copy, f"Training in progress, {when}", Path(checkpoint_folder).name)
        )

    def _push_copy(self, copy: Path, message: str, checkpoint: str) -> CommitInfo:
        """Push the release in a copy of a checkpoint, and the whole of it where the strategy keeps checkpoints."""
        target: dict[str, Any] = {
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
            "private": self.args.hub_private_repo,
        }
        try:
            self._prepare(copy)
            commit = push_folder(copy, self.hub_model_id, message=message, **target)
            names = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint}
            if folder := names.get(self.args.hub_strategy):
                # what a run resumes from, pickles of its optimizer included, because the strategy asks for it
                whole: dict[str, Any] = {"path_in_repo": folder, "ignore_patterns": ()}
                push_folder(copy, self.hub_model_id, message=f"{message}, checkpoint", **whole, **target)
            return commit
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _finish_current_push(self) -> None:
        """Wait for the pushes under way, and say which of them failed."""
        if not hasattr(self, "_pushes"):
            return
        if self._pushes.is_busy:
            logger.info("Waiting for the pushes under way.")
        self._pushes.wait()
        if self._pushes.failures:
            logger.warning(
                "%d of %d pushes failed; the last: %s Every checkpoint is on the disk.",
                len(self._pushes.failures),
                len(self._pushes.failures) + len(self._pushes.commits),
                self._pushes.failures[-1],
            )


def _name_of_base(name_or_path: str) -> str:
    """A model's id on the Hub as it is; of a folder only its name, since its path is nobody's business."""
    return Path(name_or_path).name if Path(name_or_path).is_dir() else name_or_path
