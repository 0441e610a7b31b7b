"""An environment goes in; sentences about what is wrong with it come out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium

from turnppo_hf.environments.conversation import TRUNCATIONS
from turnppo_hf.environments.exits import describe_error
from turnppo_hf.environments.integrations.adapt import adapt
from turnppo_hf.environments.integrations.tool_checker import check_tools, has_tools_only
from turnppo_hf.environments.integrations.tools import ToolEnvironment
from turnppo_hf.environments.reading import as_number, is_flag, read_count


@dataclass(frozen=True)
class _Episode:
    observations: list[str]
    rewards: list[float]
    ended: bool


class _Problem(Exception):
    """Ends an episode whose replies can no longer be read."""


def check_environment(
    environment: Any,
    *,
    completions: Sequence[str] = (),
    num_episodes: int = 3,
    max_turns: int = 50,
    seed: int = 0,
) -> list[str]:
    """
    Plays some episodes, each of them twice, and reports what breaks the contract that training relies on.

    Checked are: Text spaces; `reset` returns `(observation, info)` and `step` a 5-tuple; observations are non-empty
    strings; rewards are finite numbers; both flags are `bool`; `info["penalty"]` is at most 0, `info["truncation"]` is
    `"task_budget"` or `"time_limit"`, `info["action"]` and `info["state"]` are strings and `info["solved"]` a bool
    where they are given; the same seed and completions give the same observations and rewards; `step` raises after the
    end. Of an environment class of TRL, its tools' docstrings and type hints, its `reset`, two calls of each tool and
    its reward are checked instead.

    Args:
        environment (`Any`):
            What an environment factory returns: a Gymnasium environment with `Text` spaces, an OpenEnv client, a game
            of TextArena, or an object of one of TRL's environment classes. It is left in the middle of an episode.
        completions (`Sequence[str]`, *optional*):
            What the player writes, over and over. Sampled from the action space by default, which rarely is an
            action: pass some that are.
        num_episodes (`int`, *optional*, defaults to `3`):
            Episodes, with the seeds `seed`, `seed + 1`, ...
        max_turns (`int`, *optional*, defaults to `50`):
            Turns after which an episode that does not end is left; that it does not end is no problem.
        seed (`int`, *optional*, defaults to `0`):
            First seed.
    Returns:
        `list[str]`: one sentence per kind of problem, empty if none was found.
    Raises:
        `ValueError`: no episode or turn would be played, or `completions` is no list of texts.
    """
    num_episodes, max_turns = read_count("num_episodes", num_episodes), read_count("max_turns", max_turns)
    is_list = isinstance(completions, Sequence) and not isinstance(completions, str)
    if not is_list or not all(isinstance(text, str) for text in completions):
        raise ValueError(
            f"`completions` must be a list of texts, got {completions!r:.80}. A single text would be played letter by "
            'letter. Pass for example ["<answer>Up</answer>"].'
        )
    if isinstance(environment, type | str):
        return [f"{environment!r} is no environment; pass one that was made, as an environment factory returns it."]
    if has_tools_only(environment):
        return check_tools(environment, seed)
    problems = _space_problems(environment) if isinstance(environment, gymnasium.Env) else []
    if problems:
        return problems
    try:
        environment = adapt(environment)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return [str(error) if isinstance(error, Exception) else describe_error(error)]
    if isinstance(environment, ToolEnvironment):
        return [
            "`reset` does not take `options` by name, so the model would be offered `step` as a tool. Define "
            "reset(self, *, seed=None, options=None) for an environment that is played by text, or give the tool "
            "another name."
        ]
    if not completions and getattr(environment, "action_space", None) is None:
        return ["There is no action space to draw completions from; pass some in `completions`."]
    return _playing_problems(environment, completions, range(seed, seed + num_episodes), max_turns)


def _space_problems(environment: gymnasium.Env[Any, Any]) -> list[str]:
    problems = []
    for kind in ("observation", "action"):
        space = getattr(environment, f"{kind}_space", None)
        if not isinstance(space, gymnasium.spaces.Text):
            found = "missing" if space is None else type(space).__name__
            problems.append(f"The {kind} space is {found}; it must be gymnasium.spaces.Text.")
    return problems


def _playing_problems(
    environment: gymnasium.Env[str, str], completions: Sequence[str], seeds: Sequence[int], max_turns: int
) -> list[str]:
    problems: list[str] = []
    for episode_seed in seeds:
        script = [completions[turn % len(completions)] for turn in range(max_turns)] if completions else []
        if not completions:
            environment.action_space.seed(episode_seed)
            script = [environment.action_space.sample() for _ in range(max_turns)]
        try:
            first = _play(environment, episode_seed, script, problems)
            if first.ended:
                _check_step_after_end(environment, script[0], problems)
            second = _play(environment, episode_seed, script, problems)
        except _Problem as problem:
            problems.append(str(problem))
            break
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            problems.append(f"Seed {episode_seed} raised {describe_error(error)}")
            break
        if first != second:
            problems.append(
                f"Two episodes with seed {episode_seed} and the same completions differ; all randomness must come "
                "from the seed that `reset` gets: in Gymnasium's environments from `self.np_random`, which "
                "`super().reset(seed=seed)` seeds."
            )
    return list(dict.fromkeys(problems))


def _play(environment: gymnasium.Env[str, str], seed: int, script: Sequence[str], problems: list[str]) -> _Episode:
    # Typed as Any: the values that a foreign environment returns are what is checked.
    reply: Any = environment.reset(seed=seed, options=None)
    if not isinstance(reply, tuple) or len(reply) != 2:
        raise _Problem(f"`reset` returned {_describe(reply)}; it must return the tuple (observation, info).")
    observation, info = reply
    _check_observation("reset", observation, problems)
    _check_info("reset", info, problems)
    episode = _Episode([observation], [], False)
    for completion in script:
        reply = environment.step(completion)
        if not isinstance(reply, tuple) or len(reply) != 5:
            raise _Problem(
                f"`step` returned {_describe(reply)}; it must return the tuple "
                "(observation, reward, terminated, truncated, info)."
            )
        observation, reward, terminated, truncated, info = reply
        _check_observation("step", observation, problems)
        if not math.isfinite(as_number(reward)):
            raise _Problem(f"`step` returned the reward {reward!r}; it must be a finite float.")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not is_flag(flag):
                problems.append(f"`step` returned {name} as {type(flag).__name__}; it must be a bool.")
        _check_info("step", info, problems)
        episode.observations.append(observation)
        episode.rewards.append(float(reward))
        if terminated or truncated:
            return _Episode(episode.observations, episode.rewards, True)
    return episode


def _check_observation(method: str, observation: Any, problems: list[str]) -> None:
    if not isinstance(observation, str):
        raise _Problem(f"`{method}` returned an observation of type {type(observation).__name__}; it must be a str.")
    if not observation:
        problems.append(f"`{method}` returned an empty observation; the model would have nothing to answer.")


def _check_info(method: str, info: Any, problems: list[str]) -> None:
    if not isinstance(info, dict):
        raise _Problem(f"`{method}` returned info as {type(info).__name__}; it must be a dict.")
    penalty = info.get("penalty", 0.0)
    if not -math.inf < as_number(penalty) <= 0:
        problems.append(f"`{method}` returned info['penalty'] = {penalty!r}; it must be a finite float of at most 0.")
    truncation = info.get("truncation", "time_limit")
    if truncation not in TRUNCATIONS:
        problems.append(
            f"`{method}` returned info['truncation'] = {truncation!r}; it must be one of {', '.join(TRUNCATIONS)}."
        )
    for name in ("action", "state"):
        if name in info and not isinstance(info[name], str):
            problems.append(f"`{method}` returned info[{name!r}] = {info[name]!r}; it must be a str.")
    solved = info.get("solved")
    if solved is not None and not is_flag(solved):
        problems.append(f"`{method}` returned info['solved'] = {solved!r}; it must be a bool.")


def _check_step_after_end(environment: gymnasium.Env[str, str], completion: str, problems: list[str]) -> None:
    try:
        environment.step(completion)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return
    problems.append("`step` after the end of an episode does not raise; rewards after the end would go unnoticed.")


def _describe(reply: Any) -> str:
    return f"a tuple of length {len(reply)}" if isinstance(reply, tuple) else type(reply).__name__
