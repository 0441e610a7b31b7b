"""
What programs call: `reset`, `step`, `play`, `values`, `judge` and `replay`, over HTTP or as tools of the Model
Context Protocol.

Nothing is kept between calls. A state of the game is its level and the answers given since, so no caller can see or
disturb another's game, and the same calls give the same answers. The game is the named agent's own: its prompt, what
it may answer, its limits. So what `reset` shows, `step` plays and `values` judges is what `play` plays.
"""

from __future__ import annotations

from typing import Any

from gymnasium.error import ResetNeeded
from levels import LevelError, checked_seed, judge_level, level_of_seed, read_level
from live import limits_of, load_agent, new_world, play_live, sokoban_agent
from player import read_replays

from turnppo_hf.environments.sokoban.environment import MAX_TEXT_LENGTH


def reset(seed: int = 1_000_000, level: str = "", agent: str = "") -> dict[str, Any]:
    """
    Start a game of Sokoban and return what a player reads first.

    Args:
        seed: Chooses one of the held-out levels; ignored where a level is given.
        level: A level in XSB notation (# wall, @ player, $ box, . target, space floor), rows on lines.
        agent: Name of an agent on this page, whose game it is; the first one that plays Sokoban by default.
    """
    state = read_level(level or level_of_seed(seed))
    world = new_world(sokoban_agent(agent))
    observation, info = world.reset(seed=0, options={"level": state})
    return {
        "level": info["level"],
        "observation": observation,
        "actions_left": world.actions_left,
        "max_turns": world.max_turns,
        "grammar": world.action_grammar,
    }


def step(level: str, answers: list[str], answer: str, agent: str = "") -> dict[str, Any]:
    """
    Play one turn: the state is the level and the answers given before, so nothing is kept between calls.

    Args:
        level: As `reset` returned it.
        answers: What was answered in the turns before, in order; an empty list for the first turn.
        answer: What is answered now, in the grammar that `reset` returned, such as "Up Left".
        agent: As given to `reset`.
    """
    world, _ = _replayed(level, answers, sokoban_agent(agent))
    try:
        observation, reward, terminated, truncated, info = world.step(_checked_answer(answer))
    except ResetNeeded as error:
        raise ValueError(str(error)) from None
    return {
        "observation": observation,
        "reward": reward,
        "penalty": info.get("penalty", 0.0),
        "action": info["action"],
        "terminated": terminated,
        "truncated": truncated,
        "solved": info["solved"],
        "actions_left": world.actions_left,
    }


def play(seed: int = 1_000_000, level: str = "", agent: str = "") -> dict[str, Any]:
    """
    Let an agent play one episode of Sokoban and return its trajectory with the critic's value of each turn.

    Args:
        seed: Chooses one of the held-out levels and seeds the sampling.
        level: A level in XSB notation instead.
        agent: Name of an agent on this page; the first one that plays Sokoban by default.
    """
    state = read_level(level or level_of_seed(seed))
    *_, last = play_live(sokoban_agent(agent), checked_seed(seed), {"level": state.to_text()})
    return dict(last["record"])


def values(level: str, answers: list[str], agent: str = "") -> list[float]:
    """
    Return what the agent's critic expects of a game: V before each turn so far, and V now unless it is over.

    Args:
        level: As `reset` returned it.
        answers: What was answered so far, in order; an empty list for the first state.
        agent: Name of an agent on this page; the first one that plays Sokoban by default.
    """
    player = sokoban_agent(agent)
    world, messages = _replayed(level, answers, player)
    if world.state.solved or world.actions_left == 0:
        messages = messages[:-2]  # the game is over: nothing follows its last state
    return load_agent(player).values(messages)


def judge(level: str, agent: str = "") -> dict[str, Any]:
    """
    Find whether a level of Sokoban can be won within an episode, in how many moves, or why not.

    Args:
        level: A level in XSB notation (# wall, @ player, $ box, . target, space floor), rows on lines.
        agent: Name of an agent on this page, whose episode it is; the first one that plays Sokoban by default.
    """
    report = judge_level(level, limits_of(sokoban_agent(agent)).max_actions)
    return {"is_playable": report.is_playable, "moves": report.moves, "message": report.message}


def replay(episode: str) -> dict[str, Any]:
    """
    Return a recorded episode: boards or pages, actions, rewards, and the critic's value of each turn.

    Args:
        episode: Its name as in the page's links, such as "turn_ppo-1".
    """
    recorded = read_replays().get(episode)
    if recorded is None:
        raise ValueError(
            f"There is no recording {episode[:40]!r}. Nothing can be shown. Choose one of {', '.join(read_replays())}."
        )
    return recorded.view


def _replayed(level: str, answers: list[str], agent: str) -> tuple[Any, list[dict[str, str]]]:
    """Play the answers given so far; return the world and the messages."""
    world = new_world(agent)
    if not isinstance(answers, list) or len(answers) > world.max_turns:
        raise LevelError(
            f"`answers` must be a list of at most {world.max_turns} texts. A game has no more turns. Pass what was "
            "answered since `reset`."
        )
    observation, _ = world.reset(seed=0, options={"level": read_level(level)})
    messages = [{"role": "user", "content": observation}]
    for answer in answers:
        try:
            observation, *_ = world.step(_checked_answer(answer))
        except ResetNeeded as error:
            raise ValueError(str(error)) from None
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": observation}]
    return world, messages


def _checked_answer(answer: object) -> str:
    if not isinstance(answer, str) or len(answer) > MAX_TEXT_LENGTH:
        raise LevelError(
            f"An answer must be a text of at most {MAX_TEXT_LENGTH} characters. No turn is longer. Pass one "
            "in the grammar that `reset` returned."
        )
    return answer
