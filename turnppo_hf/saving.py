"""What a trainer of two networks saves, resumes from and pushes, in the place of what `Trainer` does with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from turnppo_hf._trl import BaseTrainer
from turnppo_hf.checkpoint import RolloutBatch, load_networks, load_pending, save_networks, save_pending


class SavingTrainer(BaseTrainer):
    """
    The part of [`TurnPPOTrainer`] that reads and writes folders.

    Its subclass sets `environment_record`, what [`~turnppo_hf.loading.open_environments`] returns.
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
    optimizer: Any
    control: Any
    _rollout: RolloutBatch | None = None  # under way; set where updates of it are left
    _pending_file: Path | None = None  # where a resumed run finds the one that was under way
    _first_epoch = 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        limits = ("max_turns", "max_turn_length", "max_completion_length")
        record = {
            **self.environment_record,
            "limits": {name: getattr(self.args, name) for name in limits},
            "chat_template_kwargs": self.args.chat_template_kwargs or {},
            "algorithm": self.args.algorithm,
            "gamma": self.args.gamma,
            "lam": self.args.lam,
        }
        save_networks(self.accelerator.unwrap_model(self.model), self.processing_class, record, folder)
        (Path(folder) / "training_config.json").write_text(self.args.to_json_string())

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
