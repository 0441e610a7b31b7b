"""The `turnppo` command: arguments in, a command's result on the terminal out."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from turnppo_hf import serving
from turnppo_hf.release import PushError
from turnppo_hf.trajectory import FailedEpisodesError, GenerationError

if TYPE_CHECKING:
    import gymnasium

    from turnppo_hf.agent import TurnPPOAgent
    from turnppo_hf.evaluation import Summary
    from turnppo_hf.trajectory import Trajectory

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
_MODEL_HELP = (
    "folder that a run saved, model id on the Hub, or tiny-trained (Sokoban, with critic), tiny (where its training "
    "began) or tiny-webshop for the actors in the package"
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
            flags = [f"--{name}" for name in vars(parsed)]
            raise ValueError(
                f"{unknown[0]!r} is no argument of `turnppo {rest[0]}`.{_did_you_mean(unknown[0], flags)}"
            )
        return int(parsed.run(parsed))
    except _USER_ERRORS as error:
        if debug:
            raise
        print(f"turnppo: error: {error}", file=sys.stderr)
        return 2


def _refuse_unknown_command(arguments: Sequence[str]) -> None:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = _did_you_mean(arguments[0], COMMANDS)
        raise ValueError(f"{arguments[0]!r} is no command.{near} There are {', '.join(COMMANDS)}.")


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


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


class _TrainHelp(argparse.Action):
    """`turnppo train --help`: the fields are the dataclasses', so they are loaded only to be printed."""

    def __call__(self, *_: Any) -> None:
        from turnppo_hf.run_config import build_parser as build_train_parser

        build_train_parser().print_help()
        raise SystemExit(0)


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def _add_doctor(commands: Any) -> None:
    summary = "say what is installed, what will run where and how to get the rest"
    doctor = _command(commands, "doctor", _doctor, summary)
    doctor.add_argument("--multi-gpu", action="store_true", help="train two steps under each way to use several GPUs")
    doctor.add_argument("--cpu", action="store_true", help="with --multi-gpu: let two CPU processes stand in for GPUs")


def _add_environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--environment", metavar="ID", help="Gymnasium id (default: the one the model was trained in)")
    parser.add_argument(
        "--environment_kwargs",
        metavar="JSON",
        help="arguments of the environment, on top of those of the model's own (default: none)",
    )


def _train(arguments: Sequence[str]) -> int:
    from turnppo_hf.run_config import parse_run

    run = parse_run(arguments)
    _hide_loading_bars()
    from turnppo_hf.training_run import run_training

    run_training(run)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from turnppo_hf.agent import TurnPPOAgent
    from turnppo_hf.card_pictures import judge_critic
    from turnppo_hf.evaluation import reference_players, summarize
    from turnppo_hf.run_config import HELD_OUT_SEED

    _hide_loading_bars()
    if arguments.push:
        _check_push_of_evaluation(arguments)
    agent = TurnPPOAgent.from_pretrained(arguments.model, revision=arguments.revision)
    defaults = {"episodes": 256, "seed": HELD_OUT_SEED, "temperature": 0.0, **agent.record.get("evaluation", {})}
    chosen = {name: getattr(arguments, name) for name in ("episodes", "seed", "temperature")}
    settings = {name: defaults[name] if value is None else value for name, value in chosen.items()}
    if settings["episodes"] < 1:
        raise ValueError(f"--episodes must be at least 1, got {settings['episodes']}: no episode would be played.")
    name, environment = _environment_of(agent, arguments)
    recorded = defaults.get("tasks") if arguments.seed is None and arguments.environment is None else None
    tasks = recorded or [{"seed": settings["seed"] + number} for number in range(settings["episodes"])]
    tasks = tasks[: settings["episodes"]]
    with tqdm(total=len(tasks), unit=" episodes", disable=None) as bar:
        trajectories = agent.score(
            agent.play_tasks(
                environment, tasks, temperature=settings["temperature"], name=name, on_finished=lambda _: bar.update()
            )
        )
    players = {"model": summarize(trajectories), **reference_players(environment, tasks)}
    critic = judge_critic(trajectories, agent.record)
    head = {"model": arguments.model, "environment": name, "environment_kwargs": environment.keywords, **settings}
    if arguments.json:
        summaries = {player: summary.to_dict() for player, summary in players.items()}
        print(json.dumps({**head, "players": summaries, "critic": critic}, indent=2))
    else:
        _print_evaluation(head, tasks[-1]["seed"], players, critic, trajectories)
    if arguments.push:
        from turnppo_hf.publishing import push_evaluation

        protocol = f"seeds {tasks[0]['seed']} to {tasks[-1]['seed']}, temperature {settings['temperature']:g}"
        commit = push_evaluation(arguments.model, players["model"], protocol=protocol, revision=arguments.revision)
        print(commit.pr_url or commit.commit_url, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def _check_push_of_evaluation(arguments: argparse.Namespace) -> None:
    from turnppo_hf.publishing import check_pushable

    if arguments.environment or arguments.environment_kwargs:
        raise ValueError(
            "--push adds the result to the agent's own benchmark, but --environment or --environment_kwargs plays "
            "another one. Leave them out, or do not push."
        )
    check_pushable(arguments.model)


def _print_evaluation(
    head: Mapping[str, Any],
    last_seed: int,
    players: Mapping[str, Summary],
    critic: Mapping[str, Any] | None,
    trajectories: Sequence[Trajectory],
) -> None:
    from turnppo_hf.evaluation import comparison_table

    model = players["model"]
    print(f"{head['model']} in {head['environment']} {json.dumps(head['environment_kwargs'])}")
    print(
        f"{model.episodes + model.failed} episodes, seeds {head['seed']} to {last_seed}, temperature "
        f"{head['temperature']:g}\n"
    )
    print(comparison_table(players))
    if critic is not None and critic["explained_variance"] is not None:
        print(
            f"\ncritic: explained variance {critic['explained_variance']:.3f} of the returns that followed its values "
            f"before {critic['turns']} turns"
        )
    print("\nstop reasons: " + ", ".join(f"{why} {count}" for why, count in model.stop_reasons.items()))
    if model.failed:
        first = next(str(trajectory.error) for trajectory in trajectories if trajectory.error is not None)
        print(f"{model.failed} episodes failed and are not in these figures; the first: {first}")


def _play(arguments: argparse.Namespace) -> int:
    if arguments.model is None:
        return _play_by_hand(arguments)
    from turnppo_hf.agent import TurnPPOAgent
    from turnppo_hf.play import render_episode

    _hide_loading_bars()
    agent = TurnPPOAgent.from_pretrained(arguments.model)
    name, environment = _environment_of(agent, arguments)
    tasks = [{"seed": arguments.seed}]
    played = agent.play_tasks(environment, tasks, temperature=arguments.temperature, name=name)
    print(render_episode(agent.score(played)[0]))
    return 0


def _play_by_hand(arguments: argparse.Namespace) -> int:
    from turnppo_hf.environments import make_environment
    from turnppo_hf.play import play_by_hand
    from turnppo_hf.run_config import read_json_object

    if arguments.environment is None:
        raise ValueError(
            "Neither a model nor an environment is given, so there is nothing to play. Pass --environment webshop to "
            "play yourself, or a model to watch it."
        )
    kwargs = read_json_object("environment_kwargs", arguments.environment_kwargs)
    environment = make_environment(arguments.environment, **kwargs)
    if "action_format" not in kwargs and hasattr(environment.unwrapped, "action_format"):
        environment = make_environment(arguments.environment, **kwargs, action_format="bare")  # a person types no tags
    play_by_hand(environment, arguments.seed, input, print)
    return 0


def _hide_loading_bars() -> None:
    """Bars of weights that load and save would stand between the lines that are to be read."""
    import datasets
    from transformers.utils.logging import disable_progress_bar

    datasets.disable_progress_bars()
    disable_progress_bar()


def _environment_of(agent: TurnPPOAgent, arguments: argparse.Namespace) -> tuple[str, partial[gymnasium.Env]]:
    """Take the environment from the flags, else from the model's record."""
    from turnppo_hf.run_config import read_json_object

    return agent.environment(
        arguments.environment, **read_json_object("environment_kwargs", arguments.environment_kwargs)
    )


def _card(arguments: argparse.Namespace) -> int:
    from turnppo_hf.publishing import make_card

    _hide_loading_bars()
    print(make_card(arguments.run_folder, repo_id=arguments.repo_id, compare=arguments.compare))
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from turnppo_hf.publishing import push_run

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
    from turnppo_hf.report import learning_curve

    print(learning_curve(arguments.runs, arguments.output, arguments.metric))
    return 0


def _space(arguments: argparse.Namespace) -> int:
    from turnppo_hf.space import push_space, run_space

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


def _webshop_prepare(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from turnppo_hf.environments.webshop_files import find_data, prepare_world

    with tqdm(unit=" products", disable=None) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        meta = prepare_world(
            find_data(arguments.source),
            arguments.output,
            goals=arguments.goals,
            num_products=arguments.num_products,
            seed=arguments.seed,
            progress=show,
        )
    print("\n".join(f"{name:<16}{value}" for name, value in meta.items()))
    print(f'Wrote {arguments.output}; play it with --environment_kwargs \'{{"data": "{arguments.output}"}}\'')
    return 0


def _vllm_serve(arguments: argparse.Namespace) -> int:
    import os
    import shlex

    from turnppo_hf.agent import find_model
    from turnppo_hf.generation.vllm_install import check_vllm
    from turnppo_hf.generation.vllm_server import serve_command

    check_vllm()
    command, environment = serve_command(
        str(find_model(arguments.model)),
        host=arguments.host,
        port=arguments.port,
        dtype=arguments.dtype,
        max_model_length=arguments.max_model_length,
        memory_utilization=arguments.gpu_memory_utilization,
        extra=shlex.split(arguments.vllm_flags),
    )
    os.execve(command[0], command, environment)  # its signals and its exit status are the server's own


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.multi_gpu:
        from turnppo_hf.launch_check import check_launches

        diagnosis = check_launches(cpu=arguments.cpu)
    else:
        from turnppo_hf.doctor import diagnose

        diagnosis = diagnose()
    print(diagnosis.page)
    return 0 if diagnosis.healthy else 1
