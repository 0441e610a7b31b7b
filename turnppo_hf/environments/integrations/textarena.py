"""The id of a TextArena game, or the game itself, goes in; a Gymnasium environment of one player comes out."""

from __future__ import annotations

import random
import string
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.environments.reading import check_arguments, check_turn

try:
    from textarena import ObservationType, make
    from textarena.core import Wrapper
    from textarena.envs.registration import ENV_REGISTRY
except ImportError as error:
    raise ImportError(
        f"TextArena cannot be imported ({error}), so its games cannot be played. Install it with "
        '`pip install "turnppo-hf[textarena]"`.'
    ) from error

_PLAYER = 0  # the model's place
_NO_NEWS = "The game has nothing to add."
# games draw from Python's and NumPy's global generators: one of them at a time may
_GLOBAL_GENERATORS = threading.Lock()


class TextArenaGame(gymnasium.Env[str, str]):
    """
    ## Description
    A game of TextArena (https://github.com/LeonGuertler/TextArena) for one player, or for two with a fixed opponent.
    `make_environment("textarena/TowerOfHanoi-v0")` makes one from its id there.

    ## Action Space
    `Text`: what the model wrote. The game looks for its move, mostly in brackets, such as `[A C]`; the wrappers of
    the id that change an action are kept.

    ## Observation Space
    `Text`: what the game and the opponent wrote since the player's last turn. What was written before stands in the
    conversation, and so do the player's own words, which the game echoes; the wrappers of the id that repeat both in
    every observation are therefore left out (they also go on repeating the games before).

    ## Rewards
    0 until the game ends, then the player's reward in it: for most games of one player 1 where it is solved and the
    part that was reached otherwise, for two players 1, 0 or -1.

    ## Starting State
    A new game from the seed. Games draw from Python's global generators; each gets a stream of its own, so that games
    played side by side do not change each other. Options are ignored.

    ## Episode End
    Terminated when the game ends, by its own limit of turns too: its reward counts what was reached by then.

    ## Information
    `state` (`str`), what the game records of its position. At the end `solved` (`bool`, the reward is at least 1),
    `reason` (`str`), and what the game records of the player, such as `turn_count` and `invalid_move`.

    ## Arguments
        game (`str` or `textarena.Env`):
            Id or game.
        opponent (`Callable[[str], str]`, *optional*):
            Plays the other side of a game of two, such as a TextArena agent: all that it was shown so far goes
            in, its move comes out. It answers at once, as games wait for each other.
        options:
            Arguments of a game that is given by its id, such as `num_disks=4`.
    """

    def __init__(self, game: Any, opponent: Callable[[str], str] | None = None, **options: Any) -> None:
        if opponent is not None and not callable(opponent):
            raise ValueError(
                f"`opponent` is {opponent!r:.80}, which cannot be called, so the other side would have no moves. "
                "Pass a function that gets what the opponent was shown and returns its move."
            )
        if options and not isinstance(game, str):
            raise ValueError(
                f"{', '.join(options)} would have no effect, as the game is made already. Make it with these "
                "arguments, or pass its id."
            )
        self._game = _make(game, options) if isinstance(game, str) else game
        self._plain = self._game
        while isinstance(self._plain, Wrapper):
            self._plain = self._plain.env
        self._opponent, self._heard = opponent, ""
        self._random: tuple[Any, Any] | None = None
        self._is_over = True
        self.observation_space = gymnasium.spaces.Text(1 << 16, min_length=0, charset=string.printable)
        self.action_space = gymnasium.spaces.Text(1 << 16, min_length=0, charset=string.printable)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """
        Starts a game.

        Raises:
            `ValueError`: it is for another number of players.
        """
        super().reset(seed=seed)
        self._is_over = True
        num_players = 1 if self._opponent is None else 2
        game_seed = int(self.np_random.integers(1 << 32)) if seed is None else seed
        with self._own_generators():
            random.seed(game_seed)
            np.random.seed(game_seed % (1 << 32))
            try:
                self._game.reset(num_players=num_players, seed=game_seed)
            except AssertionError as error:
                raise ValueError(
                    f"{type(self._plain).__name__} does not start with {num_players} of its players: {error} A game "
                    "of one player needs no `opponent`, a game of two needs one; others cannot be played here."
                ) from error
            self._heard = ""
            self._is_over = self._let_opponent_play()
        if self._is_over:
            raise ValueError(
                f"{type(self._plain).__name__} was over before the player's first turn (seed {seed}). There is "
                "nothing to learn from. Change the opponent or the options."
            )
        return self._observe(), {"state": self._state()}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """
        Plays one turn, and the opponent's.

        Raises:
            `gymnasium.error.ResetNeeded`: the game is over or not begun.
            `TypeError`: `action` is no string.
        """
        check_turn(action, "over or not begun" if self._is_over else None, "move", "[A C]", episode="game")
        with self._own_generators():
            is_over, _ = self._game.step(action)
            self._is_over = is_over or self._let_opponent_play()
        if not self._is_over:
            return self._observe(), 0.0, False, False, {"state": self._state()}
        rewards, players = self._game.close()
        reward = float((rewards or {}).get(_PLAYER, 0.0))
        outcome = dict((players or {}).get(_PLAYER, {}))
        info = {**outcome, "reason": str(outcome.get("reason") or ""), "solved": reward >= 1, "state": self._state()}
        return self._observe(), reward, True, False, info

    def _let_opponent_play(self) -> bool:
        """Play the other side until it is the player's turn; return whether the game is over."""
        is_over = False
        while self._opponent is not None and not is_over and self._plain.state.current_player_id != _PLAYER:
            player, messages = self._plain.get_observation()
            self._heard += "".join(f"\n{line}" for line in self._lines(messages, player))
            is_over, _ = self._game.step(self._opponent(self._heard))
        return is_over

    def _state(self) -> str:
        return repr(self._plain.state.game_state)

    def _observe(self) -> str:
        messages = self._plain.state.observations[_PLAYER]
        self._plain.state.observations[_PLAYER] = []
        return "\n".join(self._lines(messages, _PLAYER)) or _NO_NEWS

    def _lines(self, messages: list[Any], player: int) -> Iterator[str]:
        """What a player was shown, without its own words; some games of one player echo these as the game's."""
        names = self._plain.state.role_mapping
        for sender, message, kind in messages:
            is_own = sender == player or self._opponent is None
            if not (kind is ObservationType.PLAYER_ACTION and is_own):
                yield f"[{names.get(sender, f'Player {sender}')}] {message}"

    @contextmanager
    def _own_generators(self) -> Iterator[None]:
        with _GLOBAL_GENERATORS:
            outer = random.getstate(), np.random.get_state()
            if self._random is not None:
                random.setstate(self._random[0])
                np.random.set_state(self._random[1])
            try:
                yield
            finally:
                self._random = random.getstate(), np.random.get_state()
                random.setstate(outer[0])
                np.random.set_state(outer[1])


def _make(name: str, options: Mapping[str, Any]) -> Any:
    if name not in ENV_REGISTRY:
        hint = did_you_mean(name, ENV_REGISTRY, cutoff=0.5)
        raise ValueError(
            f"TextArena has no game {name!r}.{hint} Nothing else can be played. Its ids stand in "
            "textarena.envs.registration.ENV_REGISTRY."
        )
    check_arguments(name, ENV_REGISTRY[name].entry_point, options, further=["opponent"])
    return make(name, **options)
