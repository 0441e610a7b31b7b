"""A YAML file and command line flags in, the task and a checked `TurnPPOConfig` out; mistakes come with a hint."""

from __future__ import annotations

import copy
import os
import re
import shlex
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from turnppo_hf.cli.common import RunConfigError, read_json_object
from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.evaluation.config_files import find_config, near_config
from turnppo_hf.evaluation.yaml_file import YamlFileError, read_yaml_file
from turnppo_hf.redaction import check_unmasked, redact, remember_secrets
from turnppo_hf.trainer.inherited_fields import describe_lacking
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig, describe_fields

MAX_TASKS = 10_000_000  # rows of a run; a dataset may be streamed
HELD_OUT_SEED = 1_000_000  # the first held-out seed, far above any training seed

_EXAMPLES = {"turnppo train": "sokoban_cpu.yaml", "turnppo imitate": "imitate/minigrid.yaml"}
_FOLDERS = {"turnppo train": "", "turnppo imitate": "imitate"}  # of their packaged configs
_FOLDED = "gradient_accumulation_steps"
_ALIASES = {"lambda": "lam"}  # a keyword of Python, so the field has TRL's name


@describe_fields
@dataclass
class TaskArguments:
    """
    What is trained, where, and on which levels it is judged.

    Parameters:
        model (`str`):
            Model id on the Hub, a folder, or `"tiny"` for the Sokoban actor that comes with the package.
        environment (`str`):
            Gymnasium id of a text environment, such as `"turnppo_hf/Sokoban-v0"`.
        environment_kwargs (`dict` or `str`, *optional*):
            Arguments of the environment; JSON on the command line.
        eval_environment_kwargs (`dict` or `str`, *optional*):
            What changes in them for the held-out episodes, such as `{"split": "test"}`.
        num_tasks (`int`, *optional*, defaults to `4096`):
            Training tasks: the environment is reset with the seeds from 0 to `num_tasks` - 1.
        eval_episodes (`int`, *optional*, defaults to `256`):
            Held-out episodes, the same before and after training.
        eval_seed_start (`int`, *optional*, defaults to `1000000`):
            The held-out seeds count up from here.
        dataset (`str`, *optional*):
            Dataset on the Hub, or a folder or JSON file, with a row for each task, instead of seeds: its split `train`
            is trained on, its split `test` is held out where it has one. A row's columns but `seed` are the reset's
            options.
    """

    model: str
    environment: str
    environment_kwargs: dict[str, Any] | str | None = None
    eval_environment_kwargs: dict[str, Any] | str | None = None
    num_tasks: int = 4096
    eval_episodes: int = 256
    eval_seed_start: int = HELD_OUT_SEED
    dataset: str | None = None

    def __post_init__(self) -> None:
        check_unmasked(vars(self), "with its flag, or in the YAML file")
        self.environment_kwargs = read_json_object("environment_kwargs", self.environment_kwargs)
        self.eval_environment_kwargs = read_json_object("eval_environment_kwargs", self.eval_environment_kwargs)
        remember_secrets(vars(self))
        for name, low, high, why in (
            ("num_tasks", 1, MAX_TASKS, "each task is a row in memory, and without one no episode would be played"),
            ("eval_episodes", 1, MAX_TASKS, "each is a row in memory, and without one no episode would be played"),
        ):
            check_range(name, getattr(self, name), low, high, why)
        check_seed_start(self.eval_seed_start)
        seeds_overlap = self.eval_seed_start < self.num_tasks and self.eval_seed_start + self.eval_episodes > 0
        if self.dataset is None and not self.eval_environment_kwargs and seeds_overlap:
            raise RunConfigError(
                f"The held-out seeds start at {self.eval_seed_start}, inside the training seeds 0 to "
                f"{self.num_tasks - 1}. The score would be that of levels seen in training. Raise `eval_seed_start`."
            )


def check_seed_start(seed: int) -> None:
    """
    Check the first seed of the held-out episodes.

    Raises:
        `RunConfigError`: no environment can be seeded with it.
    """
    check_range("eval_seed_start", seed, 0, 2**32 - 1, "environments are seeded with it")


def check_range(name: str, value: int, low: int, high: int, why: str) -> None:
    """Raise `RunConfigError` where a number is out of range; `why` says what for."""
    if not low <= value <= high:
        raise RunConfigError(
            f"`{name}` must be between {low} and {high}, got {value}: {why}. Set `{name}` to such a number."
        )


# TRL's fields of adapters and quantized models, under its names and with its defaults
_OF_ADAPTERS = ("use_", "lora_", "load_in_", "bnb_")
AdapterArguments = make_dataclass(
    "AdapterArguments",
    [
        (item.name, get_type_hints(ModelConfig)[item.name], copy.copy(item))
        for item in fields(ModelConfig)
        if item.name.startswith(_OF_ADAPTERS) and item.name != "lora_task_type"
    ],
)
_KINDS = (TaskArguments, TurnPPOConfig, AdapterArguments)


@dataclass(frozen=True)
class RunConfig:
    """A run: `turnppo train PATH` with its flags applied."""

    path: str
    task: TaskArguments
    training: TurnPPOConfig
    adapters: Any = field(default_factory=AdapterArguments)
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the file and the flags set, and nothing else
    flags: Sequence[str] = ()  # as they were typed

    @property
    def command(self) -> str:
        """What was typed, without places and tokens of this machine; of a file elsewhere only its name."""
        path = Path(self.path)
        return self._command(path.name if path.is_absolute() or ".." in path.parts else self.path, with_places=False)

    @property
    def typed(self) -> str:
        """What was typed, places included, with secrets masked: for the terminal that it was typed on."""
        return self._command(self.path, with_places=True)

    def _command(self, path: str, *, with_places: bool) -> str:
        words, last = [path], ""
        for word in self.flags:
            name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
            last = name[2:].replace("-", "_") if name else last
            if with_places or not _is_local(last):
                words.append(f"{name}{equals}{redact({last: value})[last] if value else value}")
        return shlex.join(["turnppo", "train", *words])

    def adapter_configs(self) -> dict[str, Any]:
        """Return `peft_config` and `quantization_config` of the trainer, each None where it is not asked for."""
        dtype = "bfloat16" if self.training.bf16 else "float32"
        asked = ModelConfig(**vars(self.adapters), dtype=dtype)
        return {"peft_config": get_peft_config(asked), "quantization_config": get_quantization_config(asked)}

    def again(self) -> str:
        """Return a YAML file that trains the same elsewhere: without places, secrets and trackers of this run."""
        kept = redact({name: value for name, value in self.settings.items() if not _is_local(name)})
        return yaml.safe_dump(
            {**kept, "output_dir": f"runs/{Path(str(self.training.output_dir)).name}"}, sort_keys=False
        )


def read_yaml(path: str, folder: str = "") -> dict[str, Any]:
    """
    Read a config file, or a packaged one by its name.

    Raises:
        `RunConfigError`: it is missing, no YAML, or no mapping.
    """
    try:
        return read_yaml_file(find_config(path, folder), path)
    except OSError as error:
        raise RunConfigError(
            f"The config file {path!r} cannot be read: {error.strerror}, so there are no settings to run with."
            f"{near_config(path, folder)}"
        ) from error
    except YamlFileError as error:
        raise RunConfigError(str(error)) from error


def parse_run(arguments: Sequence[str]) -> RunConfig:
    """
    Parse what stands behind `turnppo train`.

    Args:
        arguments (`Sequence[str]`): The path of a YAML file or the name of a packaged one, or `--config PATH`, then
            flags that override its fields.

    Returns:
        [`RunConfig`]

    Raises:
        `RunConfigError`: an unknown field or flag (with the nearest match), a wrong type, an unreadable file.
        `ValueError`: a value out of range.
    """
    (task, training, adapters), asked = parse_words(arguments, build_parser())
    _check_adapters(adapters, asked.settings)
    return RunConfig(asked.path, task, training, adapters, asked.settings, asked.flags)


@dataclass(frozen=True)
class Words:
    """What stood behind a command: a config file and flags."""

    path: str
    settings: Mapping[str, Any]  # what the file and the flags set, and nothing else
    flags: Sequence[str]  # as they were typed


def parse_words(
    arguments: Sequence[str],
    parser: TrlParser,
    defaults: Mapping[str, Any] | None = None,
    only_with: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[list[Any], Words]:
    """
    Parse a config file and the flags that override its fields.

    Args:
        arguments (`Sequence[str]`): The words behind a command.
        parser ([`FieldParser`]): Of the command; its dataclasses have the fields.
        defaults (`Mapping`, *optional*): Values instead of the dataclasses' own defaults.
        only_with (`Mapping`, *optional*): Field -> its only value beside which another has a meaning, and that other:
            where a flag gives the field another value, what the file says of the other is dropped.

    Returns:
        `tuple`: an instance of each dataclass, and what was set.

    Raises:
        `RunConfigError`: an unknown field or flag (with the nearest match), a wrong type, an unreadable file.
        `ValueError`: a value out of range.
    """
    path, typed = _split_path(arguments, parser.prog)
    hints = _field_types(parser.dataclass_types)
    values = _checked_values(path, read_yaml(path, _FOLDERS[parser.prog]), hints, parser.prog)
    flags = _checked_flags(typed, hints, parser.prog)
    named = [flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")]
    for name, (value, other) in (only_with or {}).items():
        if name in named and f"--{name}={value}" not in flags and (f"--{name}", value) not in pairwise(flags):
            values.pop(other, None)
    os.environ.update({name: str(value) for name, value in values.pop("env", {}).items()})
    parser.set_defaults_with_config(**{**(defaults or {}), **values})
    *parts, remaining = parser.parse_args_into_dataclasses(
        flags, return_remaining_strings=True, look_for_args_file=False
    )
    if remaining:
        raise RunConfigError(
            f"{remaining[0]!r} belongs to no flag. Flags are written --field value; quote a value with spaces."
        )
    set_by_flag = [name if name in hints else name.removeprefix("no_") for name in named]
    parsed = {name: next(getattr(part, name) for part in parts if hasattr(part, name)) for name in set_by_flag}
    if _FOLDED in parsed:  # as typed: the configuration counts it in another field, and sets it to 1
        parsed[_FOLDED] = getattr(parser.parse_known_args(flags)[0], _FOLDED)
    changed = {name: value.value if isinstance(value, Enum) else value for name, value in parsed.items()}
    return parts, Words(path, {**values, **changed}, typed)


def _check_adapters(adapters: Any, settings: Mapping[str, Any]) -> None:
    idle = [name for name, value in settings.items() if hasattr(adapters, name) and value]
    if idle and not adapters.use_peft:
        raise RunConfigError(
            f"`{idle[0]}` is set without `use_peft`, so no adapter would be trained. Set `use_peft: true`, or drop "
            f"`{idle[0]}`."
        )


def build_parser() -> TrlParser:
    """Return the parser of `turnppo train`, for `--help` and for `parse_run`."""
    return FieldParser(
        _KINDS,
        prog="turnppo train",
        usage="turnppo train CONFIG.yaml [--field value ...]",
        description="Train an actor and a critic; every field below is a key of the YAML file and a flag. `lambda` is "
        "another name of `lam`.",
        allow_abbrev=False,
    )


class FieldParser(TrlParser):  # type: ignore[misc]
    """TRL's parser, with errors as exceptions instead of a usage message of three hundred lines."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        if message.startswith("the following arguments are required: "):
            names = ", ".join(f"`{name.split('/')[0].lstrip('-')}`" for name in message.split(": ", 1)[1].split(", "))
            raise RunConfigError(f"The run lacks its {names}. Set it in the config file or by its flag.")
        if match := re.fullmatch(r"argument (--\w+)\S*: (.*)", message, re.DOTALL):
            flag, problem = match[1], " ".join(match[2].split())
            raise RunConfigError(
                f"`{flag}`: {problem}, so it is open what the run should do. Give it a value that "
                f"`{self.prog} --help` names for it."
            )
        raise RunConfigError(f"{message[:1].upper()}{message[1:]}.")


def _is_local(name: str) -> bool:
    places = ("output_dir", "overwrite_output_dir", "logging_dir", "resume_from_checkpoint", "run_name", "env")
    kinds = ("push_to_hub", "report_to")
    return name in (*places, *kinds) or name.startswith(("hub_", "trackio_")) or name.endswith("_token")


def _split_path(arguments: Sequence[str], prog: str) -> tuple[str, list[str]]:
    rest = list(arguments)
    if rest and not rest[0].startswith("-"):
        return rest[0], rest[1:]
    if "--config" in rest[:-1]:
        position = rest.index("--config")
        return rest[position + 1], rest[:position] + rest[position + 2 :]
    raise RunConfigError(
        f"`{prog}` needs a config file, such as trainer_configs/{_EXAMPLES[prog]}, before its flags. "
        "`turnppo configs` lists those of the package."
    )


def _field_types(kinds: Iterable[Any]) -> dict[str, Any]:
    known = [(kind, get_type_hints(kind)) for kind in kinds]
    return {item.name: hints[item.name] for kind, hints in known for item in fields(kind) if item.init}


def _checked_values(path: str, values: Mapping[str, Any], hints: Mapping[str, Any], prog: str) -> dict[str, Any]:
    """Map aliases, refuse unknown keys and values of a wrong type."""
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = _ALIASES.get(str(key), str(key))
        if name == "resume_from_checkpoint" and isinstance(value, bool):
            value = str(value).lower()  # transformers declares a string; `true` is the newest checkpoint
        if name in checked:
            raise RunConfigError(f"{path} sets `{name}` twice, as {' and '.join(_names_of(name))}. Keep one of them.")
        if name == "env":
            if not isinstance(value, dict):
                raise RunConfigError(f"{path}: `env` must be a mapping of variable names to values, got {value!r}.")
        elif name not in hints:
            raise RunConfigError(
                f"{path}: {describe_lacking(name) or f'`{name}` is no field.{_hint(name, hints, prog)}'}"
            )
        elif not _fits(value, hints[name]):
            raise RunConfigError(
                f"{path}: `{name}` must be {_describe(hints[name])}, got {value!r} ({type(value).__name__})."
                + (
                    " YAML reads bare yes, no, on and off as true and false: quote it."
                    if isinstance(value, bool)
                    else ""
                )
            )
        checked[name] = value
    return checked


def _checked_flags(flags: Sequence[str], hints: Mapping[str, Any], prog: str) -> list[str]:
    """Map aliases and refuse unknown flags."""
    checked = []
    for flag in flags:
        if flag.startswith("--"):
            name, equals, value = flag[2:].partition("=")
            name = name.replace("-", "_")
            name = _ALIASES.get(name, name)
            if name not in hints and name.removeprefix("no_") not in hints:
                hint = _hint(name, hints, prog, form="`--{}`")
                raise RunConfigError(describe_lacking(name) or f"`{flag.partition('=')[0]}` is no flag.{hint}")
            flag = f"--{name}{equals}{value}"
        checked.append(flag)
    return checked


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value may stand for a field of this type; strings may, where they convert."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        return not isinstance(value, bool) and _converts(value, hint)
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, str):  # enumerations of names too
        return isinstance(value, str)
    return not isinstance(kind, type) or isinstance(value, (kind, str))


def _converts(value: Any, kind: type[int] | type[float]) -> bool:
    if isinstance(value, str):
        try:
            kind(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int) or (kind is float and isinstance(value, float))


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        options = [_describe(option) for option in get_args(hint) if option is not type(None)]
        return " or ".join(dict.fromkeys(options)) + (" or null" if type(None) in get_args(hint) else "")
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a string", dict: "a mapping"}
    kind = get_origin(hint) or hint
    return words.get(kind, "a list" if kind is list else "a string")


def _names_of(name: str) -> list[str]:
    return [f"`{alias}`" for alias, target in _ALIASES.items() if target == name] + [f"`{name}`"]


def _hint(name: str, fields: Iterable[str], prog: str, form: str = "`{}`") -> str:
    return f"{did_you_mean(name, [*fields, *_ALIASES], form=form)} `{prog} --help` lists all fields."
