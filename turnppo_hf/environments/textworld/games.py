"""The settings of a game of TextWorld and a seed go in; its file, made once and kept, comes out, and is opened."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.environments.reading import as_integer, read_choice, read_flag

Split = Literal["train", "test"]


class Setting(NamedTuple):
    """A setting of a game. `Setting(10, range(1, 301))`."""

    default: Any
    choices: Sequence[Any] = (False, True)  # the integers or texts that it may be


# game -> its settings, by TextWorld's own names
SETTINGS: dict[str, dict[str, Setting]] = {
    "coin_collector": {"level": Setting(10, range(1, 301))},
    "cooking": {
        **{"recipe": Setting(1, range(1, 6)), "take": Setting(1, range(6)), "go": Setting(1, (1, 6, 9, 12))},
        **dict.fromkeys(("open", "cook", "cut", "drop"), Setting(False)),
        **{"recipe_seed": Setting(0, range(2**32)), "split": Setting(None, (None, "train", "valid", "test"))},
    },
    "simple": {
        "rewards": Setting("dense", ("dense", "balanced", "sparse")),
        "goal": Setting("detailed", ("detailed", "brief", "none")),
        "test": Setting(False),
    },
}
MAX_GAMES = 500  # tried before a split is called empty
_ONE_AT_A_TIME = threading.Lock()  # the generator and its parser keep state of the process


def import_textworld() -> Any:
    """
    Return the package, which is in no other extra and builds its interpreter from source.

    Raises:
        `ImportError`: it is not installed.
    """
    try:
        import textworld
        import textworld.challenges
        import textworld.generator
    except ImportError as error:
        raise ImportError(
            f"TextWorld cannot be imported ({error}), so its games cannot be played. Install it with "
            '`pip install "turnppo-hf[textworld]"`; its interpreter jericho is built from source, with gcc and make.'
        ) from error
    return textworld


def read_settings(game: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Complete the settings of a game.

    Args:
        game (`str`): A key of `SETTINGS`.
        settings (`Mapping`, *optional*): TextWorld's own names, such as `{"level": 30}`.

    Raises:
        `ValueError`: a game has no such setting, or a setting no such value.
    """
    known, settings = SETTINGS[game], {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"`settings` must be a mapping, got {settings!r:.80}. No setting can be read. Pass for example "
            f"{{{next(iter(known))!r}: {next(iter(known.values())).default!r}}}."
        )
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(
                f"The game {game!r} has no setting {name!r}.{hint} It would have no effect. It takes "
                f"{', '.join(known)}."
            )
    complete = {name: _read_setting(name, settings.get(name, known[name].default), known[name]) for name in known}
    if complete.get("take", 0) > complete.get("recipe", 0):
        raise ValueError(
            f"`settings.take` is {complete['take']} and `settings.recipe` {complete['recipe']}. What is to be found "
            "is part of the recipe. Lower the one or raise the other."
        )
    return complete


def _read_setting(name: str, value: object, setting: Setting) -> Any:
    name, choices = f"settings.{name}", setting.choices
    if choices == (False, True):
        return read_flag(name, value)
    if isinstance(choices[-1], str):
        return None if value is None and None in choices else read_choice(name, value, [*filter(None, choices)])
    if (number := as_integer(value)) is None or number not in choices:
        known = f"from {choices[0]} to {choices[-1]}" if isinstance(choices, range) else f"in {choices}"
        raise ValueError(
            f"`{name}` must be an integer {known}, got {value!r:.80}. TextWorld would make no game of it, or another "
            "one. Pass one of these."
        )
    return number


def default_folder() -> Path:
    """Where games are kept: `turnppo_hf/textworld` in the user's folder of caches."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "turnppo_hf" / "textworld"


def game_file(game: str, settings: Mapping[str, Any], seed: int, folder: Path) -> Path:
    """
    Return the file of a compiled game; it is made where it is not there yet, without network.

    Args:
        game (`str`): A key of `SETTINGS`.
        settings (`Mapping`): Complete, see `read_settings`.
        seed (`int`): Of everything that the generator draws.
        folder (`Path`): Where games are kept, by a hash of all that makes them and of TextWorld's version.

    Raises:
        `ValueError`: TextWorld refuses the settings.
    """
    textworld = import_textworld()
    recipe = json.dumps([textworld.__version__, game, dict(settings), seed], sort_keys=True)
    path = folder / f"{game}-{hashlib.sha256(recipe.encode()).hexdigest()[:24]}.z8"
    if path.exists() and path.with_suffix(".json").exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # made beside its place and moved there whole: other processes may want the same game
    with _ONE_AT_A_TIME, tempfile.TemporaryDirectory(dir=folder) as scratch:
        options = textworld.GameOptions()
        options.seeds, options.path, options.force_recompile = seed, str(Path(scratch) / path.name), True
        # else the goal of a chain of rooms is the whole way to its coin
        options.grammar.only_last_action = game == "coin_collector"
        try:
            made = textworld.challenges.CHALLENGES[f"tw-{game}"][1](dict(settings), options)
        except (ValueError, AssertionError, KeyError) as error:
            raise ValueError(
                f"TextWorld makes no {game!r} of the settings {dict(settings)} ({type(error).__name__}: {error}). "
                "There is nothing to play. Correct the settings."
            ) from error
        textworld.generator.compile_game(made, options)
        for suffix in (".json", ".z8"):  # the game last: where it is, the other one is
            os.replace((Path(scratch) / path.name).with_suffix(suffix), path.with_suffix(suffix))
    return path


def open_game(path: Path) -> Any:
    """Open a compiled game as TextWorld's environment, with all that `TextWorld` reads of it."""
    names = ("feedback", "description", "facts", "won", "lost", "score", "max_score", "objective")
    wanted = dict.fromkeys((*names, "admissible_commands", "policy_commands"), True)
    textworld = import_textworld()
    return textworld.start(str(path), textworld.EnvInfos(**wanted))


def game_split(facts: list[str], goal: str) -> Split:
    """
    The side that a game belongs to, for ever: "test" for one in ten, "train" for the others.

    The CRC-32 of everything that is true at its start and of its goal, modulo 10, is 0 for "test": two seeds of the
    same game are on one side.
    """
    text = "\n".join([goal, *sorted(facts)])
    return "test" if zlib.crc32(text.encode()) % 10 == 0 else "train"
