"""What comes before the first step: seconds to import, seconds of `turnppo --help`, lines that a user writes.

`python benchmarks/startup.py [--json]`. Each time is that of a new process less that of an empty one, CPU seconds; the
lines are those of `custom_run.py` without blank ones and its docstring.
"""

from __future__ import annotations

import argparse
import ast
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import parser_for, run, spread

COMMANDS = {
    "empty_s": ["-c", "pass"],
    "import_s": ["-c", "import turnppo_hf"],
    "import_environments_s": ["-c", "import turnppo_hf.environments"],
    "help_s": ["-c", "import sys; from turnppo_hf.cli.main import main; sys.argv[1:] = ['--help']; main()"],
    "trainer_s": ["-c", "from turnppo_hf import TurnPPOTrainer"],
    "trl_trainer_s": ["-c", "from trl import GRPOTrainer"],
}


def cpu_seconds(command: list[str]) -> float:
    """Run a new interpreter to its end; user and system seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def count_lines(file: Path) -> int:
    """Lines of code, the module's docstring and blank lines aside."""
    source = file.read_text(encoding="utf-8")
    first = ast.parse(source).body[0].end_lineno or 0
    return sum(bool(line.strip()) for line in source.splitlines()[first:])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start every command a few times, in turn."""
    commands = dict(list(COMMANDS.items())[:2]) if options.smoke else COMMANDS
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(2 if options.smoke else 6):
        for name, command in commands.items():
            seconds[name].append(cpu_seconds(command))
    figures: dict[str, Any] = {name: spread(values[1:]) for name, values in seconds.items()}
    return figures | {"user_lines": count_lines(Path(__file__).with_name("custom_run.py"))}


if __name__ == "__main__":
    run("startup", parser_for(__doc__), measure)
