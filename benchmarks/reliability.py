"""
Kill trainings at random moments, damage their checkpoints, and count the runs that end as if nothing had happened.

Each trial trains the packaged agent for some steps in a process of its own, or in two, and is ended by SIGKILL: at a
moment drawn between its first checkpoint and the end of an uninterrupted run, or, one time in three, some milliseconds
after a checkpoint began to be written. The same command then goes on from `resume_from_checkpoint=True` or begins anew
where no checkpoint is complete, and its weights, optimizer, log and evaluations are compared bit by bit with the
uninterrupted run's. Environments reply one at a time, so that both collect the same.

    python benchmarks/reliability.py --save
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import gymnasium
import torch
from damage import DAMAGES
from datasets import Dataset
from harness import parser_for, run
from transformers.utils import logging

from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.environments.threads import DaemonThreads
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.rollout import worker
from turnppo_hf.trainer.checkpoints import CheckpointError, newest_complete
from turnppo_hf.trainer.distributed import leave_together

MAX_STEPS = 8
NOT_COMPARED = ("time/", "train_", "sampling/tokens_per_s")  # seconds, and what transformers counts of one part


class InOrder(DaemonThreads):
    """Runs one call at a time: which responses are sampled side by side then never depends on who is quicker."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call at once."""
        future = super().submit(*args, **kwargs)
        wait([future])
        return future


class Lift(gymnasium.Env[str, str]):
    """A lift between three floors: few tokens a turn, so that a training takes little more than its writing."""

    observation_space = action_space = gymnasium.spaces.Text(100)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Choose where it is and where to."""
        super().reset(seed=seed)
        self.floor, self.goal = (int(floor) for floor in self.np_random.permutation(3)[:2])
        self.left = 3
        return f"{self.floor}>{self.goal}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move."""
        self.floor += {"Up": 1, "Down": -1}.get(action.split(" ")[0], 0)
        self.left -= 1
        is_there = self.floor == self.goal
        reply = f"{self.floor}>{self.goal}"
        return reply, float(is_there), is_there, self.left == 0 and not is_there, {"solved": is_there}


def train(folder: Path, resume: str | bool | None, seed: int = 42) -> None:
    """Train in this process as its launch says, and write what came out."""
    worker.DaemonThreads = InOrder  # type: ignore[misc]
    trainer = TurnPPOTrainer(
        model=str(find_model("tiny")),
        args=TurnPPOConfig(
            str(folder),
            seed=seed,
            max_steps=MAX_STEPS,
            generation_batch_size=8,
            num_minibatches=2,
            max_turn_length=4,
            learning_rate=5e-4,
            lr_scheduler_type="linear",
            logging_steps=3,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=2,
            eval_strategy="steps",
            eval_steps=1,
            eval_temperature=1.0,
            load_best_model_at_end=True,
            metric_for_best_model="eval_reward",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        eval_dataset=Dataset.from_dict({"seed": range(1000, 1004)}),
        environment_factory=Lift,
    )
    trainer.train(resume_from_checkpoint=resume)
    found = {"evaluation": trainer.evaluate(), "log": [_compared(entry) for entry in trainer.state.log_history]}
    found["evaluation"] = _compared(found["evaluation"])
    for name, network in trainer.model.networks.items():
        found[name] = _digest(network.state_dict())
        # the networks are the best checkpoint's; those of the last step are in its checkpoint
        last = folder / f"checkpoint-{MAX_STEPS}" / ("" if name == "actor" else name) / "model.safetensors"
        found[f"{name} of the last step"] = hashlib.sha256(last.read_bytes()).hexdigest()
    found["optimizer"] = _digest(trainer.optimizer.state_dict())
    found["schedule"] = trainer.lr_scheduler.state_dict()["last_epoch"]
    if trainer.accelerator.is_main_process:
        (folder / "found.json").write_text(json.dumps(found, sort_keys=True))
    leave_together()


def _compared(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if not name.startswith(NOT_COMPARED)}


def _digest(state: Any) -> str:
    """Hash every number of nested dictionaries and lists, bit by bit."""
    hashed = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            hashed.update(item.detach().contiguous().numpy().tobytes())
        elif isinstance(item, dict):
            for name in item:
                hashed.update(str(name).encode())
                add(item[name])
        elif isinstance(item, list | tuple):
            for part in item:
                add(part)
        else:
            hashed.update(repr(item).encode())

    add(state)
    return hashed.hexdigest()


def start(folder: Path, processes: int, resume: str | bool | None, seed: int = 42) -> list[int]:
    """Train in processes forked from this one, which has imported everything; return their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        with contextlib.suppress(BaseException), open(folder.parent / "output.txt", "a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            if processes > 1:
                places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                os.environ.update({name: str(value) for name, value in places.items()})
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
            try:
                train(folder, resume, seed)
                os._exit(0)
            except CheckpointError as error:
                print(f"REFUSED {error}", flush=True)
                os._exit(3)
            except BaseException:
                traceback.print_exc()
        os._exit(1)
    return children


def end(children: list[int]) -> list[int]:
    """Wait for processes; return their statuses."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def read(folder: Path) -> dict[str, Any]:
    """Read what a training came to."""
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def wait_for_checkpoint(folder: Path) -> None:
    """Return when the first checkpoint is complete."""
    began = time.monotonic()
    while not any(folder.glob("checkpoint-*")):
        if time.monotonic() - began > 600:
            raise RuntimeError(f"{folder} has no checkpoint after ten minutes")
        time.sleep(0.001)


def kill_once(folder: Path, processes: int, length_s: float, chance: random.Random) -> str:
    """Start a training, kill all its processes, and return which kind of moment it was."""
    children = start(folder, processes, None)
    in_write = chance.random() < 1 / 3
    moment, step = chance.random() * length_s, chance.randint(1, MAX_STEPS)
    if not in_write:
        wait_for_checkpoint(folder)
    began = time.monotonic()
    while time.monotonic() - began < (600 if in_write else moment):
        if in_write and (folder / f"_saving-checkpoint-{step}").exists():
            time.sleep(chance.random() * 0.02)
            break
        if (folder / "found.json").exists():
            break
        time.sleep(0.001)
    finished = (folder / "found.json").exists()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    end(children)
    return "after the end" if finished else "in a write" if in_write else "at a random moment"


def kills(root: Path, processes: int, number: int, seed: int) -> dict[str, Any]:
    """Kill `number` trainings and compare each resumed one with the uninterrupted one."""
    whole = root / f"whole_{processes}" / "run"
    whole.mkdir(parents=True)
    children = start(whole, processes, None)
    wait_for_checkpoint(whole)
    began = time.monotonic()
    if any(end(children)):
        raise RuntimeError((whole.parent / "output.txt").read_text()[-3000:])
    length_s, expected, chance = time.monotonic() - began, read(whole), random.Random(f"{seed} {processes}")
    counts = {"equal": 0, "resumed": 0, "started_anew": 0, "torn_checkpoints_left": 0}
    moments: dict[str, int] = {}
    differing = []
    for trial in range(number):
        folder = root / f"killed_{processes}_{trial}" / "run"
        folder.mkdir(parents=True)
        kind = kill_once(folder, processes, length_s, chance)
        moments[kind] = moments.get(kind, 0) + 1
        (folder / "found.json").unlink(missing_ok=True)
        torn: list[str] = []
        resumes = newest_complete(folder, torn.append) is not None
        counts["resumed" if resumes else "started_anew"] += 1
        counts["torn_checkpoints_left"] += len(torn)
        failed = any(end(start(folder, processes, resumes or None)))
        found = None if failed else read(folder)
        if found == expected or json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True):
            counts["equal"] += 1
            shutil.rmtree(folder.parent)
        else:
            names = ["failed"] if found is None else [name for name in expected if found[name] != expected[name]]
            differing.append({"trial": trial, "kind": kind, "differs": names})
    return {"trials": number, **counts, "moments": moments, "differing": differing}


def damages(root: Path) -> dict[str, str]:
    """Damage the newest checkpoint of a copy of one run in ten ways; return what a resume makes of each."""
    whole = root / "whole_1" / "run"
    expected, outcomes = read(whole), {}
    for number, (name, damage) in enumerate(DAMAGES.items()):
        folder = root / f"damaged_{number}" / "run"
        shutil.copytree(whole, folder)
        (folder / "found.json").unlink()
        newest = newest_complete(folder, lambda sentence: None)
        assert newest is not None
        damage(newest)
        statuses = end(start(folder, 1, True))
        if statuses == [3]:
            outcomes[name] = "refused in one sentence"
        elif statuses != [0]:
            outcomes[name] = "FAILED"
        else:
            same = json.dumps(read(folder), sort_keys=True) == json.dumps(expected, sort_keys=True)
            outcomes[name] = "resumed from the one before, bit-equal" if same else "OTHER NUMBERS"
    return outcomes


def control(root: Path) -> list[str]:
    """Name what differs in a run of another seed: what the comparison of the others would find."""
    folder = root / "control" / "run"
    folder.mkdir(parents=True)
    if any(end(start(folder, 1, None, seed=1))):
        raise RuntimeError((folder.parent / "output.txt").read_text()[-3000:])
    other, whole = read(folder), read(root / "whole_1" / "run")
    return [name for name in whole if json.dumps(other[name]) != json.dumps(whole[name])]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Make the figures."""
    number = 1 if options.smoke else options.kills
    root = Path(tempfile.mkdtemp(prefix="reliability_"))
    counts = [1] if options.smoke else [1, 2]
    found: dict[str, Any] = {
        "kills": {f"{count} process{'es' * (count > 1)}": kills(root, count, number, options.seed) for count in counts}
    }
    found["damages"] = damages(root)
    found["differs with another seed"] = control(root)
    kept = [item for count in found["kills"].values() for item in count["differing"]]
    wrong = [name for name, outcome in found["damages"].items() if outcome.isupper()]
    if kept or wrong:
        sys.stderr.write(f"{len(kept)} killed and {len(wrong)} damaged runs differ; their folders are in {root}\n")
    else:
        shutil.rmtree(root)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    parser = parser_for(__doc__)
    parser.add_argument("--kills", type=int, default=30, help="trainings killed for each number of processes")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    run("reliability", parser, measure)
