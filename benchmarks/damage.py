"""Ten ways in which a checkpoint is damaged: by a kill, a full disk, a bad cable or a hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cut(file: Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def flip(file: Path) -> None:
    """Turn one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def edit(file: Path, **changes: Any) -> None:
    """Change values of a JSON object."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "weights cut": lambda folder: cut(folder / "model.safetensors"),
    "bit of the critic turned": lambda folder: flip(folder / "critic" / "model.safetensors"),
    "optimizer cut": lambda folder: cut(folder / "optimizer.pt"),
    "optimizer absent": lambda folder: (folder / "optimizer.pt").unlink(),
    "schedule empty": lambda folder: cut(folder / "scheduler.pt", 0.0),
    "state of the trainer cut": lambda folder: cut(folder / "trainer_state.json"),
    "state of the trainer edited": lambda folder: edit(folder / "trainer_state.json", global_step=2),
    "random numbers absent": lambda folder: (folder / "rng_state.pth").unlink(),
    "critic absent": lambda folder: shutil.rmtree(folder / "critic"),
    "record cut": lambda folder: cut(folder / "checkpoint.json"),
}
