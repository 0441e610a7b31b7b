"""Ways to launch in, a table out: a short training under each, held against one process, saved, read back, resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from turnppo_hf.cli.common import Diagnosis, columns
from turnppo_hf.environments import make_environment
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.trainer.distributed import leave_together, whole, whole_gradient
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trainer.turn_ppo_trainer import TurnPPOTrainer

_FSDP2 = "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_reshard_after_forward true"
_WAYS = {  # name -> flags of `accelerate launch`, as the files of trainer_configs/accelerate set them
    "multi_gpu": "--multi_gpu",
    "fsdp2": f"{_FSDP2} --fsdp_state_dict_type SHARDED_STATE_DICT --fsdp_cpu_ram_efficient_loading true",
    "zero2": "--use_deepspeed --zero_stage 2 --zero3_init_flag false",
    "zero3": "--use_deepspeed --zero_stage 3 --zero3_init_flag false",
}
_TOLERANCE = 1e-4  # of a gradient's norm: accelerators add in another order from run to run
_TIMEOUT_S = 600.0


def check_launches(ways: tuple[str, ...] = tuple(_WAYS), *, cpu: bool = False) -> Diagnosis:
    """
    Train the actor of the package for two steps under each way to share networks out, and by one process.

    Args:
        ways (`tuple[str]`, *optional*): Names of files in trainer_configs/accelerate.
        cpu (`bool`, *optional*, defaults to `False`): Take two CPU processes; so it is with fewer than two
            accelerators.

    Returns:
        [`~turnppo_hf.cli.common.Diagnosis`]: a row for each way, healthy where none failed.
    """
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() and not cpu else 0
    on_cpu = devices < 2
    processes = 2 if on_cpu else devices
    title = f"Two training steps on {processes} x {'cpu' if on_cpu else torch.accelerator.current_accelerator()}"
    if on_cpu and not cpu:
        title += " (fewer than two accelerators here: the same code on them was not tried)"
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"episodes": 2 * processes, "use_cpu": on_cpu}
        problem = _launch([sys.executable, "-m", __spec__.name], folder, {"name": "one", **settings})
        if problem:
            return Diagnosis(f"{title}\n  one process fails: {problem}", False)
        rows = [_row(way, processes, folder, settings) for way in ways]
    return Diagnosis(f"{title}\n{columns(rows)}", all(row[1] != "FAILS" for row in rows))


def _row(way: str, processes: int, folder: str, settings: dict[str, Any]) -> tuple[str, str, str]:
    if "deepspeed" in _WAYS[way] and importlib.util.find_spec("deepspeed") is None:
        return way, "skipped", 'needs DeepSpeed: pip install "turnppo-hf[deepspeed]"'
    command = [sys.executable, "-m", "accelerate.commands.launch", *_WAYS[way].split(), "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "-m", __spec__.name]
    problem = _launch(command, folder, {"name": way, **settings})
    if problem:
        return way, "FAILS", problem
    one, here = (json.loads((Path(folder) / f"{name}.json").read_text()) for name in ("one", way))
    first, mine = (load_file(Path(folder) / f"{name}.safetensors") for name in ("one", way))
    gap = max(_distance(first, mine, network) for network in ("actor", "critic"))
    loss = max(abs(number - other) for number, other in zip(here["losses"], one["losses"], strict=True))
    saved = _is_saved(Path(folder) / way, load_file(Path(folder) / f"{way}-weights.safetensors"))
    found = {
        f"gradients differ by {gap:.1e}": gap < _TOLERANCE,
        f"losses by {loss:.1e}": loss < _TOLERANCE,
        "saved and read back" if saved else "what is saved is not what was trained": saved,
        f"resumed, {here['resumed']:.1e} apart": here["resumed"] < _TOLERANCE,
    }
    return way, "passes" if all(found.values()) else "FAILS", ", ".join(found)


def _launch(command: list[str], folder: str, settings: dict[str, Any]) -> str | None:
    """Run `main` below in processes of its own; return what went wrong."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"} if settings["use_cpu"] else dict(os.environ)
    if settings["name"] == "one":  # else transformers would split batches over the devices it sees
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        done = subprocess.run(
            [*command, folder, json.dumps(settings)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {_TIMEOUT_S:.0f} s: the processes wait for each other"
    if done.returncode == 0:
        return None
    errors = [line.split("]: ")[-1] for line in done.stderr.splitlines() if "Error: " in line]
    return (errors or [f"exit status {done.returncode}"])[0][:300]


def _distance(one: dict[str, torch.Tensor], here: dict[str, torch.Tensor], network: str) -> float:
    names = [name for name in one if name.startswith(f"{network}.")]
    norm = torch.stack([one[name].norm() for name in names]).norm()
    return float(torch.stack([(here[name] - one[name]).norm() for name in names]).norm() / norm)


def _is_saved(folder: Path, trained: dict[str, torch.Tensor]) -> bool:
    """Whether plain transformers reads from a folder what was trained."""
    kinds = {"actor": (AutoModelForCausalLM, ""), "critic": (AutoModelForTokenClassification, "critic")}
    return all(
        torch.equal(value, trained[f"{network}.{name}"])
        for network, (kind, part) in kinds.items()
        for name, value in kind.from_pretrained(folder / part).named_parameters()
    )


class _FirstGradients(TrainerCallback):
    """Gathers the gradients of the first step, those of both networks."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.trainer: TurnPPOTrainer | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer is None or state.global_step > 0:
            return
        for name, parameter in self.trainer.model.named_parameters():
            gradient = whole_gradient(parameter)
            if gradient is not None:
                self.tensors[name] = gradient.detach().cpu().clone()


def _train(folder: Path, name: str, resume: Path | None, *, episodes: int, use_cpu: bool) -> Any:
    """Train two steps, with a checkpoint after each."""
    sokoban = partial(make_environment, "turnppo_hf/Sokoban-v0", size=5, max_turns=3, action_format="bare")
    gradients = _FirstGradients()
    args = TurnPPOConfig(
        str(folder / name),
        max_steps=2,
        generation_batch_size=episodes,
        learning_rate=1e-4,
        max_turn_length=4,
        max_tokens_per_micro_batch=512,
        bf16=False,
        use_cpu=use_cpu,
        save_steps=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = TurnPPOTrainer(str(find_model("tiny")), args=args, environment_factory=sokoban, callbacks=[gradients])
    gradients.trainer = trainer
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, gradients.tensors


def _weights(trainer: TurnPPOTrainer) -> dict[str, torch.Tensor]:
    gathered = {}
    for name, parameter in trainer.model.named_parameters():
        with whole(parameter) as full:
            gathered[name] = full.detach().cpu().clone()
    return gathered


def main(folder: Path, *, name: str, **settings: Any) -> None:
    """Train under this launch; write gradients, losses, what was saved and how resuming went into the folder."""
    trainer, gradients = _train(folder, name, None, **settings)
    trainer.save_model()
    trained = _weights(trainer)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    again, _ = _train(folder, f"{name}-resumed", folder / name / "checkpoint-1", **settings)
    resumed = max(float((value - trained[key]).abs().max()) for key, value in _weights(again).items())
    if trainer.accelerator.is_main_process:
        save_file(trained, folder / f"{name}-weights.safetensors")
        save_file(gradients, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps({"losses": losses, "resumed": resumed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    leave_together()
