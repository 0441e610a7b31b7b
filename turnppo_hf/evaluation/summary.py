"""Trajectories of held-out tasks in, a summary with intervals out, beside random and optimal play of the same ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from turnppo_hf.environments.conversation import Reply, TextEnvironment
from turnppo_hf.environments.exits import close_unused, describe_error, exits_as_errors
from turnppo_hf.evaluation.outcome import Outcome, Summary, summarize_outcomes
from turnppo_hf.rollout.endpoint_episodes import MAX_TURNS
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

_NO_WAY = "no_way_on"  # metric of an episode that ended because its player had no way on


def summarize(trajectories: Sequence[Trajectory]) -> Summary:
    """
    Summarise episodes.

    Raises:
        `ValueError`: no episode, or every one failed; the message holds the first failure.
    """
    return summarize_outcomes([Outcome.of(trajectory) for trajectory in trajectories])


def reference_players(
    environment: Callable[[], gymnasium.Env],
    tasks: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    max_turns: int | None = None,
) -> dict[str, Summary]:
    """
    Play the same tasks at random, by a script and optimally, where the environment offers it.

    An environment offers a reference by a method of its own: `random_completion(rng)` returns one turn's text,
    `expert_completions()` and `optimal_completions()` return the texts of the next turns, up to the episode's end.

    Args:
        environment (`Callable`): Builds an environment.
        tasks (`Sequence[Mapping]`): Rows with a `seed`; other columns are the reset's options.
        seed (`int`, *optional*, defaults to `0`): Seeds the random player.
        max_turns (`int`, *optional*): Of an episode, as the agent that they stand beside has. Defaults to 1000.

    Returns:
        `dict[str, Summary]`: `"random"`, `"expert"` and `"optimal"`, as far as the environment offers them and they
        played an episode to its end. Failed episodes are in no figure, and a warning tells of them, as it does of
        those in which the player has no way on.
    """
    world, rng = environment(), np.random.default_rng(seed)
    found: dict[str, Summary] = {}
    try:
        for name in reference_choices(world, rng):
            played = []
            for task in tasks:
                try:
                    with exits_as_errors("The environment"):
                        choose = reference_choices(world, rng)[name]
                        played.append(play_reference(world, task, choose, max_turns or MAX_TURNS))
                except Exception as error:  # its episode's alone, as a model's is
                    played.append(_failed(task, error))
                    close_unused(world)
                    world = environment()
            failed = [item for item in played if item.stop_reason is StopReason.ERROR]
            if failed:
                warnings.warn(
                    f"{len(failed)} of {len(tasks)} episodes of the {name} player failed and are not in its figures; "
                    f"the first: {failed[0].error}",
                    stacklevel=2,
                )
            if stuck := sum(_NO_WAY in item.metrics for item in played):
                warnings.warn(
                    f"The {name} player has no way on in {stuck} of {len(tasks)} episodes: they ended there, without "
                    "the goal, and are in its figures.",
                    stacklevel=2,
                )
            if len(failed) < len(played):
                found[name] = summarize(played)
        return found
    finally:
        close_unused(world)


def reference_choices(world: gymnasium.Env, rng: np.random.Generator) -> dict[str, Callable[[], Sequence[str]]]:
    """Return by the player's name what gives the texts of its next turns, as far as the environment offers it."""
    players: dict[str, Callable[[], Sequence[str]]] = {}
    if hasattr(world.unwrapped, "random_completion"):
        players["random"] = lambda: [world.unwrapped.random_completion(rng)]  # type: ignore[attr-defined]
    for name in ("expert", "optimal"):
        if hasattr(world.unwrapped, f"{name}_completions"):
            players[name] = getattr(world.unwrapped, f"{name}_completions")
    return players


def count_openings(trajectories: Sequence[Trajectory]) -> int:
    """Return how many of the episodes that were played began differently: by prompt, observation or state."""
    first = [(item.task.get("prompt"), item.turns[0]) for item in trajectories if item.turns]
    return len({(repr(prompt), turn.observation, turn.state) for prompt, turn in first})


def describe_openings(trajectories: Sequence[Trajectory]) -> str:
    """Return what intervals of episodes that began alike leave out, as a line; nothing where no two did."""
    played, openings = sum(bool(item.turns) for item in trajectories), count_openings(trajectories)
    if openings == played:
        return ""
    return (
        f"{played} episodes with {openings} distinct opening{'s' * (openings != 1)}: where the same opening is the "
        "same level, the intervals are of the sampling there, not of new levels\n"
    )


def comparison_table(rows: Mapping[str, Summary]) -> str:
    """Return summaries as a table, one player a line."""
    header = ("", "success (95 % interval)", "return", "turns", "invalid turns", "penalty")
    lines = [header, *((name, *_cells(summary)) for name, summary in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(summary: Summary) -> tuple[str, ...]:
    success = "not defined"
    if summary.success_rate is not None:
        success = f"{summary.success_rate:.3f} ({summary.success_low:.3f} to {summary.success_high:.3f})"
    return (
        success,
        f"{summary.mean_return:.2f} +- {summary.return_error:.2f}",
        f"{summary.mean_turns:.2f}",
        f"{summary.invalid_turns:.3f}",
        f"{summary.mean_penalty:.2f}",
    )


def _failed(task: Mapping[str, Any], error: BaseException) -> Trajectory:
    return Trajectory(dict(task), "", task["seed"], (), StopReason.ERROR, error=describe_error(error))


def play_reference(
    environment: gymnasium.Env,
    task: Mapping[str, Any],
    choose: Callable[[], Sequence[str]],
    max_turns: int = MAX_TURNS,
) -> Trajectory:
    """
    Play one episode with texts instead of a model.

    It ends as a model's does, and as terminated where `choose` returns no text: the player has no way on.
    """
    conversation = TextEnvironment(environment)
    observation = conversation.open(task, task["seed"]).observation
    turns: list[Turn] = []
    stop: StopReason | None = None
    metrics: dict[str, float] = {}
    while stop is None and len(turns) < max_turns and (texts := choose()):
        for text in texts[: max_turns - len(turns)]:
            reply = conversation.read({"role": "assistant", "content": text})
            turns.append(_reference_turn(observation, text, reply))
            observation, solved = reply.messages[0]["content"], reply.info.get("solved")
            metrics = {} if solved is None else {"solved": float(solved)}
            stop = StopReason.of_reply(reply.terminated, reply.truncated, reply.info)
            if stop is not None:
                break
    if stop is None and len(turns) < max_turns:
        stop, metrics[_NO_WAY] = StopReason.TERMINATED, 1.0
    return Trajectory(
        task=dict(task),
        environment="",
        seed=task["seed"],
        turns=tuple(turns),
        stop_reason=stop or StopReason.TURN_LIMIT,
        metrics=metrics,
    )


def _reference_turn(observation: str, text: str, reply: Reply) -> Turn:
    return Turn(
        prompt_ids=(),
        completion_ids=(),
        sampling_logprobs=(),
        observation=observation,
        completion=text,
        action=str(reply.info.get("action", text)),
        reward=reply.reward,
        penalty=float(reply.info.get("penalty", 0.0)),
        finish_reason="stop",
    )
