"""`turnppo vllm-serve`: start vLLM's server so that a trainer can send it weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def _vllm_serve(arguments: argparse.Namespace) -> int:
    import os
    import shlex

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
        extra=shlex.split(arguments.vllm_flags),
    )
    os.execve(command[0], command, environment)  # its signals and its exit status are the server's own
