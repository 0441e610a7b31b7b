"""The rollout batch under way: its tensors and credit, saved with a checkpoint and read back by a resumed run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file

from turnppo_hf.ppo.batch import TurnBatch, check_turn_ids
from turnppo_hf.ppo.credit import Credit
from turnppo_hf.trainer.step_guard import Findings
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import FailedEpisodesError, StopReason, Trajectory


@dataclass
class RolloutBatch:
    """A rollout batch and what its updates need."""

    batch: TurnBatch
    credit: Credit | None = None  # None until the first update has scored the batch
    episodes: Sequence[str] = ()  # names of its trajectories, for reports; empty where they were not recorded
    findings: Findings = field(default_factory=Findings)  # what the scoring found not finite

    def save(self, file: Path) -> None:
        """Save the batch, once it is scored, so that a resumed run makes the updates that it has left."""
        assert self.credit is not None
        tensors = {f"batch.{item.name}": getattr(self.batch, item.name).clone() for item in fields(self.batch)}
        for prefix, credit in (("credit", self.credit), ("credit.within", self.credit.within)):
            for name in Credit.TABLES if credit is not None else ():
                tensors[f"{prefix}.{name}"] = getattr(credit, name).clone()  # tables may share memory, files may not
        file.parent.mkdir(parents=True, exist_ok=True)
        found = {name: sorted(indices) for name, indices in self.findings.found.items()}
        words = {"episodes": json.dumps(list(self.episodes)), "findings": json.dumps(found)}
        save_file(tensors, file, metadata={"per": self.credit.per, **words})

    @classmethod
    def load(cls, file: Path, device: torch.device) -> RolloutBatch:
        """
        Read what `save` wrote.

        Raises:
            `ValueError`: its turns are not marked apart.
        """
        with safe_open(file, framework="pt") as opened:
            words = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        batch = TurnBatch(**{item.name: tensors[f"batch.{item.name}"] for item in fields(TurnBatch)}).to(device)
        check_turn_ids(batch.turn_ids, batch.completion_mask)
        tables = {name: tensors[f"credit.{name}"].to(device) for name in Credit.TABLES}
        within = None
        if "credit.within.mask" in tensors:
            within = Credit(
                **{name: tensors[f"credit.within.{name}"].to(device) for name in Credit.TABLES}, per="token"
            )
        found = {name: set(indices) for name, indices in json.loads(words["findings"]).items()}
        episodes = tuple(json.loads(words["episodes"]))
        return cls(batch, Credit(**tables, per=words["per"], within=within), episodes, Findings(found))

    @classmethod
    def load_on_all_ranks(cls, file: Path, device: torch.device) -> RolloutBatch | None:
        """Read this rank's batch; None where any rank has none, since the ranks collect together or not at all."""
        return cls.load(file, device) if all(gather_object([file.exists()])) else None


def pending_file(checkpoint: str | Path, args: TurnPPOConfig) -> Path:
    """Return where a checkpoint keeps a rank's batch; with another number of ranks no rank finds its file."""
    return Path(checkpoint) / f"rollout_{args.process_index}_of_{args.world_size}.safetensors"


def learned_from(trajectories: Sequence[Trajectory], args: TurnPPOConfig) -> list[Trajectory]:
    """Leave out episodes that failed, and with `mask_truncated_completions` those that a limit of tokens cut."""
    played = [trajectory for trajectory in trajectories if trajectory.stop_reason is not StopReason.ERROR]
    return [trajectory for trajectory in played if not is_masked(trajectory, args)]


def is_masked(trajectory: Trajectory, args: TurnPPOConfig) -> bool:
    """Whether `mask_truncated_completions` leaves an episode out."""
    return args.mask_truncated_completions and trajectory.stop_reason.is_out_of_tokens


def check_failures(trajectories: Sequence[Trajectory], max_failed_share: float) -> None:
    """
    Check that enough episodes of a rollout batch were played to learn from.

    Raises:
        [`~turnppo_hf.trajectory.FailedEpisodesError`]: a larger share of them failed.
    """
    failed = [trajectory for trajectory in trajectories if trajectory.stop_reason is StopReason.ERROR]
    if len(failed) > max_failed_share * len(trajectories):
        raise FailedEpisodesError(
            f"{len(failed)} of {len(trajectories)} episodes failed, more than `max_failed_share` "
            f"({max_failed_share}) allows; the first with {failed[0].error!r} in {failed[0].environment!r}. Fix the "
            "environment."
        )
