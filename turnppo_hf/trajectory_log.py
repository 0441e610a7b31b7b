"""Trajectories in, a printed table of turns and a Parquet file out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from turnppo_hf._trl import print_prompt_completions_sample
from turnppo_hf.trajectory import Trajectory


def print_turns(trajectories: Sequence[Trajectory], step: int, num_rows: int | None = None) -> None:
    """
    Print turns as TRL's table of completions.

    Args:
        trajectories (`Sequence[Trajectory]`): Whose turns are shown.
        step (`int`): Optimizer step, for the title.
        num_rows (`int`, *optional*): Draw that many turns; all by default.
    """
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    scored = bool(turns) and all(turn.advantage is not None for turn in turns)
    print_prompt_completions_sample(
        [turn.observation for turn in turns],
        [turn.completion for turn in turns],
        {"reward": [turn.reward for turn in turns], "penalty": [turn.penalty for turn in turns]},
        [turn.advantage or 0.0 for turn in turns] if scored else None,
        step,
        num_rows,
    )


def save_trajectories(trajectories: Sequence[Trajectory], folder: Path, step: int) -> Path:
    """Write `trajectories_<step>.parquet`, one row a trajectory as in `Trajectory.to_dict`, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"trajectories_{step:05d}.parquet"
    Dataset.from_list([trajectory.to_dict() for trajectory in trajectories]).to_parquet(str(file))
    return file
