"""`turnppo space`: a run in, the demo Space opened here or pushed to the Hub out."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from turnppo_hf.cli.common import _command


def _add_space(commands: Any) -> None:
    space = _command(commands, "space", _space, "show agents in the browser, or push that page to the Hub as a Space")
    space.add_argument("action", nargs="?", choices=["push"], help="push it instead of serving it here")
    space.add_argument("repo_id", nargs="?", help="name of the Space, or namespace/name")
    kind = space.add_mutually_exclusive_group()
    kind.add_argument("--zero_gpu", action="store_true", help="a Space with an accelerator on demand (ZeroGPU)")
    kind.add_argument("--cpu", action="store_true", help="a Space on a plain server (paid to create)")
    kind.add_argument("--static", action="store_true", help="a Space of recorded episodes, without a server (free)")
    space.add_argument(
        "--agent", help="who plays live: model on the Hub, or here a run's folder (default: tiny-trained)"
    )
    space.add_argument("--revision", help="branch, tag or commit of the agent")
    space.add_argument("--private", action="store_true", default=None, help="create it as a private Space")
    space.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable that the Space gets as a secret, such as HF_TOKEN for a private agent",
    )
    space.add_argument("--port", type=int, help="where to serve (default: the first free one from 7860 on)")


def _space(arguments: argparse.Namespace) -> int:
    from turnppo_hf.hub.space import push_space, run_space

    kinds: list[Any] = [name for name in ("zero_gpu", "cpu", "static") if getattr(arguments, name)]
    if arguments.action is None:
        if kinds or arguments.secret or arguments.private:
            raise ValueError(
                "--zero_gpu, --cpu, --static, --private and --secret belong to a Space on the Hub, and none would be "
                "made. Say `turnppo space push NAME`, or leave them out to serve the page here."
            )
        return run_space(agent=arguments.agent, revision=arguments.revision, port=arguments.port)
    if arguments.repo_id is None or not kinds:
        raise ValueError(
            "A Space needs a name and a kind of machine; nothing was pushed. Say for example `turnppo space push NAME "
            "--static`, or --cpu or --zero_gpu instead."
        )
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
