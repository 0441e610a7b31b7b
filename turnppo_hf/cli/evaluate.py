"""`turnppo evaluate`: an agent in, its score on held-out episodes out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from turnppo_hf.cli.common import MODEL_HELP, add_environment, environment_of, hide_loading_bars

if TYPE_CHECKING:
    from turnppo_hf.evaluation.calibration import CriticJudgement
    from turnppo_hf.evaluation.summary import Summary
    from turnppo_hf.trajectory import Trajectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which agent plays which episodes."""
    parser.add_argument("model", help=MODEL_HELP)
    add_environment(parser)
    parser.add_argument("--episodes", type=int, help="number of episodes (default: the run's own, or 256)")
    parser.add_argument("--seed", type=int, help="first seed, counting up (default: the run's own, or 1000000)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the run's own, or 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub (default: the main branch)")
    parser.add_argument(
        "--push", action="store_true", help="add the result to the model's repository: in another's, as a pull request"
    )


def run(arguments: argparse.Namespace) -> int:
    """Play, print the score, and push it where asked."""
    from tqdm import tqdm

    from turnppo_hf.agent import TurnPPOAgent
    from turnppo_hf.cli.train_arguments import HELD_OUT_SEED
    from turnppo_hf.evaluation.calibration import judge_critic
    from turnppo_hf.evaluation.summary import reference_players, summarize
    from turnppo_hf.redaction import redact

    hide_loading_bars()
    if arguments.push:
        _check_push_of_evaluation(arguments)
    agent = TurnPPOAgent.from_pretrained(arguments.model, revision=arguments.revision)
    held_out = agent.record.evaluation
    settings: dict[str, Any] = {}
    for name, default in (("episodes", 256), ("seed", HELD_OUT_SEED), ("temperature", 0.0)):
        values = (getattr(arguments, name), getattr(held_out, name), default)
        settings[name] = next(value for value in values if value is not None)
    if settings["episodes"] < 1:
        raise ValueError(f"--episodes must be at least 1, got {settings['episodes']}: no episode would be played.")
    name, environment = environment_of(agent, arguments)
    recorded = held_out.tasks if arguments.seed is None and arguments.environment is None else None
    tasks = list(recorded or ({"seed": settings["seed"] + number} for number in range(settings["episodes"])))
    tasks = tasks[: settings["episodes"]]
    with tqdm(total=len(tasks), unit=" episodes", disable=None) as bar:
        trajectories = agent.score(
            agent.play_tasks(
                environment, tasks, temperature=settings["temperature"], name=name, on_finished=lambda _: bar.update()
            )
        )
    players = {"model": summarize(trajectories), **reference_players(environment, tasks)}
    critic = judge_critic(trajectories, agent.record.turn_discounts[0])
    head = {
        "model": arguments.model,
        "environment": name,
        "environment_kwargs": redact(environment.keywords),
        **settings,
    }
    if arguments.json:
        summaries = {player: summary.to_dict() for player, summary in players.items()}
        print(json.dumps({**head, "players": summaries, "critic": critic and asdict(critic)}, indent=2))
    else:
        _print_evaluation(head, tasks[-1]["seed"], players, critic, trajectories)
    if arguments.push:
        from turnppo_hf.cli.publish import push_evaluation

        protocol = f"seeds {tasks[0]['seed']} to {tasks[-1]['seed']}, temperature {settings['temperature']:g}"
        commit = push_evaluation(arguments.model, players["model"], protocol=protocol, revision=arguments.revision)
        print(commit.pr_url or commit.commit_url, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def _check_push_of_evaluation(arguments: argparse.Namespace) -> None:
    from turnppo_hf.cli.publish import check_pushable

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
    critic: CriticJudgement | None,
    trajectories: Sequence[Trajectory],
) -> None:
    from turnppo_hf.evaluation.summary import comparison_table
    from turnppo_hf.redaction import redact_text

    model = players["model"]
    print(f"{head['model']} in {head['environment']} {json.dumps(head['environment_kwargs'])}")
    print(
        f"{model.episodes + model.failed} episodes, seeds {head['seed']} to {last_seed}, temperature "
        f"{head['temperature']:g}\n"
    )
    print(comparison_table(players))
    if critic is not None and critic.explained_variance is not None:
        print(
            f"\ncritic: explained variance {critic.explained_variance:.3f} of the returns that followed its values "
            f"before {critic.turns} turns"
        )
    print("\nstop reasons: " + ", ".join(f"{why} {count}" for why, count in model.stop_reasons.items()))
    if model.failed:
        first = next(str(trajectory.error) for trajectory in trajectories if trajectory.error is not None)
        print(f"{model.failed} episodes failed and are not in these figures; the first: {redact_text(first)}")
