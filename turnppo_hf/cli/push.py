"""`turnppo push`: the folder of a run in, a release on the Hub out."""

from __future__ import annotations

import argparse

from turnppo_hf.cli.common import hide_loading_bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is pushed, where and how."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, a checkpoint in it, or tiny-trained")
    parser.add_argument("repo_id", help="name, or namespace/name")
    parser.add_argument("--private", action="store_true", default=None, help="create it as a private repository")
    parser.add_argument("--revision", help="branch (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument("--message", default="Upload agent", help="title of the commit (%(default)s)")
    parser.add_argument("--collection", help="title or slug of a collection to show them in")
    parser.add_argument("--episodes", metavar="DATASET", help="push the held-out episodes to this dataset, too")


def run(arguments: argparse.Namespace) -> int:
    """Push and print the address of each commit."""
    from turnppo_hf.cli.publish import push_run

    hide_loading_bars()
    commits = push_run(
        arguments.run_folder,
        arguments.repo_id,
        message=arguments.message,
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        episodes=arguments.episodes,
        collection=arguments.collection,
    )
    for commit in commits:
        print(commit.pr_url or commit.commit_url)
    return 0
