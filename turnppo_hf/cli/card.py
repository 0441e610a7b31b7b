"""`turnppo card`: the folder of a run in, its model card with pictures out."""

from __future__ import annotations

import argparse

from turnppo_hf.cli.common import hide_loading_bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which run gets a card, and what stands beside it."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, or a checkpoint in it")
    parser.add_argument("--repo_id", help="where it will be pushed, for the commands in the card")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help="runs on the same held-out tasks to show beside it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the card and print its path."""
    from turnppo_hf.cli.publish import make_card

    hide_loading_bars()
    print(make_card(arguments.run_folder, repo_id=arguments.repo_id, compare=arguments.compare))
    return 0
