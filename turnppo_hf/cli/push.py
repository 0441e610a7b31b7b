"""`turnppo push`: the folder of a run or of a panel in, a release on the Hub out."""

from __future__ import annotations

import argparse

from turnppo_hf.cli.common import hide_loading_bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is pushed, where and how."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, checkpoint or panel, or tiny-trained")
    parser.add_argument("repo_id", help="name, or namespace/name")
    parser.add_argument(
        "--private", action="store_true", default=None, help="create it private; one that is there stays"
    )
    parser.add_argument("--revision", help="branch (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument("--message", help="title of the commit (default: Upload agent, or panel)")
    parser.add_argument("--collection", help="title or slug of a collection to show them in")
    parser.add_argument(
        "--episodes", metavar="DATASET", help="push the held-out episodes there, too; not in a pull request"
    )


def run(arguments: argparse.Namespace) -> int:
    """Push and print the address of each commit."""
    from turnppo_hf.cli.publish import push_run
    from turnppo_hf.hub.panel.folder import is_panel, push_panel

    hide_loading_bars()
    where = {name: getattr(arguments, name) for name in ("private", "revision", "create_pr")}
    if is_panel(arguments.run_folder):
        if arguments.episodes or arguments.collection:
            raise ValueError(
                f"{arguments.run_folder!r} is a panel, which has no episodes and is shown with no agent: --episodes "
                "and --collection would have no effect. Leave them out."
            )
        message = arguments.message or "Upload panel"
        commits = [push_panel(arguments.run_folder, arguments.repo_id, message=message, **where)]
    else:
        commits = push_run(
            arguments.run_folder,
            arguments.repo_id,
            message=arguments.message or "Upload agent",
            episodes=arguments.episodes,
            collection=arguments.collection,
            **where,
        )
    for commit in commits:
        print(commit.pr_url or commit.commit_url)
    return 0
