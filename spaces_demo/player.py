"""An episode in, what the page draws of it out: plain data, made without any model in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from turnppo_hf.environments.sokoban.environment import ACTIONS
from turnppo_hf.environments.sokoban.rules import SokobanState
from turnppo_hf.environments.sokoban.solver import Plan
from turnppo_hf.evaluation.replay import ending, sokoban_states
from turnppo_hf.trajectory import Trajectory, Turn

REPLAYS = Path(__file__).parent / "replays"

_MOVE_NAMES = {number: name for name, number in ACTIONS.items()}


@dataclass(frozen=True)
class Replay:
    """A recorded episode, e.g. `Replay(key="turn_ppo-1", agent="Turn-PPO", group="Sokoban", view={...})`."""

    key: str  # stands in links
    agent: str
    group: str  # episodes of one group may be compared: they are of the same world
    task: str  # the same for every agent that played it
    label: str
    view: dict[str, Any]


def episode_view(
    trajectory: Trajectory,
    *,
    agent: str,
    gamma: float = 1.0,
    prompts: Sequence[str] = (),
    pages: Sequence[Mapping[str, Any]] = (),
    note: str = "",
    is_running: bool = False,
) -> dict[str, Any]:
    """
    Return what the page draws of an episode.

    Args:
        trajectory (`Trajectory`): With values and advantages in its turns where there is a critic.
        agent (`str`): Who played.
        gamma (`float`, *optional*, defaults to `1.0`): Discount per turn of the critic.
        prompts (`Sequence[str]`, *optional*): Everything the model read before each turn; else its last observation.
        pages (`Sequence[Mapping]`, *optional*): A shop's page before each turn and after the last, see `shop.py`.
        note (`str`, *optional*): A note on the world, such as that it is synthetic.
        is_running (`bool`, *optional*): Further turns will follow, so there is no ending and no return yet.
    """
    turns = trajectory.turns
    boards = None if pages else sokoban_states(trajectory)
    returns = [None] * len(turns) if is_running else realised_returns(trajectory, gamma)
    errors = td_errors(trajectory, gamma, is_running=is_running)
    name, why = ("Playing", "the next turn follows") if is_running else ending(trajectory)
    frames = []
    for index, turn in enumerate(turns):
        seen: dict[str, Any] = {"text": turn.observation}
        if boards is not None:
            seen = {"boards": [state.render().split("\n") for state in boards[index]]}
        elif pages:
            seen = {"page": pages[index]}
        frames.append(
            {
                **seen,
                "action": turn.action,
                "moves": [word for word in turn.action.split() if word in ACTIONS] if boards else [],
                "response": turn.completion,
                "prompt": prompts[index] if prompts else turn.observation,
                "reward": turn.reward,
                "penalty": turn.penalty,
                "value": turn.value,
                "td_error": errors[index],
                "advantage": turn.advantage,
                "return": returns[index],
            }
        )
    return {
        "agent": agent,
        "world": trajectory.environment.rpartition("/")[2],
        "seed": trajectory.seed,
        "level": boards[0][0].to_text() if boards else None,
        "note": note,
        "running": is_running,
        "solved": trajectory.solved and not is_running,
        "ending": name,
        "why": why,
        "total": trajectory.total_reward,
        "gamma": gamma,
        "has_critic": any(turn.value is not None for turn in turns),
        "turns": frames,
        "last_page": pages[len(turns)] if len(pages) > len(turns) else None,
        "record": None if is_running else trajectory.to_dict(),
    }


def realised_returns(trajectory: Trajectory, gamma: float) -> list[float | None]:
    """
    Return the discounted return from each turn on, penalties included; None where a cut hides the rest.

    As in `turnppo_hf.evaluation.calibration.calibration_points`.
    """
    if trajectory.stop_reason.bootstraps:
        return [None] * len(trajectory.turns)
    returns: list[float | None] = []
    following = 0.0
    for turn in reversed(trajectory.turns):
        following = turn.reward + turn.penalty + gamma * following
        returns.append(following)
    return returns[::-1]


def td_errors(trajectory: Trajectory, gamma: float, *, is_running: bool = False) -> list[float | None]:
    """
    Return delta = r + gamma V' - V of each turn, penalties included; None where a value is missing or not known yet.

    V' after the last turn is 0, except where the episode was cut from outside and the critic's word is not recorded.
    """
    errors: list[float | None] = []
    turns = trajectory.turns
    for turn, following in zip(turns, [*turns[1:], None], strict=True):
        after = _value_after(trajectory, following, is_running)
        is_known = turn.value is not None and after is not None
        errors.append(turn.reward + turn.penalty + gamma * after - turn.value if is_known else None)  # type: ignore
    return errors


def _value_after(trajectory: Trajectory, following: Turn | None, is_running: bool) -> float | None:
    if following is not None:
        return following.value
    return None if is_running or trajectory.stop_reason.bootstraps else 0.0


def plan_view(level: SokobanState, plan: Plan, moves_per_turn: int, name: str) -> dict[str, Any]:
    """Return what the page draws of a plan of the solver, in turns as long as the agent's."""
    return moves_view(level, [_MOVE_NAMES[move] for move in plan.actions], moves_per_turn, name)


def moves_view(level: SokobanState, moves: Sequence[str], moves_per_turn: int, name: str) -> dict[str, Any]:
    """Return what the page draws of moves that somebody without a critic made."""
    turns, state, total = [], level, 0.0
    for start in range(0, len(moves), moves_per_turn):
        boards, reward = [state], 0.0
        for move in moves[start : start + moves_per_turn]:
            state, gained, _ = state.step(ACTIONS[move])
            boards.append(state)
            reward += gained
        total += reward
        words = list(moves[start : start + moves_per_turn])
        turns.append(
            {
                "boards": [board.render().split("\n") for board in boards],
                "action": " ".join(words),
                "moves": words,
                "response": "",
                "prompt": "",
                "reward": reward,
                "penalty": 0.0,
                **dict.fromkeys(("value", "td_error", "advantage", "return")),
            }
        )
    following = 0.0
    for turn in reversed(turns):
        following += turn["reward"]
        turn["return"] = following
    return {
        "agent": name,
        "world": "Sokoban-v0",
        "seed": None,
        "level": level.to_text(),
        "note": "",
        "running": False,
        "solved": state.solved,
        "ending": "Solved" if state.solved else "Not solved",
        "why": "the goal was reached" if state.solved else "no plan within the moves left solves it",
        "total": total,
        "gamma": 1.0,
        "has_critic": False,
        "turns": turns,
        "last_page": None,
        "record": None,
    }


@cache
def read_replays(folder: Path = REPLAYS) -> dict[str, Replay]:
    """Read the recorded episodes that stand beside this file, by key, in the order of their files."""
    replays = {}
    for file in sorted(folder.glob("*_episodes.json")):
        recorded = json.loads(file.read_text(encoding="utf-8"))
        for number, item in enumerate(recorded["episodes"], start=1):
            trajectory = Trajectory.from_dict(item["trajectory"])
            view = episode_view(
                trajectory,
                agent=recorded["agent"],
                gamma=recorded["gamma"],
                prompts=item["prompts"],
                pages=item.get("pages", ()),
                note=recorded.get("note", ""),
            )
            key = f"{recorded['key']}-{number}"
            label = f"{item['name']}: {view['ending'].lower()} in {_turns(len(trajectory.turns))}"
            replays[key] = Replay(key, recorded["agent"], recorded["group"], item["name"], label, view)
    return replays


def agents_of(replays: Mapping[str, Replay]) -> list[str]:
    """Return who played, in order and once each."""
    return list(dict.fromkeys(replay.agent for replay in replays.values()))


def episodes_of(replays: Mapping[str, Replay], agent: str) -> list[tuple[str, str]]:
    """Return label and key of an agent's episodes, for a menu."""
    return [(replay.label, replay.key) for replay in replays.values() if replay.agent == agent]


def _turns(count: int) -> str:
    return "1 turn" if count == 1 else f"{count} turns"
