"""`turnppo.json`, what an agent plays and how, in; its checked fields out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.files import read_json

RECORD_FILE = "turnppo.json"


SCHEMA_VERSION = 1


_LIMITS = ("max_turns", "max_turn_length", "max_completion_length")


_RECORD_TYPES: dict[str, tuple[type, ...]] = {
    "schema_version": (int,),
    "environment": (str, type(None)),
    "environment_kwargs": (dict,),
    "data": (str,),
    "limits": (dict,),
    "chat_template_kwargs": (dict,),
    "evaluation": (dict,),
    "sampling": (dict,),
    "algorithm": (str,),
    "gamma": (int, float),
    "lam": (int, float),
    "token_gamma": (int, float),
    "token_lam": (int, float),
    "action_grammar": (str,),
    "example": (dict,),
    "package": (dict,),
    "base_model": (str,),
    "value_position": (str,),
    "environment_name": (str,),
    "environment_version": (str,),
    "tools": (list,),
}


_ALGORITHMS = ("turn_ppo", "token_ppo", "grpo", "rloo")


MAX_EPISODES = 100_000  # of an evaluation that a record asks for


# arguments of `apply_chat_template` that a record may not set: they change what is rendered, or how long it takes
_OWN_TEMPLATE_ARGUMENTS = (
    *("conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
)


def read_record(folder: str | Path) -> dict[str, Any]:
    """
    Read `turnppo.json` of an agent; empty where there is none.

    Raises:
        `ReleaseError`: it is no JSON object, has a value of a wrong type, or was written by a newer version.
    """
    path = Path(folder) / RECORD_FILE
    if not path.exists():
        return {}
    record = read_json(path)
    version = record.get("schema_version", 0)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ReleaseError(
            f"{path} has schema version {version}, this version reads up to {SCHEMA_VERSION}. Upgrade turnppo-hf."
        )
    for name, kinds in _RECORD_TYPES.items():
        value = record.get(name, kinds[0]())
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise _damaged(path, name, value, " or ".join(kind.__name__ for kind in kinds))
    for name, value in record.get("limits", {}).items():
        if name not in _LIMITS:
            raise _damaged(path, f"limits.{name}", value, f"absent: the limits are {', '.join(_LIMITS)}")
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise _damaged(path, f"limits.{name}", value, "a positive integer or null")
    if record.get("algorithm", "grpo") not in _ALGORITHMS:
        raise _damaged(path, "algorithm", record["algorithm"], f"one of {', '.join(_ALGORITHMS)}")
    for name in record.get("chat_template_kwargs", {}):
        if name in _OWN_TEMPLATE_ARGUMENTS:
            raise _damaged(path, f"chat_template_kwargs.{name}", record["chat_template_kwargs"][name], "absent")
    for name, value in record.get("sampling", {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise _damaged(path, f"sampling.{name}", value, "a number from 0 on")
    _check_evaluation(path, record.get("evaluation", {}))
    return record


def _check_evaluation(path: Path, evaluation: Mapping[str, Any]) -> None:
    for name, low, high in (("episodes", 1, MAX_EPISODES), ("seed", 0, 2**63), ("temperature", 0, 1e6)):
        value = evaluation.get(name, low)
        kinds = (int, float) if name == "temperature" else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise _damaged(path, f"evaluation.{name}", value, f"a number from {low} to {high:g}")
    tasks = evaluation.get("tasks", [])
    if not isinstance(tasks, list) or not all(
        isinstance(task, dict) and isinstance(task.get("seed"), int) for task in tasks
    ):
        raise _damaged(path, "evaluation.tasks", "...", "a list of objects with an integer `seed`")
    if not isinstance(evaluation.get("environment_kwargs", {}), dict):
        raise _damaged(path, "evaluation.environment_kwargs", evaluation["environment_kwargs"], "an object")


def turn_discounts(record: Mapping[str, Any]) -> tuple[float, float]:
    """
    Return gamma and lambda per turn by which an agent's turns are judged.

    They are 1 unless the agent was trained with turn-level PPO: the critic of token PPO learned returns of tokens.
    """
    if record.get("algorithm", "turn_ppo") != "turn_ppo":
        return 1.0, 1.0
    return float(record.get("gamma", 1.0)), float(record.get("lam", 1.0))


def _damaged(path: Path, name: str, value: Any, wanted: str) -> ReleaseError:
    return ReleaseError(
        f"{path} is damaged: `{name}` is {value!r}, it must be {wanted}. What the agent plays, and how, is read from "
        "it. Download it again; if it stays so, its author has to save the agent anew."
    )
