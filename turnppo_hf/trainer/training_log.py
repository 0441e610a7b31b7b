"""What a training plays and computes in, its log entries, printed tables of turns and trajectory files out."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from turnppo_hf._trl import print_prompt_completions_sample
from turnppo_hf.ppo.credit import record_credit
from turnppo_hf.rollout.parquet import save_trajectories
from turnppo_hf.rollout.worker import RolloutTiming
from turnppo_hf.trainer.group_filter import equal_share
from turnppo_hf.trainer.metrics import IN_ENTRY, checked_names, rollout_metrics
from turnppo_hf.trainer.rollout_batch import RolloutBatch, is_masked, learned_from
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import StopReason, Trajectory

_FILE = "training_log.json"  # in a checkpoint
_REDUCTIONS: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "max": max,
    "sum": sum,
    "last": lambda values: values[-1],
}


class TrainingLog:
    """
    The numbers since the last log entry.

    Args:
        args ([`TurnPPOConfig`]): Where and how many turns are shown.
        is_mixed (`bool`): Whether the run has several environments.
    """

    def __init__(self, args: TurnPPOConfig, *, is_mixed: bool = False) -> None:
        self.args, self._is_mixed = args, is_mixed
        self._numbers: dict[str, list[float]] = defaultdict(list)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add numbers; the next entry has of each what `METRICS` says, the mean of those that it does not know."""
        for name, value in metrics.items():
            self._numbers[name].append(value)

    def add_step(
        self, figures: Mapping[str, float] | None, norms: Mapping[str, float], rates: Mapping[str, float]
    ) -> None:
        """Add figures, gradient norms and learning rates of an optimizer step that is made; `None`: it is skipped."""
        self.add(rates)
        if figures is None:
            self.add({"loss": math.nan, "updates/skipped": 1.0})
        else:
            of_networks = {f"grad_norm/{name}": norm for name, norm in norms.items()}
            self.add({**figures, **of_networks, "updates/skipped": 0.0})

    def add_rollout(
        self,
        trajectories: Sequence[Trajectory],
        timing: RolloutTiming,
        duration_s: float,
        of_rewards: Mapping[str, float],
    ) -> None:
        """Add the numbers of a rollout batch: all ranks' trajectories, its times, and what reward functions log."""
        bootstraps = self.args.uses_critic and self.args.bootstrap_truncated
        self.add(rollout_metrics(trajectories, bootstrap_truncated=bootstraps, is_mixed=self._is_mixed))
        self.add(checked_names(of_rewards))
        if int(self.args.num_generations or 1) > 1:
            self.add({"groups/equal_share": equal_share(trajectories, partial(is_masked, args=self.args))})
        if self.args.filter_groups:
            self.add({"groups/replaced": float(timing.num_replaced)})
        self.add(
            {
                "time/rollout_s": duration_s,
                "time/generate_s": timing.generate_s,
                "time/environment_s": timing.environment_s,
                "time/wait_s": timing.wait_s,
                "time/sync_s": timing.sync_s,
                "sampling/tokens_per_s": timing.num_tokens / duration_s,
            }
        )

    def count_tokens(self, number: float, history: Sequence[Mapping[str, Any]]) -> None:
        """Go on counting from the last value logged in `history`, which a resumed run has as well."""
        logged = [entry["num_tokens"] for entry in history if "num_tokens" in entry]
        before = self._numbers["num_tokens"][-1:] or logged[-1:] or [0.0]
        self.add({"num_tokens": before[0] + number})

    def copy(self) -> dict[str, list[float]]:
        """Return the numbers since the last entry, as `restore` takes them."""
        return {name: list(values) for name, values in self._numbers.items()}

    def restore(self, copied: dict[str, list[float]]) -> None:
        """Return to the numbers that `copy` returned."""
        self._numbers.clear()
        self._numbers.update(copied)

    def save(self, folder: Path) -> None:
        """Save the numbers since the last entry, so that the next one has them after a resume."""
        (folder / _FILE).write_text(json.dumps(self._numbers), encoding="utf-8")

    def begin(self, folder: Path | None) -> None:
        """Begin with the numbers that `save` wrote, or with none."""
        self._numbers.clear()
        if folder is not None and (folder / _FILE).exists():
            self._numbers.update(json.loads((folder / _FILE).read_text(encoding="utf-8")))

    def take(self) -> dict[str, float]:
        """Return the mean of what was added, or what else `METRICS` says, NaN and infinity left out; begin anew."""
        entry = {}
        for name, values in self._numbers.items():
            real = [value for value in values if math.isfinite(value)]
            entry[name] = _REDUCTIONS[IN_ENTRY.get(name, "mean")](real) if real else math.nan
        self._numbers.clear()
        return entry

    def show(self, trajectories: Sequence[Trajectory], rollout: RolloutBatch | None, step: int) -> None:
        """Where asked, print turns and save the trajectories beside the checkpoints, on one rank with their credit."""
        # a run resumed in the middle of a rollout batch has its tensors, not its texts
        if not self.args.log_completions or not trajectories or self.args.process_index > 0:
            return
        played = [item for item in trajectories if item.stop_reason is not StopReason.ERROR]
        # the credit is a rank's, the trajectories are all ranks'
        if rollout is not None and rollout.credit is not None and self.args.world_size == 1:
            learned = learned_from(trajectories, self.args)
            credited = dict(zip(map(id, learned), record_credit(learned, rollout.credit), strict=True))
            played = [credited.get(id(item), item) for item in played]
        _print_turns(played, step, self.args.num_completions_to_print)
        file = Path(str(self.args.output_dir)) / "trajectories" / f"trajectories_{step:05d}.parquet"
        save_trajectories(played, file)


def _print_turns(trajectories: Sequence[Trajectory], step: int, num_rows: int | None = None) -> None:
    """Print turns as TRL's table of completions: that many drawn ones, or all."""
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    scored = any(turn.advantage is not None for turn in turns)  # an episode that is masked has none
    print_prompt_completions_sample(
        [turn.observation for turn in turns],
        [turn.completion for turn in turns],
        {"reward": [turn.reward for turn in turns], "penalty": [turn.penalty for turn in turns]},
        [math.nan if turn.advantage is None else turn.advantage for turn in turns] if scored else None,
        step,
        num_rows,
    )
