"""Trajectories in, a Parquet file out, and the other way round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from turnppo_hf.redaction import redact
from turnppo_hf.trajectory import Trajectory

_MAPPINGS = ("task", "metrics", "extra")


def save_trajectories(trajectories: Sequence[Trajectory], file: Path) -> None:
    """Write a Parquet file without secrets, a row for each `Trajectory.to_dict`; its mappings are JSON texts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for trajectory in trajectories:
        row = redact(trajectory.to_dict())
        # as columns, their keys would be those of every row, and Parquet refuses to have none
        rows.append({**row, **{name: json.dumps(row[name], ensure_ascii=False, default=str) for name in _MAPPINGS}})
    Dataset.from_list(rows).to_parquet(str(file))


def read_trajectories(file: Path) -> list[Trajectory]:
    """Read what `save_trajectories` wrote."""
    rows = Dataset.from_parquet(str(file), keep_in_memory=True)
    return [
        Trajectory.from_dict({**row, **{name: json.loads(row.get(name) or "{}") for name in _MAPPINGS}})
        for row in rows
    ]
