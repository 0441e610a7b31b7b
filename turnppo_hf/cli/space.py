"""`turnppo space`: an agent in; the demo page served here, or pushed to the Hub as a Space, out."""

from __future__ import annotations

import argparse
from typing import Any

from turnppo_hf.cli.common import check_port


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is shown, and on which kind of machine."""
    parser.add_argument("action", nargs="?", choices=["push"], help="push it instead of serving it here")
    parser.add_argument("repo_id", nargs="?", help="name of the Space, or namespace/name")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--zero_gpu", action="store_true", help="a Space with an accelerator on demand (ZeroGPU)")
    kind.add_argument("--cpu", action="store_true", help="a Space on a plain server (needs a plan)")
    kind.add_argument("--static", action="store_true", help="a Space of recorded episodes, without a server (free)")
    parser.add_argument(
        "--agent", help="who plays live: model on the Hub, or here a run's folder (default: tiny-trained)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the agent")
    parser.add_argument("--private", action="store_true", default=None, help="create it as a private Space")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable that the Space gets as a secret, such as HF_TOKEN for a private agent",
    )
    parser.add_argument("--port", type=int, help="where to serve (default: the first free one from 7860 on)")


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until it is interrupted, or push it and print the address of the commit."""
    from turnppo_hf.hub.space import push_space, run_space

    kinds: list[Any] = [name for name in ("zero_gpu", "cpu", "static") if getattr(arguments, name)]
    if arguments.action is None:
        if kinds or arguments.secret or arguments.private:
            raise ValueError(
                "--zero_gpu, --cpu, --static, --private and --secret belong to a Space on the Hub, and none would be "
                "made. Use `turnppo space push NAME`, or leave them out to serve the page here."
            )
        if arguments.port is not None:
            check_port(arguments.port)
        _check_agent(arguments)
        return run_space(agent=arguments.agent, revision=arguments.revision, port=arguments.port)
    if arguments.repo_id is None or not kinds:
        raise ValueError(
            "A Space needs a name and a kind of machine; nothing was pushed. Use for example `turnppo space push NAME "
            "--static`, or --cpu or --zero_gpu instead."
        )
    if arguments.agent is not None and "/" not in arguments.agent:
        _check_agent(arguments)
    commit = push_space(
        arguments.repo_id,
        kinds[0],
        agent=arguments.agent,
        revision=arguments.revision,
        private=arguments.private,
        secrets=arguments.secret,
    )
    print(commit.commit_url)
    return 0


def _check_agent(arguments: argparse.Namespace) -> None:
    """Look for the agent here, where a mistake is one sentence."""
    if arguments.agent is not None:
        from turnppo_hf.models.pretrained import find_model

        find_model(arguments.agent, revision=arguments.revision)
