"""`turnppo doctor`: the installation in; versions, what will run where, and what is missing out."""

from __future__ import annotations

import argparse
import importlib
import os
import platform

from packaging.markers import Marker
from packaging.requirements import Requirement

from turnppo_hf.cli.common import Diagnosis, columns
from turnppo_hf.distribution import DISTRIBUTION, declared, installed_version, is_tried, range_of

_EXTRAS = {  # extra -> what it is for
    "vllm": "sampling with vLLM (use_vllm: true)",
    "peft": "LoRA adapters (use_peft: true)",
    "quantization": "adapters on a base in four or eight bits (`load_in_4bit`)",
    "deepspeed": "ZeRO over several accelerators (trainer_configs/accelerate)",
    "openenv": "environments served by OpenEnv",
    "openai": "models behind an OpenAI-compatible address (`turnppo evaluate --endpoint`)",
    "textarena": "TextArena's games",
    "minigrid": "MiniGrid's and BabyAI's worlds",
    "textworld": "TextWorld's generated games; builds its interpreter with gcc and make",
    "space": "the demo Space (`turnppo space`)",
    "report": "pictures: learning curves (`turnppo report`), calibration, replays",
    "evaluate": "the metric `agent_episodes` of Hugging Face's evaluate",
    "trackio": "experiment tracking (report_to: trackio)",
    "docs": "the documentation's site and notebooks (`make docs`, `make notebooks`)",
    "test": "the tests",
    "dev": "the tests and `make check`",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is tried beside the look at the installation."""
    parser.add_argument("--multi-gpu", action="store_true", help="train two steps under each way to use several GPUs")
    parser.add_argument("--cpu", action="store_true", help="with --multi-gpu: let two CPU processes stand in for GPUs")


def run(arguments: argparse.Namespace) -> int:
    """Print the diagnosis; 1 where something fails or is out of range."""
    if arguments.cpu and not arguments.multi_gpu:
        raise ValueError(
            "--cpu lets two processes stand in for GPUs in --multi-gpu, which is not given, so it would have no "
            "effect. Add --multi-gpu, or leave it out."
        )
    if arguments.multi_gpu:
        from turnppo_hf.cli.launch_check import check_launches

        diagnosis = check_launches(cpu=arguments.cpu)
    else:
        diagnosis = diagnose()
    print(diagnosis.page)
    return 0 if diagnosis.healthy else 1


def diagnose() -> Diagnosis:
    """Look at Python, the core packages, the extras and the devices; nothing is downloaded."""
    own = declared()
    requirements = [Requirement(line) for line in own.requires]
    may_differ = {name for name, _, _ in own.untried()}
    states = [_state(requirement) for requirement in own.core]
    not_ = "NOT " if "Python" in may_differ else ""
    rows = [("python", platform.python_version(), f"{not_}tried with {', '.join(own.pythons)}")]
    rows += [row for row, _ in states]
    extras = [_extra_row(extra, requirements) for extra in _EXTRAS]
    sections = [
        ("Core packages", rows),
        ("What runs where", _devices()),
        ("Extras", extras),
    ]
    page = "\n\n".join(f"{title}\n{columns(lines)}" for title, lines in sections)
    return Diagnosis(page, all(fine or row[0] in may_differ for row, fine in states))


def _state(requirement: Requirement) -> tuple[tuple[str, str, str], bool]:
    name, tried = requirement.name, f"tried with {range_of(requirement)}"
    install = f'pip install "{name}{range_of(requirement)}"'
    installed = installed_version(name)
    if installed is None:
        return (name, "missing", f"{tried}: {install}"), False
    if is_tried(requirement, installed):
        return (name, installed, tried), True
    return (name, installed, f"NOT {tried}: {install}"), False


def _extra_row(extra: str, requirements: list[Requirement]) -> tuple[str, str, str]:
    missing = [
        f'"{requirement.name}{range_of(requirement)}"'
        for requirement in requirements
        if requirement.marker
        and _belongs(requirement.marker, extra)
        and requirement.name != DISTRIBUTION
        and not _installed(requirement.name)
    ]
    if not missing:
        return extra, "there", _EXTRAS[extra]
    return extra, "missing", f"{_EXTRAS[extra]}: pip install {' '.join(missing)}"


def _belongs(marker: Marker, extra: str) -> bool:
    return marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _installed(name: str) -> bool:
    # vLLM's CPU build is a distribution of its own
    return any(installed_version(candidate) is not None for candidate in (name, f"{name}-cpu"))


def _devices() -> list[tuple[str, str, str]]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return [("training", "not possible", f"torch cannot be imported: {error}")]
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    if not torch.accelerator.is_available():
        where = ("training", "cpu", f"float32, {threads} (OMP_NUM_THREADS sets them)")
        sampling = ("sampling", "cpu", "with the training weights, exact log-probs")
    else:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        bf16 = accelerator.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        count = torch.accelerator.device_count()
        name = torch.cuda.get_device_name() if accelerator.type == "cuda" else accelerator.type
        precision = "bf16 autocast" if bf16 else "float32: no bf16 on this device"
        where = ("training", accelerator.type, f"{count} x {name}, {precision}")
        sampling = ("sampling", accelerator.type, "with the training weights")
    vllm = ("vllm", *_vllm())
    mode = "offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else "allowed"
    return [where, sampling, vllm, ("network", mode, "not needed for `model: tiny` on generated levels")]


def _vllm() -> tuple[str, str]:
    from turnppo_hf.generation.vllm_install import installed_vllm, vllm_problem

    found = installed_vllm()
    version = " ".join(found) if found else "missing"
    return version, vllm_problem() or "use_vllm: true samples with it; a server works without it too"
