"""The `turnppo` command: the words behind it in, a command's exit status out."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from turnppo_hf.distribution import DISTRIBUTION, declared
from turnppo_hf.hub.exceptions import PushError
from turnppo_hf.redaction import redact_text
from turnppo_hf.trajectory import (
    EnvironmentFailedError,
    FailedEpisodesError,
    GenerationError,
    NonFiniteError,
    RolloutError,
)

# command -> its module, imported when it is chosen, and one line of help; each module has `add_arguments` and `run`
COMMANDS = {
    "train": ("turnppo_hf.cli.train", "train from a YAML file, evaluating before and after"),
    "configs": ("turnppo_hf.cli.configs", "list the configs in the package, or print one to start your own from"),
    "imitate": ("turnppo_hf.cli.imitate", "train a start for it by imitation of a planner or of episodes"),
    "evaluate": ("turnppo_hf.cli.evaluate", "play held-out episodes and print the score"),
    "panel": ("turnppo_hf.cli.panel", "freeze a list of tasks, with checksums, for scores that compare"),
    "play": ("turnppo_hf.cli.play", "watch one episode, or play it yourself"),
    "card": ("turnppo_hf.cli.card", "write a run's model card and pictures from what it recorded"),
    "push": ("turnppo_hf.cli.push", "push an agent with its card to the Hub"),
    "report": ("turnppo_hf.cli.report", "draw learning curves of finished runs"),
    "study": ("turnppo_hf.cli.study", "train a grid of runs, one thread each, and keep a small result of each"),
    "space": ("turnppo_hf.cli.space", "show agents in the browser, or push that page to the Hub as a Space"),
    "webshop": ("turnppo_hf.cli.webshop", "make WebShop's product files into one world file"),
    "openenv-serve": ("turnppo_hf.cli.openenv_serve", "serve an environment to OpenEnv's clients"),
    "vllm-serve": ("turnppo_hf.cli.vllm_serve", "start vLLM's server so that a trainer can send it weights"),
    "doctor": ("turnppo_hf.cli.doctor", "list what is installed, what will run where and how to get the rest"),
}

# what users can cause; anything else is a mistake of ours and keeps its traceback
_RUN_ENDS = (FailedEpisodesError, GenerationError, NonFiniteError, RolloutError, PushError)
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, EnvironmentFailedError, *_RUN_ENDS)
_OUTPUT_CLOSED = 128 + 13  # what a shell reports of a process that SIGPIPE ended
_EPILOG = (
    "turnppo COMMAND --help lists a command's arguments. turnppo --debug COMMAND shows the traceback of an error."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the process's.

    Returns:
        `int`: 0; 1 where `doctor` found a fault; 2 where the user's input has one; 141 where what read the output
        closed it, as `head` does.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = words[:1] == ["--debug"]
    words = words[1:] if debug else words
    owns_torch = "torch" not in sys.modules  # nobody can have set it up
    try:
        _refuse_unknown_command(words)
        parsed, unknown = build_parser(words[0] if words else None).parse_known_args(words)
        if unknown:
            from turnppo_hf.environments.names import did_you_mean  # it loads Gymnasium, which --help does not need

            hint = did_you_mean(unknown[0], [f"--{name}" for name in vars(parsed)])
            raise ValueError(f"{unknown[0]!r} is no argument of `turnppo {words[0]}`.{hint}")
        parsed.owns_torch = owns_torch
        status = int(parsed.run(parsed))
        sys.stdout.flush()
        return status
    except _USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return _OUTPUT_CLOSED
        if debug:
            raise
        lines = [str(error), *getattr(error, "__notes__", ())]
        print("turnppo: error: " + "\n".join(map(redact_text, lines)), file=sys.stderr)
        return 2


def _output_is_closed() -> bool:
    """Return whether nobody reads the output any longer; what is left of it then goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the end of the process fails on it again
        return True
    return False


def _refuse_unknown_command(words: Sequence[str]) -> None:
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        from turnppo_hf.environments.names import did_you_mean

        hint = did_you_mean(words[0], COMMANDS)
        raise ValueError(f"{words[0]!r} is no command.{hint} There are {', '.join(COMMANDS)}.")


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Return the parser that lists all commands and reads the arguments of the chosen one."""
    parser = argparse.ArgumentParser(
        prog="turnppo",
        description="Turn-level PPO for multi-turn language agents.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {declared().version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
        if name == chosen:
            code = importlib.import_module(module)
            code.add_arguments(command)
            command.set_defaults(run=code.run)
    return parser
