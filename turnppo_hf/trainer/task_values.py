"""What a critic makes of each task goes in, the tasks of the next rollout batch come out: fewer that are decided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset

from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import Trajectory

_FLOOR = 0.1  # chance of a task that is surely won or lost, relative to one that was never played
_FILE = "task_values.npz"
_LOW, _HIGH = 5.0, 95.0  # percentiles of the returns that count as lost and as won

Judgement = tuple[str, float, float]  # task, value and return of its first state


class TaskValues:
    """
    The newest value and return of the first state of each task, and draws by them.

    A value at the lower end of the returns is surely lost, at the upper end surely won; with `p` its place between the
    two, a task is drawn in proportion to `0.1 + 0.9 * 4 * p * (1 - p)`, and one that was never played to 1.

    Args:
        tasks (`Dataset`): Tasks.
        seed (`int`): The run's; with a batch's number it seeds the draw.
    """

    def __init__(self, tasks: Dataset, seed: int) -> None:
        self.tasks, self.seed = tasks, seed
        self.values = np.full(len(tasks), np.nan)
        self.returns = np.full(len(tasks), np.nan)
        self._numbers: dict[str, int] = {}  # of the tasks that were drawn

    @property
    def weights(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """How likely each task is drawn, relative to the others."""
        weights, seen = np.ones(len(self.tasks)), ~np.isnan(self.values)
        if seen.any():
            low, high = np.percentile(self.returns[seen], [_LOW, _HIGH])
            if high - low > 1e-6:  # else nothing is known of winning and losing
                place = np.clip((self.values[seen] - low) / (high - low), 0.0, 1.0)
                weights[seen] = _FLOOR + (1.0 - _FLOOR) * 4.0 * place * (1.0 - place)
        return weights

    @property
    def decided_share(self) -> float:
        """Share of tasks that are drawn less than half as often as one that was never played."""
        return float((self.weights < 0.5).mean())

    def rows(self, batch_number: int, args: TurnPPOConfig) -> list[dict[str, Any]]:
        """Draw the tasks of a rollout batch; return this rank's rows, each as often as it is played."""
        drawn = self.draw(batch_number, args.tasks_per_batch)
        repeated = [row for row in drawn for _ in range(int(args.num_generations or 1))]
        size = len(repeated) // args.world_size
        return repeated[args.process_index * size : (args.process_index + 1) * size]

    def draw(self, batch_number: int, count: int) -> list[dict[str, Any]]:
        """Draw different tasks; the same on every rank, and in a resumed run."""
        weights = self.weights
        random = np.random.default_rng((self.seed, 7, batch_number))
        picked = random.choice(len(weights), size=count, replace=False, p=weights / weights.sum())
        rows = [dict(row) for row in self.tasks.select(picked)]
        self._numbers.update(zip(map(_name, rows), picked.tolist(), strict=True))
        return rows

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Keep what was found of tasks, those of all ranks; a task that `draw` did not draw is left out."""
        for name, value, first_return in judgements:
            if (number := self._numbers.get(name)) is not None:
                self.values[number], self.returns[number] = value, first_return

    def learn(
        self, trajectories: Sequence[Trajectory], values: torch.Tensor, returns: torch.Tensor
    ) -> dict[str, float]:
        """Keep what the critics of all ranks make of their episodes, see [`judge`]; return what is logged of it."""
        self.add(gather_object(judge(trajectories, values, returns)))
        return {"tasks/decided_share": self.decided_share}

    def copy(self) -> tuple[Any, Any]:
        """Return what is known of the tasks, as `restore` takes it."""
        return self.values.copy(), self.returns.copy()

    def restore(self, copied: tuple[Any, Any]) -> None:
        """Return to what `copy` returned."""
        self.values, self.returns = copied

    def save(self, folder: str | Path) -> None:
        """Save the state beside a checkpoint's other files."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.savez(Path(folder) / _FILE, values=self.values, returns=self.returns)

    def load(self, folder: str | Path) -> None:
        """
        Read what `save` wrote; nothing where the run drew its tasks in another way until then.

        Raises:
            `ValueError`: the tasks were others.
        """
        file = Path(folder) / _FILE
        if not file.exists():
            return
        with np.load(file, allow_pickle=False) as saved:
            values, returns = saved["values"], saved["returns"]
        if len(values) != len(self.tasks):
            raise ValueError(
                f"The checkpoint {folder} has values of {len(values)} tasks, but `train_dataset` has "
                f"{len(self.tasks)} rows, so they would be taken for other tasks' values. Resume with the same "
                f"dataset, or delete {_FILE} in the checkpoint."
            )
        self.values, self.returns = values, returns


def judge(trajectories: Sequence[Trajectory], values: torch.Tensor, returns: torch.Tensor) -> list[Judgement]:
    """
    Read what the critic makes of each episode's first state.

    Args:
        trajectories (`Sequence[Trajectory]`): Played.
        values (`torch.Tensor` of shape `(B, N)`), returns (`torch.Tensor` of shape `(B, N)`): Of their decisions.
    """
    columns = values[:, 0].tolist(), returns[:, 0].tolist()
    return [(_name(item.task), value, target) for item, value, target in zip(trajectories, *columns, strict=True)]


def _name(task: Mapping[str, Any]) -> str:
    return json.dumps(task, sort_keys=True, default=str)
