"""The `turnppo` command, one module a command."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see [`~turnppo_hf.cli.main.main`]."""
    from turnppo_hf.cli.main import main as run

    return run(arguments)
