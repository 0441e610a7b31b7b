"""Pieces of several commands: help of a model argument, environment flags, quiet loading, a diagnosis in columns."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium

    from turnppo_hf.agent import TurnPPOAgent


MODEL_HELP = (
    "folder that a run saved, model id on the Hub, or tiny-trained (Sokoban, with critic), tiny (where its training "
    "began) or tiny-webshop for the actors in the package"
)

_DECIDE_THE_SPLIT = {"split_by", "num_products"}  # arguments of our worlds, beside `split`


class RunConfigError(ValueError):
    """A config file or a flag that cannot be understood."""


@dataclass(frozen=True)
class Diagnosis:
    """What `turnppo doctor` found."""

    page: str
    healthy: bool  # every core package is there, in the range that was tried


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that choose an environment."""
    parser.add_argument("--environment", metavar="ID", help="Gymnasium id (default: the one the model was trained in)")
    parser.add_argument(
        "--environment_kwargs",
        metavar="JSON",
        help="arguments of the environment, on top of those of the model's own (default: none)",
    )


def hide_loading_bars() -> None:
    """Switch the progress bars of loading and saving weights off: they would stand between the printed lines."""
    import datasets
    from transformers.utils.logging import disable_progress_bar

    datasets.disable_progress_bars()
    disable_progress_bar()


def warn_of_seen_levels(environment: str, kwargs: Mapping[str, Any], held_out: Mapping[str, Any]) -> None:
    """
    Warn where the held-out levels of one of our worlds may be among those of training.

    Args:
        environment (`str`): Id, or the short name of one of ours.
        kwargs (`Mapping`): Its arguments in training.
        held_out (`Mapping`): Those of the held-out episodes. `split` set to None on both sides asks for it.
    """
    from turnppo_hf.environments import default_arguments, full_id

    if not full_id(environment).startswith("turnppo_hf/"):
        return
    sides = kwargs.get("split"), held_out.get("split")
    for name in sorted(_DECIDE_THE_SPLIT & (kwargs.keys() | held_out.keys())):
        defaults = default_arguments(environment)
        ours, theirs = ({**defaults, **side}.get(name) for side in (kwargs, held_out))
        if None not in sides and ours != theirs:
            warnings.warn(
                f"`{name}` is {ours} in training and {theirs} held out, and it decides what is in a split, so "
                "held-out episodes may be levels that were trained on. Set it in `environment_kwargs` alone.",
                stacklevel=3,
            )
    is_asked_for = "split" in kwargs and sides == (None, None)
    is_apart = None not in sides and sides[0] != sides[1]
    if not (is_asked_for or is_apart):
        warnings.warn(
            f"`split` is {sides[0]} in training and {sides[1]} held out, so held-out episodes may be levels that were "
            'trained on. Set "split": "train" in `environment_kwargs` and "split": "test" in '
            "`eval_environment_kwargs`, or null in both.",
            stacklevel=3,
        )


def check_seed(seed: int) -> None:
    """
    Check `--seed`, of an environment.

    Raises:
        `ValueError`: Gymnasium refuses it.
    """
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}: environments take no other seed. Correct it.")


def check_port(port: int) -> None:
    """
    Check `--port`, where something is served.

    Raises:
        `ValueError`: no such port exists.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {port}: nothing could be served there. Name another.")


def read_json_object(name: str, value: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """
    Read a dictionary that may be written as JSON.

    Raises:
        `RunConfigError`: it is no JSON object.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RunConfigError(
                f"`{name}` is no JSON: {error}. It is read as a JSON object. Write for example "
                f"--{name} '{{\"size\": 5}}', in single quotes."
            ) from error
    if not isinstance(value, Mapping | None):
        raise RunConfigError(f'`{name}` must be a JSON object such as {{"size": 5}}, got {value!r}.')
    return dict(value or {})


def environment_of(agent: TurnPPOAgent, arguments: argparse.Namespace) -> tuple[str, partial[gymnasium.Env]]:
    """Take the environment from the flags, else from the model's record."""
    return agent.environment(
        arguments.environment, **read_json_object("environment_kwargs", arguments.environment_kwargs)
    )


def columns(rows: list[tuple[str, str, str]]) -> str:
    """Lay rows of a name, a finding and what it means out in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {row[0].ljust(widths[0])}  {row[1].ljust(widths[1])}  {row[2]}" for row in rows)
