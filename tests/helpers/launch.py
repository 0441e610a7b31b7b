"""Starts a script of this folder in one or several processes that know of each other."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def variables_of(config, **overrides):
    """What `accelerate launch --config_file` puts into the environment of each process."""
    words = ["--config_file", str(ROOT / "trainer_configs" / "accelerate" / f"{config}.yaml")]
    words += [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
    parsed = launch_command_parser().parse_args([*words, "script.py"])
    arguments, *_ = _validate_launch_command(parsed)
    arguments.deepspeed_fields_from_accelerate_config = ""
    prepare = prepare_deepspeed_cmd_env if arguments.use_deepspeed else prepare_multi_gpu_env
    before = dict(os.environ)
    prepared = prepare(arguments)
    variables = prepared[1] if arguments.use_deepspeed else prepared
    return {name: value for name, value in variables.items() if before.get(name) != value}


def run_ranks(script, *arguments, processes=2, timeout=120, **variables):
    """Run a script of this folder; `variables` are of the environment, as `accelerate launch` sets them."""
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_addr=127.0.0.1"]
    launch.append(f"--master_port={free_port()}")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        **variables,
    }
    command = [sys.executable, *(launch if processes > 1 else []), str(ROOT / "tests" / "helpers" / script)]
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-12_000:]  # the other ranks fail after the first, and say more
