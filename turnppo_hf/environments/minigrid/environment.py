"""
What the model wrote goes in; what it reads next and the reward of its turn come out: MiniGrid and BabyAI as text.

`MiniGrid` is registered as `turnppo_hf/MiniGrid-v0`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, get_args

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from turnppo_hf.environments.minigrid.observation import LEGEND, cell_text, grid_text, reasoning, sentences, state_text
from turnppo_hf.environments.minigrid.rules import Split, SplitBy, action_names, make_world, reset_world
from turnppo_hf.environments.reading import (
    answer_rule,
    check_turn,
    read_answer,
    read_choice,
    read_count,
    read_penalty,
    read_repeat_rules,
)

MAX_TEXT_LENGTH = 8192  # characters of an observation and of a sampled completion
_SEPARATORS = {"tags": " || ", "bare": " ", "reasoned": " "}
_VIEWS = {"grid": "full", "sentences": "agent"}  # what each kind of observation shows by default

_MEANINGS = {
    "left": "turn left",
    "right": "turn right",
    "forward": "go one cell ahead",
    "pickup": "take the thing ahead",
    "drop": "put what you carry into the empty cell ahead",
    "toggle": "open or close the door ahead, a locked one with the key of its colour in your hand; open the box ahead",
    "done": "report that the mission is accomplished, where it asks for that",
}
_RULES = """\
You are in a world of square cells, in one of them and facing one way. Accomplish the mission in as few actions as
you can.
{legend}Actions: {actions}
{answer}

"""
_TURN = """\
Mission: {mission}
Turn {turn} of {max_turns}. You have {actions_left} of {max_steps} actions left.
{view}
Answer in this form and add nothing: <think>your reasoning</think><answer>{example}</answer>"""


class MiniGrid(gymnasium.Env[str, str]):
    """
    ## Description
    A world of Farama's MiniGrid 3.2 or its BabyAI levels (https://minigrid.farama.org), as text. Rules, rewards and
    levels are the package's own; a turn is one completion that names one or several of its actions.

    ## Action Space
    `Text`: what the model wrote, as it is; any string is accepted. In the format `"tags"` the actions stand between
    `<answer>` and `</answer>`, separated by `||`; what precedes the last `</think>` is reasoning and ignored. In the
    format `"bare"` the completion is nothing but actions, separated by spaces, commas or `||`. They are called left,
    right, forward, pickup, drop, toggle and done, as in the package; letter case does not matter. Only the first
    `max_actions_per_turn` actions of a completion count. The format `"reasoned"` is `"bare"` after a line of reasoning
    and the word `so`. From the first unknown word on nothing is carried out, and a
    turn with an unknown word or without any action gets the format penalty. Such a turn counts as a turn.

    ## Observation Space
    `Text`: the user message of the turn. `"tags"`: the first one opens with the rules, and each with `repeat_rules`;
    all hold the mission, turn and actions left, and what is seen. `"bare"`: what is seen; the mission, where it is not
    the same in every episode; and, in a last line, what is carried (for a grid) and the number of actions that are
    still possible. Every observation of a whole grid is a state: with `context: last` nothing of the task is lost, but
    in BabyAI's missions of several parts, where no observation says which of them are done.

    ## Rewards
    The package's, summed over the turn's actions: for most worlds 1 - 0.9 * (actions / `max_steps`) on success and 0
    otherwise. The format penalty is not in it but in `info["penalty"]`.

    ## Starting State
    The package's level of the seed. With a `split`, the first level of that side, from this seed on.

    ## Episode End
    Terminated when the package terminates it. Truncated with `info["truncation"]` `"task_budget"` when `max_steps`
    actions or `max_turns` turns are used up.

    ## Information
    `solved` (`bool`, the episode was terminated with a positive reward), `num_actions` (`int`, of the episode so far),
    `action` (`str`, what was carried out this turn, empty if nothing), `actions` (`list[int]`, the same as the
    package's numbers), `state` (`str`, equal in two turns that begin in the same state), `penalty` (`float`, only
    where it is not 0), `truncation` (only where truncated); after `reset` also `level_seed` (`int`, the package's) and
    `mission` (`str`).

    ## Arguments
        env_id (`str`, *optional*, defaults to `"MiniGrid-DoorKey-5x5-v0"`):
            The package's id, such as `"MiniGrid-MultiRoom-N4-S5-v1"` or `"BabyAI-GoToLocal-v0"`.
        observation (`str`, *optional*, defaults to `"grid"`):
            `"grid"`: a sign for each cell. `"sentences"`: what is seen, in words, as in BabyAI-Text.
        view (`str`, *optional*):
            `"full"`: of the whole world. `"agent"`: of the cells that the package shows its player. Defaults to
            `"full"` for a grid and `"agent"` for sentences.
        max_actions_per_turn (`int`, *optional*, defaults to `1`):
            Actions of one turn.
        max_steps (`int`, *optional*):
            Actions of an episode, handed to the package: the reward depends on it. The package's own by default.
        max_turns (`int`, *optional*):
            Turns of an episode. Defaults to as many as there are actions.
        format_penalty (`float`, *optional*, defaults to `-0.1`):
            Put into `info["penalty"]` for a turn with an unknown word or without any action.
        action_format (`str`, *optional*, defaults to `"tags"`):
            `"tags"` for language models, `"bare"` for small ones with a vocabulary of their own, `"reasoned"` for such
            ones with some forty tokens a turn instead of two: the players' reasoning names where each thing is.
        repeat_rules (`bool`, *optional*, defaults to `False`):
            Put the rules into every observation, for a `context` that leaves out the first one.
        split (`"train"` or `"test"`, *optional*):
            Only levels of this side, see `level_split`.
        split_by (`"start"` or `"layout"`, *optional*, defaults to `"start"`):
            Whether where the player begins is part of a level, see `level_split`. By `"layout"` no level that is
            judged is one of training, begun elsewhere.
        render_mode (`str`, *optional*):
            `"ansi"`: `render()` returns the whole grid.

    ## Version History
    2: the prompt for one action a turn; BabyAI's states hold the mission's progress. 1: first.
    """

    version: ClassVar[str] = "2"  # rises when prompt, parsing or the levels of a seed change
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (as in Gymnasium)

    def __init__(
        self,
        env_id: str = "MiniGrid-DoorKey-5x5-v0",
        observation: str = "grid",
        view: str | None = None,
        max_actions_per_turn: int = 1,
        max_steps: int | None = None,
        max_turns: int | None = None,
        format_penalty: float = -0.1,
        action_format: str = "tags",
        repeat_rules: bool = False,
        split: Split | None = None,
        split_by: SplitBy = "start",
        render_mode: str | None = None,
    ) -> None:
        self.env_id = env_id
        self.observation = read_choice("observation", observation, tuple(_VIEWS))
        self.view = _VIEWS[observation] if view is None else read_choice("view", view, ("full", "agent"))
        self.max_actions_per_turn = read_count("max_actions_per_turn", max_actions_per_turn)
        self._max_steps = None if max_steps is None else read_count("max_steps", max_steps)
        self._max_turns = None if max_turns is None else read_count("max_turns", max_turns)
        self.format_penalty = read_penalty(format_penalty)
        self.action_format = read_choice("action_format", action_format, tuple(_SEPARATORS))
        self.repeat_rules = read_repeat_rules(repeat_rules, self.action_format == "tags", "action_format: tags")
        self.split = None if split is None else read_choice("split", split, get_args(Split))
        self.split_by = read_choice("split_by", split_by, get_args(SplitBy))
        self.render_mode = None if render_mode is None else read_choice("render_mode", render_mode, ("ansi",))
        self.world = make_world(env_id, self._max_steps)
        self.action_names = action_names(self.world)
        self.observation_space = gymnasium.spaces.Text(MAX_TEXT_LENGTH, charset=string.printable)
        self.action_space = gymnasium.spaces.Text(MAX_TEXT_LENGTH, min_length=0, charset=string.printable)
        self._level_seed = self._num_turns = 0
        self._taken: list[int] = []  # actions of the episode
        self._grid = ""  # the whole one, as text
        self._plan: list[int] | None = None  # from here; None where it was not asked for
        self._ending: str | None = "not begun"

    @property
    def state(self) -> str:
        """The state of the world as text: equal texts, equal states."""
        if self._ending == "not begun":
            raise ResetNeeded("The environment has no level yet. There is no state to show. Call `reset()` first.")
        return state_text(self.world, self._grid)

    @property
    def max_steps(self) -> int:
        """Actions of an episode; some BabyAI levels set it at their reset."""
        return int(self.world.max_steps)

    @property
    def max_turns(self) -> int:
        """Turns of an episode."""
        return self.max_steps if self._max_turns is None else self._max_turns

    @property
    def actions_left(self) -> int:
        """Actions that are still possible: limited by the actions left and by the turns left."""
        turns_left = self.max_turns - self._num_turns
        return min(self.max_steps - len(self._taken), turns_left * self.max_actions_per_turn)

    @property
    def opens_with_rules(self) -> bool:
        """Whether the first observation alone holds the rules, so that `context: last` loses them."""
        return self.action_format == "tags" and not self.repeat_rules

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode; `options` are ignored."""
        super().reset(seed=seed)
        self._level_seed = reset_world(self.world, self._seeds(seed), self.split, self.split_by)
        self._taken, self._num_turns, self._plan, self._ending = [], 0, None, None
        self._grid = grid_text(self.world, "full")
        info = {**self._info(False, []), "level_seed": self._level_seed, "mission": str(self.world.mission)}
        return self._observe(), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """
        Plays one turn.

        Args:
            action (`str`):
                The completion, reasoning included.
        Raises:
            `gymnasium.error.ResetNeeded`: the episode has ended or not begun.
            `TypeError`: `action` is no string.
        """
        check_turn(action, self._ending, "actions", "<answer>forward || left</answer>")
        actions, is_readable = self.parse(action)
        reward, terminated, truncated = 0.0, False, False
        executed: list[int] = []
        for number in actions:
            _, earned, terminated, truncated, _ = self.world.step(number)
            reward += float(earned)
            executed.append(number)
            self._taken.append(number)
            follows = self._plan is not None and self._plan[:1] == [number]
            self._plan = self._plan[1:] if self._plan is not None and follows else None
            if terminated or truncated:
                break
        self._num_turns += 1
        self._grid = grid_text(self.world, "full")
        terminated, solved = bool(terminated), bool(terminated and reward > 0)
        truncated = bool(truncated) or (not terminated and self._num_turns >= self.max_turns)
        info = self._info(solved, executed)
        if not is_readable and self.format_penalty:
            info["penalty"] = self.format_penalty
        if truncated:
            info["truncation"] = "task_budget"
        if terminated or truncated:
            self._ending = "solved" if solved else "lost" if terminated else "out of actions or turns"
        return self._observe(), reward, terminated, truncated, info

    def render(self) -> str | None:
        """The whole grid; `None` unless `render_mode` is `"ansi"`."""
        return self._grid if self.render_mode == "ansi" else None

    def parse(self, completion: str) -> tuple[list[int], bool]:
        """
        The actions that a completion names.

        Returns:
            `tuple[list[int], bool]`: at most `max_actions_per_turn` actions before the first unknown word, as the
            package numbers them, and whether there were actions and no unknown word among those looked at.
        """
        if self.action_format == "reasoned":
            _, has_answer, completion = f" {completion}".rpartition(" so ")
            completion = completion if has_answer else ""
        if self.action_format != "tags":
            words = re.findall(r"[^\s,|]+", completion)
        else:
            words = [word.strip() for word in read_answer(completion).split("||") if word.strip()]
        actions: list[int] = []
        for word in words[: self.max_actions_per_turn]:
            if word.lower() not in self.action_names:
                return actions, False
            actions.append(self.action_names.index(word.lower()))
        return actions, bool(actions)

    def completion(self, actions: Sequence[int]) -> str:
        """The completion that names these actions, in the package's numbers, without reasoning."""
        text = self._join(actions)
        if self.action_format == "reasoned":
            return f"so {text}"
        return f"<answer>{text}</answer>" if self.action_format == "tags" else text

    @property
    def action_grammar(self) -> str:
        """What an answer may be, in one line: for records and cards."""
        actions = f'action{{1,{self.max_actions_per_turn}}} separated by "{_SEPARATORS[self.action_format]}"'
        answer = {"tags": f"<answer>{actions}</answer>", "reasoned": f"reasoning so {actions}"}.get(
            self.action_format, actions
        )
        return f"{answer}, action = {' | '.join(self.action_names)}"

    def random_completion(self, rng: np.random.Generator) -> str:
        """A completion of as many actions as a turn takes, drawn uniformly: the random player's."""
        actions = rng.integers(len(self.action_names), size=self.max_actions_per_turn).tolist()
        return self._reasoned([], self.completion(actions))

    @property
    def optimal_completions(self) -> Callable[[], list[str]]:
        """
        Call it for the completions, one for each turn, that finish the task soonest from here, whether or not that
        many actions are left. There is none where it cannot be finished any more.

        Raises:
            `AttributeError`: this world has no such player, see `find_player`, as `hasattr` tells.
            `gymnasium.error.ResetNeeded`: it was called before `reset`.
        """
        return self._completions_of("optimal")

    @property
    def expert_completions(self) -> Callable[[], list[str]]:
        """As `optimal_completions`, in the worlds in which the package's bot plays: its ways need not be shortest."""
        return self._completions_of("expert")

    def _completions_of(self, player: str) -> Callable[[], list[str]]:
        from turnppo_hf.environments.minigrid.players import find_player  # loads the package's bot

        if find_player(self.env_id) != player:
            raise AttributeError(
                f"No {player} player is known for {self.env_id}, so it plays no demonstrations. There are optimal "
                "players for worlds with a goal square that stay as they are (DoorKey, MultiRoom), UnlockPickup and "
                "KeyCorridor, and an expert for most BabyAI ids."
            )
        return self._planned_completions

    def _planned_completions(self) -> list[str]:
        from turnppo_hf.environments.minigrid.players import plan_task

        if self._ending == "not begun":
            raise ResetNeeded("The environment has no level yet, so there is nothing to plan. Call `reset()` first.")
        if self._plan is None:
            self._plan = plan_task(self.world, self._level_seed, self._taken)
        size = self.max_actions_per_turn
        turns = [self.completion(self._plan[start : start + size]) for start in range(0, len(self._plan), size)]
        return [self._reasoned(self._plan, turns[0]), *turns[1:]] if turns else []  # later states are still to come

    def close(self) -> None:
        """Closes the package's world."""
        self.world.close()

    def _seeds(self, seed: int | None) -> Iterator[int]:
        if seed is not None:
            yield seed
        while True:
            yield int(self.np_random.integers(2**31))

    def _info(self, solved: bool, executed: list[int]) -> dict[str, Any]:
        return {
            "solved": solved,
            "num_actions": len(self._taken),
            "action": self._join(executed),
            "actions": executed,
            "state": self.state,
        }

    def _reasoned(self, plan: Sequence[int], completion: str) -> str:
        if self.action_format != "reasoned":
            return completion
        return f"{reasoning(self.world, [self.action_names[number] for number in plan])} {completion}".lstrip()

    def _join(self, actions: Sequence[int]) -> str:
        return _SEPARATORS[self.action_format].join(self.action_names[number] for number in actions)

    def _observe(self) -> str:
        is_grid, carried = self.observation == "grid", self.world.carrying
        if not is_grid:
            view = "\n".join(sentences(self.world, self.view))
        else:
            view = self._grid if self.view == "full" else grid_text(self.world, self.view)
        if self.action_format != "tags":
            missions = getattr(self.world.observation_space["mission"], "ordered_placeholders", None)
            varies = missions is not None or self.env_id.startswith("BabyAI-")
            mission = f"{self.world.mission}\n" if varies else ""
            return f"{mission}{view}\n{f'{cell_text(carried)} ' if is_grid else ''}{self.actions_left}"
        if is_grid:
            view += "\nYou carry nothing." if carried is None else f"\nYou carry {cell_text(carried)}."
        if self._ending is not None:
            return f"Mission: {self.world.mission}\n{view}\nThe episode is {self._ending}."
        turn = _TURN.format(
            mission=self.world.mission,
            turn=self._num_turns + 1,
            max_turns=self.max_turns,
            actions_left=self.actions_left,
            max_steps=self.max_steps,
            view=view,
            example=_SEPARATORS["tags"].join(("forward", "left")[: self.max_actions_per_turn]),
        )
        return (self._rules if self.repeat_rules or self._num_turns == 0 else "") + turn

    @property
    def _rules(self) -> str:
        return _RULES.format(
            legend=LEGEND if self.observation == "grid" else "",
            actions="; ".join(f"{name} ({_MEANINGS[name]})" for name in self.action_names),
            answer=answer_rule(self.max_actions_per_turn),
        )
