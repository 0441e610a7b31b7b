"""What the benchmarks share: the machine's name, spreads of repeated figures, and how a command prints."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Name what the figures were made on."""
    names = [
        line.partition(":")[2].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ())
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "trl")},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def peak_mib() -> float:
    """Return the largest resident size of this process so far, MiB; on a GPU the most that torch had allocated."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--save", action="store_true", help="keep the figures for the table of README.md")
    parser.add_argument("--smoke", action="store_true", help="smallest sizes, whose times mean nothing")
    parser.add_argument("--threads", type=int, help="threads of torch (default: the environment's)")
    return parser


def run(name: str, parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], dict[str, Any]]) -> None:
    """Parse, measure, print, and keep the figures where asked."""
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    figures = {**measure(options), "machine": machine()}
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        suffix = f"_{options.threads}" if options.threads and options.threads > 1 else ""
        (RESULTS / f"{name}{suffix}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(figures))
        return
    for path, value in flat(figures):
        print(f"{path:<58}{f'{value:.4g}' if isinstance(value, float) else value}")


def flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every figure with its path."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
