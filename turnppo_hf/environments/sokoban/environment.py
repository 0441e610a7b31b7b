"""
What the model wrote goes in; what it reads next and the reward of its turn come out: Sokoban as text.

`Sokoban` is registered as `turnppo_hf/Sokoban-v0` (6x6, one box) and `turnppo_hf/SokobanLarge-v0` (8x8, two boxes).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, get_args

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from turnppo_hf.environments.reading import (
    answer_rule,
    as_integer,
    check_options,
    check_turn,
    read_answer,
    read_choice,
    read_count,
    read_penalty,
    read_repeat_rules,
)
from turnppo_hf.environments.sokoban.levels import Split, generate_level, level_split, load_levels
from turnppo_hf.environments.sokoban.rules import DOWN, LEFT, RIGHT, UP, SokobanState
from turnppo_hf.environments.sokoban.solver import best_plan

ACTIONS = {"Up": UP, "Down": DOWN, "Left": LEFT, "Right": RIGHT}
MAX_CELLS = 50 * 50  # of a board: what an observation has room for
MAX_TEXT_LENGTH = 8192  # characters of an observation and of a sampled completion

_ACTION_NAMES = {number: name for name, number in ACTIONS.items()}
_ACTION_IDS = {name.lower(): number for name, number in ACTIONS.items()}
_SEPARATORS = {"tags": " || ", "bare": " "}

RULES = """\
You are playing Sokoban on a grid. Move the player so that every box ends up on a target.
Walking against a box pushes it one cell if the cell behind it is free. Boxes cannot be pulled, walls do not move.

Symbols: # wall, _ floor, O target, X box, √ box on a target, P player, S player on a target
"""
_INSTRUCTIONS = f"""\
{RULES}Actions: Up, Down, Left, Right
{{answer}}

"""
_TURN = """\
Turn {turn} of {max_turns}:
State:
{board}
You have {actions_left} actions left.
Answer in this form and add nothing: <think>your reasoning</think><answer>{example}</answer>"""


class Sokoban(gymnasium.Env[str, str]):
    """
    ## Description
    Push every box onto a target. Rules and rewards are gym-sokoban 0.0.6's, text and limits follow RAGEN
    (https://github.com/RAGEN-AI/RAGEN): a turn is one completion that names several primitive actions.

    ## Action Space
    `Text`: what the model wrote, as it is; any string is accepted. In the format `"tags"` the actions stand between
    `<answer>` and `</answer>`, separated by `||`; what precedes the last `</think>` is reasoning and ignored, and may
    be missing. In the format `"bare"` the completion is nothing but actions, separated by spaces, commas or `||`.
    Letter case does not matter. Only the first `max_actions_per_turn` actions of a completion count. From the first
    unknown word on nothing is carried out, and a turn with an unknown word or without any action gets the format
    penalty (as in RAGEN). Such a turn counts as a turn.

    ## Observation Space
    `Text`: the user message of the turn. `"tags"`: the first one opens with the rules, and each with `repeat_rules`;
    the following ones hold the reward of the turn before, all the board, the turn and the number of actions left.
    `"bare"`: the board and, in a last line, the number of actions that are still possible.

    ## Rewards
    The sum of the turn's primitive rewards: -0.1 an action, +1 (-1) when more (fewer) boxes stand on targets than
    before, +10 when all do. The format penalty is not in it but in `info["penalty"]`.

    ## Starting State
    A new level, made from the seed or drawn from `levels`; or the one given as `reset(options={"level": ...})`: XSB
    text, the pair of gym-sokoban's arrays `(room_fixed, room_state)`, a mapping with these two keys, a
    `SokobanState`, or the index of one of `levels`. Other options are ignored.

    ## Episode End
    Terminated when the level is solved, even by the last action. Truncated with `info["truncation"]` `"task_budget"`
    when `max_actions` or `max_turns` is used up.

    ## Information
    `solved` (`bool`), `num_actions` (`int`, of the episode so far), `action` (`str`, what was carried out this turn,
    empty if nothing), `actions` (`list[int]`, the same as numbers), `state` (`str`, the board as XSB text, without
    turn and actions left), `penalty` (`float`, only where it is not 0), `truncation` (only where truncated); after
    `reset` also `level` (`str`, XSB text).

    ## Arguments
        size (`int` or `tuple[int, int]`, *optional*, defaults to `6`):
            Side, or height and width, of generated levels in cells, outer walls included.
        num_boxes (`int`, *optional*, defaults to `1`):
            Boxes of generated levels.
        max_actions_per_turn (`int`, *optional*, defaults to `5`):
            Primitive actions of one turn.
        max_turns (`int`, *optional*, defaults to `5`):
            Turns of an episode.
        max_actions (`int`, *optional*, defaults to `10`):
            Primitive actions of an episode. Generated levels can be solved within it.
        format_penalty (`float`, *optional*, defaults to `-0.1`):
            Put into `info["penalty"]` for a turn with an unknown word or without any action.
        action_format (`str`, *optional*, defaults to `"tags"`):
            `"tags"` for language models, `"bare"` for small ones with a vocabulary of their own.
        levels (`str` or `Path`, *optional*):
            Boxoban file, folder of such files or dataset on the Hub, see `load_levels`; replaces generated levels.
        split (`"train"` or `"test"`, *optional*):
            Only levels of this side, see `level_split`. Does not touch a level given to `reset`.
        repeat_rules (`bool`, *optional*, defaults to `False`):
            Put the rules into every observation, for a `context` that leaves out the first one.
        render_mode (`str`, *optional*):
            `"ansi"`: `render()` returns the board.

    ## Version History
    2: the prompt for one action a turn. 1: first.
    """

    version: ClassVar[str] = "2"  # rises when prompt, parsing, reward or the levels of a seed change
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (as in Gymnasium)

    def __init__(
        self,
        size: int | Sequence[int] = 6,
        num_boxes: int = 1,
        max_actions_per_turn: int = 5,
        max_turns: int = 5,
        max_actions: int = 10,
        format_penalty: float = -0.1,
        action_format: str = "tags",
        levels: str | Path | None = None,
        split: Split | None = None,
        repeat_rules: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.size = _read_size(size)
        self.num_boxes = read_count("num_boxes", num_boxes)
        self.max_actions_per_turn = read_count("max_actions_per_turn", max_actions_per_turn)
        self.max_turns = read_count("max_turns", max_turns)
        self.max_actions = read_count("max_actions", max_actions)
        self.format_penalty = read_penalty(format_penalty)
        self.action_format = read_choice("action_format", action_format, tuple(_SEPARATORS))
        self.split = None if split is None else read_choice("split", split, get_args(Split))
        self.repeat_rules = read_repeat_rules(repeat_rules, self.action_format == "tags", "action_format: tags")
        self.render_mode = None if render_mode is None else read_choice("render_mode", render_mode, ("ansi",))
        self.levels = None if levels is None else load_levels(levels)
        self.observation_space = gymnasium.spaces.Text(MAX_TEXT_LENGTH, charset=string.printable + "√")
        self.action_space = gymnasium.spaces.Text(MAX_TEXT_LENGTH, min_length=0, charset=string.printable)
        self._state: SokobanState | None = None
        self._num_turns = self._num_actions = 0
        self._ending: str | None = "not begun"

    @property
    def state(self) -> SokobanState:
        """The position on the board."""
        if self._state is None:
            raise ResetNeeded("The environment has no level yet. There is no board to show. Call `reset()` first.")
        return self._state

    @property
    def opens_with_rules(self) -> bool:
        """Whether the first observation alone holds the rules, so that `context: last` loses them."""
        return self.action_format == "tags" and not self.repeat_rules

    @property
    def actions_left(self) -> int:
        """Primitive actions that are still possible: limited by the actions left and by the turns left."""
        turns_left = self.max_turns - self._num_turns
        return min(self.max_actions - self._num_actions, turns_left * self.max_actions_per_turn)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode; see the class for `options`."""
        super().reset(seed=seed)
        options = options or {}
        check_options(options, ["level"])
        level = options.get("level")
        self._state = self._next_level() if level is None else self._read_level(level)
        self._num_turns = self._num_actions = 0
        self._ending = None
        board = self._state.to_text()
        info = {"solved": False, "num_actions": 0, "action": "", "actions": [], "state": board, "level": board}
        return self._observe(None), info

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
        check_turn(action, self._ending, "actions", "<answer>Right || Up</answer>")
        actions, is_readable = self.parse(action)
        reward, solved = 0.0, False
        executed: list[int] = []
        for number in actions[: self.max_actions - self._num_actions]:
            self._state, step_reward, solved = self.state.step(number)
            executed.append(number)
            reward += step_reward
            if solved:
                break
        self._num_turns += 1
        self._num_actions += len(executed)
        truncated = not solved and self.actions_left == 0
        info: dict[str, Any] = {
            "solved": solved,
            "num_actions": self._num_actions,
            "action": self._join(executed),
            "actions": executed,
            "state": self.state.to_text(),
        }
        if not is_readable and self.format_penalty:
            info["penalty"] = self.format_penalty
        if truncated:
            info["truncation"] = "task_budget"
        if solved or truncated:
            self._ending = "solved" if solved else "out of actions or turns"
        return self._observe(reward), reward, solved, truncated, info

    def render(self) -> str | None:
        """The board in RAGEN's symbols; `None` unless `render_mode` is `"ansi"`."""
        return self.state.render() if self.render_mode == "ansi" else None

    def parse(self, completion: str) -> tuple[list[int], bool]:
        """
        The actions that a completion names.

        Returns:
            `tuple[list[int], bool]`: at most `max_actions_per_turn` actions (1 up, 2 down, 3 left, 4 right) before
            the first unknown word, and whether there were actions and no unknown word among those looked at.
        """
        actions: list[int] = []
        for word in islice(self._read_words(completion), self.max_actions_per_turn):
            if (number := _ACTION_IDS.get(word.lower())) is None:
                return actions, False
            actions.append(number)
        return actions, bool(actions)

    def completion(self, actions: Sequence[int]) -> str:
        """The completion that names these actions (1 up, 2 down, 3 left, 4 right), without reasoning."""
        text = self._join(actions)
        return f"<answer>{text}</answer>" if self.action_format == "tags" else text

    @property
    def action_grammar(self) -> str:
        """What an answer may be, in one line: for records and cards."""
        names = " | ".join(ACTIONS)
        actions = f'action{{1,{self.max_actions_per_turn}}} separated by "{_SEPARATORS[self.action_format]}"'
        answer = f"<answer>{actions}</answer>" if self.action_format == "tags" else actions
        return f"{answer}, action = {names}"

    def random_completion(self, rng: np.random.Generator) -> str:
        """A completion of as many actions as a turn takes, drawn uniformly: the random player's."""
        return self.completion(rng.integers(UP, RIGHT + 1, size=self.max_actions_per_turn).tolist())

    def optimal_completions(self) -> list[str]:
        """
        The completions, one for each turn, that earn the most from here within the actions and turns left.

        Each names as many actions as a turn takes. They solve the level if that is possible in time; else they earn
        what can be earned (see `best_plan`), and there is none where every action loses.
        """
        actions = best_plan(self.state, self.actions_left).actions
        size = self.max_actions_per_turn
        return [self.completion(actions[start : start + size]) for start in range(0, len(actions), size)]

    def _join(self, actions: Sequence[int]) -> str:
        return _SEPARATORS[self.action_format].join(_ACTION_NAMES[number] for number in actions)

    def _read_words(self, completion: str) -> Iterator[str]:
        if self.action_format == "bare":
            return (found[0] for found in re.finditer(r"[^\s,|]+", completion))
        words = (word.strip() for word in read_answer(completion).split("||"))
        return (word for word in words if word)

    def _observe(self, reward: float | None) -> str:
        board, actions_left = self.state.render(), self.actions_left
        if self.action_format == "bare":
            return f"{board}\n{actions_left}"
        opening = ""
        if reward is None or self.repeat_rules:
            opening = _INSTRUCTIONS.format(answer=answer_rule(self.max_actions_per_turn))
        if reward is not None:
            opening += f"Reward:\n{reward:.1f}\n\n"
        if self._ending is not None:
            return f"{opening}State:\n{board}\nThe episode is {self._ending}."
        return opening + _TURN.format(
            turn=self._num_turns + 1,
            max_turns=self.max_turns,
            board=board,
            actions_left=actions_left,
            example=_SEPARATORS["tags"].join(("Right", "Up")[: self.max_actions_per_turn]),
        )

    def _next_level(self) -> SokobanState:
        if self.levels is None:
            longest = min(self.max_actions, self.max_turns * self.max_actions_per_turn)
            return generate_level(
                self.np_random, size=self.size, num_boxes=self.num_boxes, max_solution_length=longest, split=self.split
            )
        for index in self.np_random.permutation(len(self.levels)):
            level = self._read_level(int(index))
            if self.split is None or level_split(level) == self.split:
                return level
        raise ValueError(
            f"No level of `levels`, {len(self.levels)} in all, belongs to the split {self.split!r}. There is "
            "nothing to play. Give more levels, or no `split`."
        )

    def _read_level(self, level: Any) -> SokobanState:
        if isinstance(level, np.ndarray) and level.ndim:
            level = list(level)  # the pair
        if isinstance(level, SokobanState):
            state = level
        elif isinstance(level, str):
            state = SokobanState.from_text(level)
        elif (number := as_integer(level)) is not None:
            if self.levels is None or not 0 <= number < len(self.levels):
                raise ValueError(
                    f"There is no level number {number} among the {len(self.levels or ())} that were loaded. "
                    "Pass a number from 0 on with `levels` given, or the level itself as XSB text."
                )
            state = SokobanState.from_text(self.levels[number])
        elif isinstance(level, Mapping) and {"room_fixed", "room_state"} <= set(level):
            state = SokobanState.from_arrays(level["room_fixed"], level["room_state"], level.get("boxes_on_target", 0))
        elif isinstance(level, Sequence) and len(level) == 2:
            state = SokobanState.from_arrays(*level)
        else:
            raise ValueError(
                f"`level` must be XSB text, the pair (room_fixed, room_state) or a number, got {level!r:.60}. "
                "The level cannot be read. Pass one of these three."
            )
        if state.solved:
            raise ValueError(
                "The level is solved already: every box stands on a target. Any first action would earn 10. Pass a "
                "level with a box off its target."
            )
        if state.board.height * state.board.width > MAX_CELLS:
            raise ValueError(
                f"The level is {state.board.height}x{state.board.width} cells; an observation holds {MAX_CELLS}. The "
                "text would not fit. Pass a smaller level."
            )
        return state


def _read_size(size: object) -> tuple[int, int]:
    match [as_integer(side) for side in (size if isinstance(size, Sequence) else (size, size))]:
        case int(height), int(width) if min(height, width) >= 3 and 5 <= max(height, width) <= MAX_CELLS // 50:
            return height, width
    raise ValueError(
        f"`size` must be a side or (height, width), both from 3 to {MAX_CELLS // 50}, one at least 5, got {size!r}. "
        "Player, box and target must fit between the outer walls, and the text into the observation. Pass for "
        "example 6."
    )
