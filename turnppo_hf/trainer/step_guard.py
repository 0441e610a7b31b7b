"""Numbers of an optimizer step in; whether all ranks make it, and the episodes that prevent it, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from transformers.utils import logging

from turnppo_hf.trajectory import NonFiniteError, Trajectory

_NUM_NAMED = 8  # episodes that a warning lists

logger = logging.get_logger(__name__)


@dataclass
class Findings:
    """
    What of a batch is not finite, and in which of its trajectories.

    Example: `Findings({"returns": {3}})`.
    """

    found: dict[str, set[int]] = field(default_factory=dict)  # a table's name -> trajectories, by index

    def __bool__(self) -> bool:
        return bool(self.found)

    def check(self, name: str, finite: torch.Tensor, trajectories: torch.Tensor | None = None) -> None:
        """
        Note the trajectories of a table that are not finite.

        Args:
            name (`str`): Of the table, in the plural.
            finite (`torch.Tensor` of shape `(B,)`): Whether a trajectory's numbers are finite.
            trajectories (`torch.Tensor` of shape `(B,)`, *optional*): Their indices; those from 0 on by default.
        """
        if not bool(finite.all()):
            bad = (~finite).nonzero()[:, 0]
            self.found.setdefault(name, set()).update((bad if trajectories is None else trajectories[bad]).tolist())

    def of(self, trajectories: torch.Tensor) -> Findings:
        """Return the same with the indices of the batch that `trajectories` were selected from."""
        places = trajectories.tolist()
        return Findings({name: {places[item] for item in items} for name, items in self.found.items()})

    def __or__(self, other: Findings) -> Findings:
        names = [*self.found, *(name for name in other.found if name not in self.found)]
        return Findings({name: self.found.get(name, set()) | other.found.get(name, set()) for name in names})


def finite_rows(table: torch.Tensor) -> torch.Tensor:
    """Return for each row of a table, `(B, ...)`, whether all its numbers are finite, `(B,)`."""
    return table.isfinite().flatten(1).all(1)


def describe_episodes(trajectories: Sequence[Trajectory]) -> tuple[str, ...]:
    """Name each episode by its environment and seed, for a report of what it broke."""
    return tuple(f"{item.environment} seed {item.seed}" for item in trajectories)


class StepGuard:
    """
    Skips the optimizer steps whose numbers are not finite.

    A rank that has such numbers skips the step for both networks on every rank: weights, moments and schedule stay as
    they are. Steps that an fp16 gradient scaler leaves out by itself are neither judged nor counted.

    Args:
        limit (`int`): Skipped steps in a row that end the run.
        add (`Callable`): Adds a tensor over the ranks.
        last_checkpoint (`Callable`): Returns a sentence with the newest complete checkpoint.
    """

    def __init__(
        self, limit: int, add: Callable[[torch.Tensor], torch.Tensor], last_checkpoint: Callable[[], str]
    ) -> None:
        self.limit, self.add, self.last_checkpoint = limit, add, last_checkpoint
        self.num_in_a_row = 0
        self._numbers: dict[str, float] = {}
        self._findings = Findings()
        self._episodes: Sequence[str] = ()

    def watch(self, numbers: Mapping[str, float], findings: Findings, episodes: Sequence[str]) -> None:
        """
        Take what a step computed before its gradients are clipped.

        Args:
            numbers (`Mapping[str, float]`): Losses, by name.
            findings (`Findings`): Of this rank's episodes.
            episodes (`Sequence[str]`): Names of these episodes; empty where they are not recorded.
        """
        self._numbers, self._findings, self._episodes = dict(numbers), findings, episodes

    def skips(self, step: int, norms: Mapping[str, float]) -> bool:
        """
        Decide whether a step is left out; every rank calls it.

        Args:
            step (`int`): Its number, for the report.
            norms (`Mapping[str, float]`): Norms of the gradients, by network; empty where a gradient scaler judges
                them.

        Raises:
            [`~turnppo_hf.trajectory.NonFiniteError`]: on every rank, at as many skipped steps in a row.
        """
        numbers = {**self._numbers, **{f"gradient norm of the {name}": norm for name, norm in norms.items()}}
        wrong = [f"the {name} is {number}" for name, number in numbers.items() if not math.isfinite(number)]
        is_wrong = torch.tensor([float(bool(wrong or self._findings))])
        if not bool(self.add(is_wrong).item()):
            self.num_in_a_row = 0
            return False
        self.num_in_a_row += 1
        report = self._report(step, wrong)
        if self.num_in_a_row >= self.limit:
            raise NonFiniteError(
                f"{self.num_in_a_row} optimizer steps in a row had numbers that are not finite, as many as "
                f"`max_skipped_steps` allows, so nothing is learned any more. {report} {self.last_checkpoint()} Lower "
                "`learning_rate`, or correct the rewards or the sampler."
            )
        logger.warning("%s Weights, moments and schedule stay as they are.", report)
        return True

    def _report(self, step: int, wrong: Sequence[str]) -> str:
        """Return the numbers and the episodes of all ranks in one sentence or two."""
        mine = [
            (name, self._episodes[index] if self._episodes else f"number {index}")
            for name, indices in self._findings.found.items()
            for index in sorted(indices)
        ]
        gathered = gather_object([(list(wrong), mine, list(self._episodes))])
        reasons = list(dict.fromkeys(reason for part, _, _ in gathered for reason in part))
        broken = [pair for _, part, _ in gathered for pair in part]
        reasons += [f"{name} are not finite" for name in dict.fromkeys(name for name, _ in broken)]
        episodes = list(dict.fromkeys(episode for _, episode in broken))
        whose = "Episodes"
        if not episodes:
            episodes = [episode for _, _, part in gathered for episode in part]
            whose = "No episode alone has such numbers; those of the rollout batch"
        more = f" and {len(episodes) - _NUM_NAMED} more" if len(episodes) > _NUM_NAMED else ""
        listed = ", ".join(episodes[:_NUM_NAMED]) or "none is recorded"
        return f"Step {step} was skipped: {', '.join(reasons)}. {whose}: {listed}{more}."
