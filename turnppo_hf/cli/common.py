"""What several commands share: help texts, the environment flags, quiet loading."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium

    from turnppo_hf.agent import TurnPPOAgent


_MODEL_HELP = (
    "folder that a run saved, model id on the Hub, or tiny-trained (Sokoban, with critic), tiny (where its training "
    "began) or tiny-webshop for the actors in the package"
)


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def _add_environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--environment", metavar="ID", help="Gymnasium id (default: the one the model was trained in)")
    parser.add_argument(
        "--environment_kwargs",
        metavar="JSON",
        help="arguments of the environment, on top of those of the model's own (default: none)",
    )


def _hide_loading_bars() -> None:
    """Bars of weights that load and save would stand between the lines that are to be read."""
    import datasets
    from transformers.utils.logging import disable_progress_bar

    datasets.disable_progress_bars()
    disable_progress_bar()


def _environment_of(agent: TurnPPOAgent, arguments: argparse.Namespace) -> tuple[str, partial[gymnasium.Env]]:
    """Take the environment from the flags, else from the model's record."""
    from turnppo_hf.cli.train_arguments import read_json_object

    return agent.environment(
        arguments.environment, **read_json_object("environment_kwargs", arguments.environment_kwargs)
    )
