"""
Train for a while on an environment whose steps fail and hang, and fit how memory, open files and threads grow.

The slopes are those of straight lines through the second half of the run, per hour; the first half warms up.

    python benchmarks/soak.py --minutes 60
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import planted
from datasets import Dataset
from harness import parser_for, run
from transformers import TrainerCallback
from transformers.utils import logging

from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.models.pretrained import find_model


class Gauge(TrainerCallback):
    """Reads, after each step, what the process holds; stops the training where the time is over."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.rows: list[tuple[float, float, float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a reading."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        files = len(os.listdir("/proc/self/fd"))
        self.rows.append((time.monotonic(), memory, files, threading.active_count()))
        control.should_training_stop = time.monotonic() > self.end


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Make the figures."""
    minutes = 0.05 if options.smoke else options.minutes
    planted.HANG_S, planted.LIMIT_S = 0.4, 0.2
    gauge = Gauge(time.monotonic() + 60 * minutes)
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        trainer = TurnPPOTrainer(
            model=str(find_model("tiny")),
            args=TurnPPOConfig(
                str(Path(folder) / "run"),
                max_steps=1_000_000,
                generation_batch_size=planted.EPISODES,
                max_turn_length=4,
                environment_timeout_s=planted.LIMIT_S,
                max_failed_share=0.9,
                logging_steps=50,
                save_strategy="steps",
                save_steps=100,
                save_total_limit=1,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
            ),
            environment_factory=planted.Planted,
            train_dataset=Dataset.from_dict({"seed": range(4096)}),
            callbacks=[gauge],
        )
        trainer.train()
    rows = np.array(gauge.rows)
    half = rows[len(rows) // 2 :]
    hours = (half[:, 0] - half[0, 0]) / 3600
    names = ("memory_mib", "open_files", "threads")
    figures: dict[str, Any] = {"minutes": minutes, "optimizer_steps": len(rows)}
    for column, name in enumerate(names, start=1):
        slope = float(np.polyfit(hours, half[:, column], 1)[0]) if len(half) > 2 else float("nan")
        figures[name] = {
            "first": float(rows[0, column]),
            "half": float(half[0, column]),
            "last": float(rows[-1, column]),
            "slope_per_hour": slope,
        }
    return figures


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    parser = parser_for(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long it trains")
    run("soak", parser, measure)
