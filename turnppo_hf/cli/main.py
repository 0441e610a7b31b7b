"""The `turnppo` command: arguments in, a command's result on the terminal out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from turnppo_hf.cli import openenv_serve as serving
from turnppo_hf.cli.common import _MODEL_HELP, _add_environment, _command, _hide_loading_bars
from turnppo_hf.cli.evaluate import _evaluate
from turnppo_hf.cli.play import _play
from turnppo_hf.cli.space import _add_space
from turnppo_hf.cli.vllm_serve import _vllm_serve
from turnppo_hf.cli.webshop import _webshop_prepare
from turnppo_hf.hub.exceptions import PushError
from turnppo_hf.trajectory import FailedEpisodesError, GenerationError

if TYPE_CHECKING:
    pass

COMMANDS = (
    *("train", "evaluate", "play", "card", "push", "report", "space"),
    *("webshop", "openenv-serve", "vllm-serve", "doctor"),
)

# what users can cause; anything else is a mistake of ours and keeps its traceback
_USER_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    FailedEpisodesError,
    GenerationError,
    PushError,
)
_EPILOG = (
    "turnppo COMMAND --help tells a command's arguments. turnppo --debug COMMAND shows the traceback of an error."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the process's.

    Returns:
        `int`: 0; 1 where `doctor` found a fault; 2 where the user's input has one.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments)
    debug = rest[:1] == ["--debug"]
    rest = rest[1:] if debug else rest
    try:
        if rest[:1] == ["train"] and not {"-h", "--help"} & set(rest[1:]):
            return _train(rest[1:])
        parser = build_parser()
        _refuse_unknown_command(rest)
        parsed, unknown = parser.parse_known_args(rest)
        if unknown:
            from turnppo_hf.environments.names import did_you_mean  # it loads Gymnasium, which --help does not need

            hint = did_you_mean(unknown[0], [f"--{name}" for name in vars(parsed)])
            raise ValueError(f"{unknown[0]!r} is no argument of `turnppo {rest[0]}`.{hint}")
        return int(parsed.run(parsed))
    except _USER_ERRORS as error:
        if debug:
            raise
        print(f"turnppo: error: {error}", file=sys.stderr)
        return 2


def _refuse_unknown_command(arguments: Sequence[str]) -> None:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        from turnppo_hf.environments.names import did_you_mean

        hint = did_you_mean(arguments[0], COMMANDS)
        raise ValueError(f"{arguments[0]!r} is no command.{hint} There are {', '.join(COMMANDS)}.")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command; that of `train` is TRL's and is built when needed."""
    parser = argparse.ArgumentParser(
        prog="turnppo",
        description="Turn-level PPO for multi-turn language agents.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"turnppo-hf {metadata.version('turnppo-hf')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train from a YAML file, evaluating before and after", add_help=False)
    train.add_argument("-h", "--help", action=_TrainHelp, nargs=0)
    train.add_argument("config", nargs="?")

    evaluate = _command(commands, "evaluate", _evaluate, "play held-out episodes and print the score")
    evaluate.add_argument("model", help=_MODEL_HELP)
    _add_environment(evaluate)
    evaluate.add_argument("--episodes", type=int, help="number of episodes (default: the run's own, or 256)")
    evaluate.add_argument("--seed", type=int, help="first seed, counting up (default: the run's own, or 1000000)")
    evaluate.add_argument("--temperature", type=float, help="0 is greedy (default: the run's own, or 0)")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    evaluate.add_argument("--revision", help="branch, tag or commit on the Hub (default: the main branch)")
    evaluate.add_argument(
        "--push", action="store_true", help="add the result to the model's repository: in another's, as a pull request"
    )

    play = _command(commands, "play", _play, "watch one episode, or play it yourself")
    play.add_argument("model", nargs="?", help=f"{_MODEL_HELP}; without one, you play")
    _add_environment(play)
    play.add_argument("--seed", type=int, default=1_000_000, help="of the environment and the sampling (%(default)s)")
    play.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")

    card = _command(commands, "card", _card, "write a run's model card and pictures from what it recorded")
    card.add_argument("run_folder", metavar="RUN", help="folder of a run, or a checkpoint in it")
    card.add_argument("--repo_id", help="where it will be pushed, for the commands in the card")
    card.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help="runs on the same held-out tasks to show beside it"
    )

    push = _command(commands, "push", _push, "push an agent with its card to the Hub")
    push.add_argument("run_folder", metavar="RUN", help="folder of a run, a checkpoint in it, or tiny-trained")
    push.add_argument("repo_id", help="name, or namespace/name")
    push.add_argument("--private", action="store_true", default=None, help="create it as a private repository")
    push.add_argument("--revision", help="branch (default: main)")
    push.add_argument("--create_pr", action="store_true", help="open a pull request instead of a commit")
    push.add_argument("--message", default="Upload agent", help="title of the commit (%(default)s)")
    push.add_argument("--collection", help="title or slug of a collection to show them in")
    push.add_argument("--episodes", metavar="DATASET", help="push the held-out episodes to this dataset, too")

    report = _command(commands, "report", _report, "draw learning curves of finished runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its results.json")
    report.add_argument("--metric", choices=["success", "return"], default="success", help="(%(default)s)")
    report.add_argument("--output", default="learning_curve.png", help="picture to write (%(default)s)")

    _add_space(commands)

    webshop = _command(commands, "webshop", _webshop_prepare, "make WebShop's product files into one world file")
    webshop.add_argument("action", choices=["prepare"], help="read the files, write the world")
    webshop.add_argument("source", help="folder with the files, one of its catalogue files, or dataset id on the Hub")
    webshop.add_argument("--output", help="file to write (default: webshop.world)", default="webshop.world")
    webshop.add_argument("--goals", choices=["synthetic", "human"], default="synthetic", help="(%(default)s)")
    webshop.add_argument("--num_products", type=int, help="only the first ones (default: all)")
    webshop.add_argument("--seed", type=int, default=0, help="of drawn prices and price caps (%(default)s)")

    _add_servers(commands)
    _add_doctor(commands)
    return parser


def _add_servers(commands: Any) -> None:
    openenv = _command(
        commands, "openenv-serve", serving.serve_environment, "serve an environment to OpenEnv's clients"
    )
    serving.add_arguments(openenv)

    serve = _command(commands, "vllm-serve", _vllm_serve, "start vLLM's server so that a trainer can send it weights")
    serve.add_argument("model", help=_MODEL_HELP)
    serve.add_argument("--host", default="127.0.0.1", help="who reaches it may set its weights (%(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    serve.add_argument("--dtype", default="float32", help="the trainer's: float32, or bfloat16 (%(default)s)")
    serve.add_argument("--max_model_length", type=int, help="tokens of prompt and response (default: the model's)")
    serve.add_argument("--gpu_memory_utilization", type=float, help="share of its memory (default: 0.9, on CPU 0.3)")
    serve.add_argument("--vllm_flags", default="", help="further flags of vLLM's own server, in one string")


class _TrainHelp(argparse.Action):
    """`turnppo train --help`: the fields are the dataclasses', so they are loaded only to be printed."""

    def __call__(self, *_: Any) -> None:
        from turnppo_hf.cli.train_arguments import build_parser as build_train_parser

        build_train_parser().print_help()
        raise SystemExit(0)


def _add_doctor(commands: Any) -> None:
    summary = "say what is installed, what will run where and how to get the rest"
    doctor = _command(commands, "doctor", _doctor, summary)
    doctor.add_argument("--multi-gpu", action="store_true", help="train two steps under each way to use several GPUs")
    doctor.add_argument("--cpu", action="store_true", help="with --multi-gpu: let two CPU processes stand in for GPUs")


def _train(arguments: Sequence[str]) -> int:
    from turnppo_hf.cli.train_arguments import parse_run

    run = parse_run(arguments)
    _hide_loading_bars()
    from turnppo_hf.cli.train import run_training

    run_training(run)
    return 0


def _card(arguments: argparse.Namespace) -> int:
    from turnppo_hf.cli.publish import make_card

    _hide_loading_bars()
    print(make_card(arguments.run_folder, repo_id=arguments.repo_id, compare=arguments.compare))
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from turnppo_hf.cli.publish import push_run

    _hide_loading_bars()
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


def _report(arguments: argparse.Namespace) -> int:
    from turnppo_hf.evaluation.learning_curve import learning_curve

    print(learning_curve(arguments.runs, arguments.output, arguments.metric))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.multi_gpu:
        from turnppo_hf.cli.launch_check import check_launches

        diagnosis = check_launches(cpu=arguments.cpu)
    else:
        from turnppo_hf.cli.doctor import diagnose

        diagnosis = diagnose()
    print(diagnosis.page)
    return 0 if diagnosis.healthy else 1
