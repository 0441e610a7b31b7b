"""
What the model wrote goes in; what it reads next and the reward of its turn come out: TextWorld's generated games.

`TextWorld` is registered as `turnppo_hf/TextWorld-v0`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from turnppo_hf.environments.reading import (
    check_turn,
    read_answer,
    read_choice,
    read_count,
    read_flag,
    read_penalty,
    read_repeat_rules,
)
from turnppo_hf.environments.textworld.games import (
    MAX_GAMES,
    SETTINGS,
    Split,
    default_folder,
    game_file,
    game_split,
    import_textworld,
    open_game,
    read_settings,
)

MAX_TEXT_LENGTH = 1 << 15  # characters of an observation and of a sampled completion
_CHARACTERS = frozenset(chr(code) for code in (9, 10, 13, *range(32, 127), *range(160, 0x2100)))

_RULES = """\
You are playing a text game. Each answer is one command, such as: go east, take coin, open wooden door, look.

"""
_TURN = """\
Goal: {goal}
Turn {turn} of {max_turns}.
{text}
{commands}Answer in this form and add nothing: <think>your reasoning</think><answer>go east</answer>"""


class TextWorld(gymnasium.Env[str, str]):
    """
    ## Description
    A game that Microsoft's TextWorld 1.7 (https://github.com/microsoft/TextWorld) generates from a seed, without
    network: coin collector (a chain of rooms, the level is its length), cooking, or its simple game.

    ## Action Space
    `Text`: what the model wrote, as it is; any string is accepted. In the format `"tags"` the command stands between
    `<answer>` and `</answer>`, in the format `"bare"` the completion is the command. Of several lines the first one
    counts.
    A turn without a command gets the format penalty and reaches no game. A command that the game does not understand
    is answered by the game.

    ## Observation Space
    `Text`: the user message of the turn: the goal, in every turn; what the game answered and the room, where the
    answer does not describe it; with `show_commands` the commands that do something here; in the format `"tags"` the
    turn and the form of the answer as well, in the first turn, and in each with `repeat_rules`, after the rules.

    ## Rewards
    The points of the game that the turn earned. The format penalty is not in it but in `info["penalty"]`.

    ## Starting State
    The game of the seed, made when it is first played and kept in `folder`. With a `split`, the first game of that
    side, from this seed on.

    ## Episode End
    Terminated when the game is won or lost. Truncated with `info["truncation"]` `"task_budget"` after `max_turns`.

    ## Information
    `solved` (`bool`, won), `score` and `max_score` (`int`), `action` (`str`, the command), `state` (`str`, everything
    that is true in the game: equal in two turns that begin in the same state), `penalty` (`float`, only where it is
    not 0), `truncation` (only where truncated); after `reset` also `game` (`str`, the name of its file).

    ## Arguments
        game (`str`, *optional*, defaults to `"coin_collector"`):
            `"coin_collector"`, `"cooking"` or `"simple"`.
        settings (`Mapping`, *optional*):
            TextWorld's own settings of the game, such as `{"level": 30}`; see `games.SETTINGS`.
        max_turns (`int`, *optional*, defaults to `50`):
            Turns of an episode.
        show_commands (`bool`, *optional*, defaults to `False`):
            List the commands that do something in the present state.
        num_games (`int`, *optional*, defaults to `100`):
            Games that are made at most: seeds are taken modulo this number. Each takes up to some seconds once.
        format_penalty (`float`, *optional*, defaults to `-0.1`):
            Put into `info["penalty"]` for a turn without a command.
        action_format (`str`, *optional*, defaults to `"tags"`):
            `"tags"` for language models, `"bare"` for small ones with a vocabulary of their own.
        split (`"train"` or `"test"`, *optional*):
            Only games of this side, see `game_split`.
        repeat_rules (`bool`, *optional*, defaults to `False`):
            Put the rules into every observation, for a `context` that leaves out the first one.
        folder (`str` or `Path`, *optional*):
            Where games are kept. Defaults to `turnppo_hf/textworld` in the user's folder of caches.

    ## Version History
    1: first.
    """

    version: ClassVar[str] = "1"  # rises when prompt, parsing or the games of a seed change
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (as in Gymnasium)

    def __init__(
        self,
        game: str = "coin_collector",
        settings: Mapping[str, Any] | None = None,
        max_turns: int = 50,
        show_commands: bool = False,
        num_games: int = 100,
        format_penalty: float = -0.1,
        action_format: str = "tags",
        split: Split | None = None,
        repeat_rules: bool = False,
        folder: str | Path | None = None,
    ) -> None:
        import_textworld()  # so that its absence is named here
        self.game = read_choice("game", game, tuple(SETTINGS))
        self.settings = read_settings(self.game, settings)
        self.max_turns = read_count("max_turns", max_turns)
        self.show_commands = read_flag("show_commands", show_commands)
        self.num_games = read_count("num_games", num_games)
        self.format_penalty = read_penalty(format_penalty)
        self.action_format = read_choice("action_format", action_format, ("tags", "bare"))
        self.split = None if split is None else read_choice("split", split, get_args(Split))
        self.repeat_rules = read_repeat_rules(repeat_rules, self.action_format == "tags", "action_format: tags")
        self.folder = _read_folder(default_folder() if folder is None else folder)
        space = gymnasium.spaces.Text(MAX_TEXT_LENGTH, charset=_CHARACTERS)
        self.observation_space = space
        self.action_space = gymnasium.spaces.Text(MAX_TEXT_LENGTH, min_length=0, charset=_CHARACTERS)
        self._player: Any = None  # TextWorld's environment of the game
        self._path: Path | None = None  # of that game
        self._state: Any = None  # TextWorld's, of the game
        self._num_turns = self._score = 0
        self._ending: str | None = "not begun"

    @property
    def state(self) -> str:
        """Everything that is true in the game, as text: equal texts, equal states."""
        return "\n".join(sorted(map(str, self._now.facts)))

    @property
    def opens_with_rules(self) -> bool:
        """Whether the first observation alone holds the rules, so that `context: last` loses them."""
        return self.action_format == "tags" and not self.repeat_rules

    @property
    def goal(self) -> str:
        """The game's goal in its own words."""
        return str(self._now.objective).strip()

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts a game; `options` are ignored."""
        super().reset(seed=seed)
        for _, number in zip(range(MAX_GAMES), self._seeds(seed), strict=False):
            self._open(game_file(self.game, self.settings, number, self.folder))
            if self.split is None or game_split(list(map(str, self._now.facts)), self.goal) == self.split:
                break
        else:
            tried = min(self.num_games, MAX_GAMES)
            advice = "Raise `num_games`" if self.num_games < MAX_GAMES else "Take settings with more games"
            raise ValueError(
                f"No game of {self.game!r} is of the split {self.split!r}; {tried} were tried. There is "
                f"nothing to play. {advice}, or take no `split`."
            )
        self._num_turns, self._score, self._ending = 0, 0, None
        assert self._path is not None
        return self._observe(""), {**self._info(""), "game": self._path.name}

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
        check_turn(action, self._ending, "command", "<answer>go east</answer>", episode="game")
        command, is_over, answer = self.parse(action), False, "Nothing was understood."
        if command:
            self._state, _, is_over = self._player.step(command)
            answer = _cleaned(str(self._now.feedback))
        self._num_turns += 1
        score = int(self._now.score or 0)
        reward, self._score = float(score - self._score), score
        solved, terminated = bool(self._now.won), bool(is_over)
        truncated = not terminated and self._num_turns >= self.max_turns
        info = self._info(command)
        if not command and self.format_penalty:
            info["penalty"] = self.format_penalty
        if truncated:
            info["truncation"] = "task_budget"
        if terminated or truncated:
            self._ending = "won" if solved else "lost" if terminated else "out of turns"
        return self._observe(answer), reward, terminated, truncated, info

    def parse(self, completion: str) -> str:
        """Return the command of a completion, a single line; "" where there is none."""
        text = read_answer(completion) if self.action_format == "tags" else completion
        line = next((line for line in text.strip().splitlines() if line.strip()), "")
        return "".join(sign for sign in line if sign.isprintable()).strip()[:200]

    def completion(self, command: str) -> str:
        """The completion that gives this command, without reasoning."""
        return f"<answer>{command}</answer>" if self.action_format == "tags" else command

    @property
    def action_grammar(self) -> str:
        """What an answer may be, in one line: for records and cards."""
        return self.completion("command")

    def random_completion(self, rng: np.random.Generator) -> str:
        """One of the commands that do something in the present state, drawn uniformly: the random player's."""
        commands = self._commands()
        return self.completion(commands[int(rng.integers(len(commands)))] if commands else "look")

    def optimal_completions(self) -> list[str]:
        """The completions, one for each turn, of TextWorld's own solution from here; none after a mistake for good."""
        return [self.completion(str(command)) for command in self._now.policy_commands or ()]

    def close(self) -> None:
        """Closes the game."""
        if self._player is not None:
            self._player.close()
            self._player = self._path = None

    @property
    def _now(self) -> Any:
        if self._state is None:
            raise ResetNeeded("The environment has no game yet, so nothing can be told of it. Call `reset()` first.")
        return self._state

    def _open(self, path: Path) -> None:
        if path != self._path:
            self.close()
            self._player, self._path = open_game(path), path
        self._state = self._player.reset()

    def _seeds(self, seed: int | None) -> Iterator[int]:
        first = int(self.np_random.integers(2**31)) if seed is None else seed
        for number in range(self.num_games):
            yield (first + number) % self.num_games

    def _commands(self) -> list[str]:
        return sorted(map(str, self._now.admissible_commands or ()))

    def _info(self, command: str) -> dict[str, Any]:
        return {
            "solved": bool(self._now.won),
            "score": int(self._now.score or 0),
            "max_score": int(self._now.max_score or 0),
            "action": command,
            "state": self.state,
        }

    def _observe(self, answer: str) -> str:
        room = _cleaned(str(self._now.description))
        text = "\n".join(part for part in (answer, "" if room in answer else room) if part)
        if self._ending is not None:
            return f"Goal: {self.goal}\n{text}\nThe game is {self._ending}."
        shown = f"Commands: {', '.join(self._commands())}\n" if self.show_commands else ""
        if self.action_format == "bare":
            return f"Goal: {self.goal}\n{text}\n{shown}".rstrip()
        turn = _TURN.format(
            goal=self.goal, turn=self._num_turns + 1, max_turns=self.max_turns, text=text, commands=shown
        )
        return _RULES + turn if self.repeat_rules or self._num_turns == 0 else turn


def _read_folder(folder: object) -> Path:
    if isinstance(folder, str | Path):
        path = Path(folder)
        if all(place.is_dir() or not place.exists() for place in (path, *path.parents)):
            return path
    raise ValueError(
        f"`folder` is {str(folder)!r:.200}, which is no folder and can become none. Games are kept there. Pass the "
        "path of a folder; it is made where there is none."
    )


def _cleaned(text: str) -> str:
    """The game's text without its own prompt, status line, closing questions and empty lines."""
    text = re.split(r"\n>|\n\s*\*\*\* The End", text)[0]
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
