"""`turnppo play`: an agent in, one of its episodes on the terminal out; or a person at the terminal plays."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from turnppo_hf.cli.common import (
    MODEL_HELP,
    add_environment,
    check_seed,
    environment_of,
    hide_loading_bars,
    read_json_object,
)
from turnppo_hf.trajectory import StopReason, Trajectory

if TYPE_CHECKING:
    import gymnasium

_WIDTH = 72


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare who plays what."""
    parser.add_argument("model", nargs="?", help=f"{MODEL_HELP}; without one, you play")
    add_environment(parser)
    parser.add_argument("--seed", type=int, default=1_000_000, help="of environment and sampling (%(default)s)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: that of the model's own evaluation)")


def run(arguments: argparse.Namespace) -> int:
    """Play one episode: the agent, or the person where no model is named. Return 1 where the environment failed."""
    check_seed(arguments.seed)
    if arguments.model is None:
        if arguments.temperature is not None:
            raise ValueError(
                "--temperature is of a model's sampling, and no model is named: you play. Leave it out, or name one."
            )
        return _play_by_hand(arguments)
    from turnppo_hf.agent import TurnPPOAgent

    hide_loading_bars()
    agent = TurnPPOAgent.from_pretrained(arguments.model)
    name, environment = environment_of(agent, arguments)
    tasks = [{"seed": arguments.seed}]
    played = agent.play_tasks(environment, tasks, temperature=arguments.temperature, name=name)
    print(render_episode(agent.score(played)[0]))
    return int(played[0].stop_reason is StopReason.ERROR)


def render_episode(trajectory: Trajectory) -> str:
    """
    Return an episode as text: each turn's observation, response, action, reward, penalty and value, and the ending.

    Args:
        trajectory (`Trajectory`): Its turns show `value` where a critic scored them.
    """
    lines = [f"{trajectory.environment}, seed {trajectory.seed}"]
    for number, turn in enumerate(trajectory.turns, start=1):
        value = "" if turn.value is None else f"critic's value {turn.value:.2f} "
        lines += [f"-- turn {number} {value}".ljust(_WIDTH, "-"), turn.observation, "", f"response  {turn.completion}"]
        if turn.finish_reason == "length":
            lines.append("          (cut at its token limit)")
        if turn.action != turn.completion:
            lines.append(f"action    {turn.action or '(none understood)'}")
        penalty = f"   format penalty {turn.penalty:g}" if turn.penalty else ""
        lines.append(f"reward    {turn.reward:g}{penalty}")
    lines.append("-" * _WIDTH)
    if trajectory.error is not None:
        lines.append(f"The environment failed: {trajectory.error}")
    turns = "1 turn" if len(trajectory.turns) == 1 else f"{len(trajectory.turns)} turns"
    lines.append(
        f"{trajectory.stop_reason.value} after {turns}   return {trajectory.total_reward:g}   "
        f"format penalties {trajectory.total_penalty:g}"
    )
    return "\n".join(lines)


def play_by_hand(
    environment: gymnasium.Env[str, str], seed: int, read: Callable[[str], str], write: Callable[[str], object]
) -> None:
    """
    Let a person play one episode, with the texts and by the rules that a model gets.

    Args:
        environment (`gymnasium.Env`): With Text spaces.
        seed (`int`): The environment is reset with it.
        read (`Callable`): Shows a prompt and returns a line, as `input` does; the end of the input, or an interrupt,
            leaves the game.
        write (`Callable`): Shows a text, as `print` does.
    Raises:
        `TypeError`, `ValueError`: what `reset` or `step` returned would not count in an agent's episode either.
    """
    from turnppo_hf.environments.conversation import TextEnvironment  # it loads Gymnasium, which --help does not need

    conversation = TextEnvironment(environment)
    observation = conversation.open({}, seed).observation
    if grammar := getattr(environment.unwrapped, "action_grammar", ""):
        write(f"An answer: {grammar}. Ctrl-D leaves.\n")
    total, num_turns = 0.0, 0
    stop: StopReason | None = None
    while stop is None:
        write(observation)
        try:
            line = read("> ")
        except (EOFError, KeyboardInterrupt):
            break
        reply = conversation.read({"role": "assistant", "content": line})
        observation, total, num_turns = reply.messages[0]["content"], total + reply.reward, num_turns + 1
        stop = StopReason.of_reply(reply.terminated, reply.truncated, reply.info)
        if not reply.info.get("action", line):
            write("(not understood: nothing happened)")
        write("-" * _WIDTH)
    ending = "left"
    if stop is not None:
        write(observation)
        ending = "solved" if stop is StopReason.SOLVED else "over"
    write(f"{ending} after {num_turns} turn{'s' * (num_turns != 1)}   return {total:g}")


def _play_by_hand(arguments: argparse.Namespace) -> int:
    from turnppo_hf.environments import full_id, make_environment
    from turnppo_hf.environments.exits import failures_as_errors

    if arguments.environment is None:
        raise ValueError(
            "Neither a model nor an environment is given, so there is nothing to play. Pass --environment webshop to "
            "play yourself, or a model to watch it."
        )
    kwargs = read_json_object("environment_kwargs", arguments.environment_kwargs)
    if full_id(arguments.environment).startswith("turnppo_hf/"):
        kwargs = {"action_format": "bare", **kwargs}  # a person types no tags
    environment = make_environment(arguments.environment, **kwargs)
    with failures_as_errors(f"The environment {arguments.environment!r}"):
        play_by_hand(environment, arguments.seed, input, print)
    return 0
