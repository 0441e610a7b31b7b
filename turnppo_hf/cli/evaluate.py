"""`turnppo evaluate`: an agent, any model or an endpoint in, its score on held-out episodes or a panel out."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from turnppo_hf.cli.common import (
    MODEL_HELP,
    add_environment,
    check_seed,
    environment_of,
    hide_loading_bars,
    read_json_object,
)
from turnppo_hf.cli.players import AgentPlayer, EndpointPlayer, add_player, check_player

if TYPE_CHECKING:
    from turnppo_hf.evaluation.calibration import CriticJudgement
    from turnppo_hf.evaluation.summary import Summary
    from turnppo_hf.trajectory import Trajectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare who plays which episodes."""
    add_player(parser, MODEL_HELP)
    add_environment(parser)
    parser.add_argument("--panel", metavar="FOLDER|REPO", help="frozen tasks of `turnppo panel`, instead of seeds")
    parser.add_argument("--output", metavar="FOLDER", help="for results.json (default: panel_results/PANEL/MODEL)")
    parser.add_argument("--compare", metavar="RESULTS", help="results.json on the panel: count episodes that differ")
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
    hide_loading_bars()
    check_player(arguments)
    if arguments.seed is not None:
        check_seed(arguments.seed)
    if arguments.temperature is not None and not 0 <= arguments.temperature < math.inf:
        raise ValueError(
            f"--temperature must be 0 (greedy) or positive and finite, got {arguments.temperature}: nothing could be "
            "drawn. Leave it out to sample as the agent was judged."
        )
    if arguments.episodes is not None and arguments.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {arguments.episodes}: no episode would be played.")
    if arguments.panel is not None:
        from turnppo_hf.cli.evaluate_panel import evaluate_panel

        return evaluate_panel(arguments)
    for name in ("output", "compare"):
        if getattr(arguments, name) is not None:
            raise ValueError(
                f"--{name} is of results on a panel, and no --panel is given, so it would have no effect. Leave it "
                "out, or name a panel."
            )
    if arguments.push:
        _check_push_of_evaluation(arguments)
    return _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> int:
    """Play episodes of seeds, or of a run's own held-out tasks."""
    from tqdm import tqdm

    from turnppo_hf.cli.train_arguments import HELD_OUT_SEED
    from turnppo_hf.evaluation.calibration import judge_critic
    from turnppo_hf.evaluation.json_fields import write_fields
    from turnppo_hf.evaluation.summary import count_openings, reference_players, summarize
    from turnppo_hf.hub.agent_record import AgentRecord, resolve_environment
    from turnppo_hf.redaction import redact

    player: AgentPlayer | EndpointPlayer
    if arguments.endpoint is None:
        player = AgentPlayer(arguments)
        record = player.agent.record
        name, environment = environment_of(player.agent, arguments)
    else:
        player, record = EndpointPlayer(arguments, arguments.temperature or 0.0), AgentRecord()
        kwargs = read_json_object("environment_kwargs", arguments.environment_kwargs)
        name, environment = resolve_environment(
            record, arguments.environment, kwargs, model=player.name, is_local=True
        )
    held_out = record.evaluation
    settings: dict[str, Any] = {}
    for key, default in (("episodes", 256), ("seed", HELD_OUT_SEED), ("temperature", 0.0)):
        values = (getattr(arguments, key), getattr(held_out, key), default)
        settings[key] = next(value for value in values if value is not None)
    recorded = held_out.tasks if arguments.seed is None and record.is_of(name) else None
    tasks = list(recorded or ({"seed": settings["seed"] + number} for number in range(settings["episodes"])))
    if recorded and settings["episodes"] > len(tasks) and arguments.episodes is not None:
        raise ValueError(
            f"--episodes is {arguments.episodes}, but the agent is judged on {len(tasks)} recorded tasks, so no more "
            "are there. Leave it out, or name the first of other seeds with --seed."
        )
    tasks = tasks[: settings["episodes"]]
    settings["episodes"] = len(tasks)
    played_on = f"seeds {tasks[0]['seed']} to {tasks[-1]['seed']}"
    if recorded:
        settings["seed"], played_on = None, "the recorded tasks"
    with tqdm(total=len(tasks), unit=" episodes", disable=None) as bar:
        trajectories = player.play(
            environment,
            tasks,
            temperature=settings["temperature"],
            name=name,
            on_finished=lambda _: bar.update(),
        )
    limits = record.limits or {}
    references = reference_players(environment, tasks, max_turns=limits.get("max_turns"))
    players = {"model": summarize(trajectories), **references}
    critic = judge_critic(trajectories, record.turn_discounts[0])
    head = {
        "model": player.name,
        "environment": name,
        "environment_kwargs": redact(environment.keywords),
        **settings,
        "distinct_openings": count_openings(trajectories),
    }
    if arguments.json:
        summaries = {who: summary.to_dict() for who, summary in players.items()}
        print(json.dumps({**head, "players": summaries, "critic": critic and write_fields(critic)}, indent=2))
    else:
        _print_evaluation(head, played_on, players, critic, trajectories)
        if isinstance(player, EndpointPlayer):
            print(player.report())
    if arguments.push:
        from turnppo_hf.cli.publish import push_evaluation

        protocol = f"{played_on}, temperature {settings['temperature']:g}"
        commit = push_evaluation(arguments.model, players["model"], protocol=protocol)
        print(commit.pr_url or commit.commit_url, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def _check_push_of_evaluation(arguments: argparse.Namespace) -> None:
    from turnppo_hf.cli.publish import check_pushable

    if arguments.endpoint is not None:
        raise ValueError(
            "--push adds the result to the model's repository, and a model behind an endpoint has none. Leave it out."
        )
    if arguments.environment or arguments.environment_kwargs:
        raise ValueError(
            "--push adds the result to the agent's own benchmark, but --environment or --environment_kwargs plays "
            "another one. Leave them out, or do not push."
        )
    check_pushable(arguments.model, arguments.revision)


def _print_evaluation(
    head: Mapping[str, Any],
    played_on: str,
    players: Mapping[str, Summary],
    critic: CriticJudgement | None,
    trajectories: Sequence[Trajectory],
) -> None:
    from turnppo_hf.evaluation.summary import comparison_table, describe_openings
    from turnppo_hf.redaction import redact_text

    model = players["model"]
    print(f"{head['model']} in {head['environment']} {json.dumps(head['environment_kwargs'])}")
    print(f"{model.episodes + model.failed} episodes, {played_on}, temperature {head['temperature']:g}\n")
    print(comparison_table(players))
    print(describe_openings(trajectories), end="")
    if critic is not None and critic.explained_variance is not None:
        print(
            f"\ncritic: explained variance {critic.explained_variance:.3f} of the returns that followed its values "
            f"before {critic.turns} turns"
        )
    print("\nstop reasons: " + ", ".join(f"{why} {count}" for why, count in model.stop_reasons.items()))
    if model.failed:
        first = next(str(trajectory.error) for trajectory in trajectories if trajectory.error is not None)
        print(f"{model.failed} episodes failed and are not in these figures; the first: {redact_text(first)}")
