"""`turnppo openenv-serve`: an environment's id in, OpenEnv's server of it out."""

from __future__ import annotations

import argparse
from functools import partial

from turnppo_hf.cli.common import check_port, read_json_object
from turnppo_hf.environments import make_environment
from turnppo_hf.environments.exits import close_unused
from turnppo_hf.environments.reading import read_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which environment is served, and where."""
    parser.add_argument("environment", metavar="ID", help="Gymnasium id, such as sokoban")
    parser.add_argument("--environment_kwargs", metavar="JSON", help="arguments of the environment (default: none)")
    parser.add_argument("--host", default="127.0.0.1", help="who reaches it may play (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument("--max_sessions", type=int, default=256, help="episodes at a time (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """
    Serve until interrupted.

    Raises:
        `ValueError`: the environment cannot be made as asked, or no such port exists.
        [`~turnppo_hf.trajectory.EnvironmentFailedError`]: its code fails.
        `ImportError`: OpenEnv is not installed.
    """
    check_port(arguments.port)
    most = read_count("max_sessions", arguments.max_sessions)
    from turnppo_hf.environments.integrations.openenv_server import serve

    kwargs = read_json_object("environment_kwargs", arguments.environment_kwargs)
    make = partial(make_environment, arguments.environment, **kwargs)
    close_unused(make())  # a wrong id or argument fails here, not at the first client
    serve(arguments.environment, make, arguments.host, arguments.port, most)
    return 0
