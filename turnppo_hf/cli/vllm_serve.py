"""`turnppo vllm-serve`: a model in, vLLM's server in place of this process out; a trainer can send it weights."""

from __future__ import annotations

import argparse
import os
import shlex

from turnppo_hf.cli.common import MODEL_HELP, check_port


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which model is served, and where."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="who reaches it may set its weights (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", help="the trainer's: float32, or bfloat16 (%(default)s)")
    parser.add_argument("--max_model_length", type=int, help="tokens of prompt and response (default: the model's)")
    parser.add_argument("--gpu_memory_utilization", type=float, help="share of its memory (default: 0.9, on CPU 0.3)")
    parser.add_argument(
        "--max_lora_rank",
        type=int,
        help="take a policy's adapter alone, of this rank at most (default: merged weights)",
    )
    parser.add_argument("--vllm_flags", default="", help="further flags of vLLM's own server, in one string")


def run(arguments: argparse.Namespace) -> int:
    """Become the server; returns only where that fails."""
    check_port(arguments.port)
    from turnppo_hf.agent import find_model
    from turnppo_hf.generation.vllm_install import check_vllm
    from turnppo_hf.generation.vllm_server import serve_command

    check_vllm()
    command, environment = serve_command(
        str(find_model(arguments.model)),
        host=arguments.host,
        port=arguments.port,
        dtype=arguments.dtype,
        max_model_length=arguments.max_model_length,
        memory_utilization=arguments.gpu_memory_utilization,
        max_lora_rank=arguments.max_lora_rank,
        extra=shlex.split(arguments.vllm_flags),
    )
    os.execve(command[0], command, environment)  # its signals and its exit status are the server's own
