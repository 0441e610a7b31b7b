"""Two players and a level in; their episodes side by side and their scores out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levels import judge_level, read_level
from live import SOKOBAN, Limits, limits_of, live_agents, play_live, sokoban_agents
from player import moves_view, plan_view, read_replays

from turnppo_hf.environments.sokoban.environment import ACTIONS
from turnppo_hf.environments.sokoban.rules import SokobanState
from turnppo_hf.environments.sokoban.solver import best_plan

MY_LEVEL = "the level chosen under Live"
BEST = "Best play"
_MAX_NODES = 40_000  # positions that the solver looks at
_SEED = 0  # of the sampling


def contestants() -> list[str]:
    """Return who can be compared on Sokoban: recorded agents, those that play here, and the solver."""
    recorded = [replay.agent for replay in read_replays().values() if replay.group == SOKOBAN]
    return [*dict.fromkeys([*recorded, *sokoban_agents()]), BEST]


def compare(
    left: str, right: str, task: str, level: str
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, str]]:
    """
    Return two episodes on one level, their scores, and a note on them.

    Args:
        left, right (`str`): Two of `contestants`.
        task (`str`): A recorded level, or `MY_LEVEL`.
        level (`str`): The visitor's, as XSB text.
    """
    found = [episode(agent, task, level, beside) for agent, beside in ((left, right), (right, left))]
    missing = [agent for agent, view in zip((left, right), found, strict=True) if view is None]
    note = {"text": "", "kind": ""}
    if missing:
        text = f"{' and '.join(dict.fromkeys(missing))} can only be seen on the recorded levels. Choose one of them."
        note = {"text": text, "kind": "bad"}
    return {"left": found[0], "right": found[1]}, [score(view) for view in found if view is not None], note


def episode(agent: str, task: str, level: str, beside: str) -> dict[str, Any] | None:
    """
    Return an agent's episode: the recorded one, else one played now; None where neither is possible.

    The best play has as much room as the player beside it.
    """
    replays = [replay for replay in read_replays().values() if replay.group == SOKOBAN and replay.task == task]
    for replay in replays:
        if replay.agent == agent:
            return replay.view
    state = read_level(replays[0].view["level"] if replays else level)
    if agent == BEST:
        return best_view(state, limits_of(beside) if beside in sokoban_agents() else recorded_limits())
    if agent not in (names := contestants()):
        raise ValueError(f"There is no player {str(agent)[:60]!r} here. Choose one of {', '.join(names)}.")
    if agent not in live_agents():
        return None
    *_, view = play_live(agent, _SEED, {"level": state.to_text()})
    return view


def best_view(state: SokobanState, limits: Limits) -> dict[str, Any]:
    """Return the best play within an episode's moves, as the solver finds it."""
    plan = best_plan(state, limits.max_actions, max_nodes=_MAX_NODES)
    return plan_view(state, plan, limits.moves_per_turn, BEST)


def recorded_limits() -> Limits:
    """Return what a recorded episode has room for: as much as one of the agent in the package."""
    return limits_of(next(agent.name for agent in live_agents().values() if agent.model == "tiny-trained"))


def score(view: Mapping[str, Any]) -> dict[str, Any]:
    """Return an episode's row in a table of scores."""
    moves = sum(len(turn["moves"]) for turn in view["turns"])
    return {"name": view["agent"], "solved": view["solved"], "moves": moves, "total": view["total"]}


def score_game(played: Mapping[str, Any], agent: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Judge a visitor's moves by the rules, and set them beside an agent's and the best.

    Args:
        played (`Mapping`): `level` and `moves`, as the browser sent them.
        agent (`str`): Who else plays the level.

    Raises:
        `ValueError`: the level or a move is none.
    """
    limits = limits_of(agent)
    text, moves = str(played.get("level", "")), played.get("moves", [])
    report = judge_level(text, limits.max_actions)
    if report.state is None or not report.is_playable:
        raise ValueError(report.message)
    if (
        not isinstance(moves, list)
        or len(moves) > limits.max_actions
        or not all(isinstance(move, str) and move in ACTIONS for move in moves)
    ):
        raise ValueError(
            f"The moves must be at most {limits.max_actions} of {', '.join(ACTIONS)}. Others cannot be carried out. "
            "Start the level again."
        )
    mine = moves_view(report.state, moves, limits.moves_per_turn, "you")
    best = best_view(report.state, limits)
    *_, agents = play_live(agent, _SEED, {"level": report.state.to_text()})
    return [score(view) for view in (mine, agents, best)], {"left": agents, "right": best}
