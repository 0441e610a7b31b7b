"""The `turnppo` command: `main` dispatches, and each command has a module of its name."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see [`~turnppo_hf.cli.main.main`]."""
    from turnppo_hf.cli.main import main as run

    return run(arguments)
