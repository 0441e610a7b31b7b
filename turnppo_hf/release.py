"""The folder of an agent in; what belongs to its release, and whether it is safe to load, out. Nothing is executed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

CRITIC_FOLDER = "critic"
RECORD_FILE = "turnppo.json"
SCHEMA_VERSION = 1

# a pickle runs code where it is read; the rest is the trainer's own state, or other people's cache
PRIVATE_FILES = (
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt"),
    *("_*", "checkpoint-*", "rollout_*.safetensors", "trajectories/*", ".cache/*", ".git/*"),
)
# what loading and republishing an agent read of a repository
PUBLIC_FILES = (
    *("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "*.model"),
    *("README.md", "LICENSE", "*.yaml", "*.webp", "assets/*"),
)
# what tells of an agent's training and judgement: it goes with the agent wherever it is saved
EVIDENCE_FILES = (
    *("README.md", "LICENSE", "results.json", "trainer_state.json", "training_config.json", "train_config.yaml"),
    *("*.webp", "assets/*.png", ".eval_results/*.yaml"),
)
# what a push uploads of a run's folder, pictures that a user's section may show among it
PUBLISHED_FILES = (
    *PUBLIC_FILES,
    *(".eval_results/*.yaml", "wheels/*.whl", "runs/*"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.mp4"),
)
# what a push deletes where the new release has none, so that no file of another agent speaks for this one; `*` stands
# for folders, too, and checkpoints in folders of their own stay
OWNED_FILES = (
    *("critic/*", "model*.safetensors", "model.safetensors.index.json", "adapter_*", "config.json"),
    *("turnppo.json", "results.json", "trainer_state.json", "training_config.json", "train_config.yaml"),
    *(".eval_results/turnppo.yaml", "replay*.webp", "assets/learning_curve-*.png", "assets/calibration-*.png"),
    "wheels/*.whl",
)
UNREAD_FOLDERS = ("checkpoint-*", "last-checkpoint/*")

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
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


class ReleaseError(ValueError):
    """A repository or folder that is no agent, or that would have to be trusted further than its weights."""


class PushError(RuntimeError):
    """
    A push that failed for good; what was to be pushed is still on the disk.

    Args:
        message (`str`): What failed, why, and what to do.
        is_transient (`bool`): Whether the same push may succeed later.
    """

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # else a copy, such as the one that another process is sent, would miss its second argument
        return partial(type(self), is_transient=self.is_transient), self.args


def is_private(name: str) -> bool:
    """Whether a file (relative, with `/`) never leaves the machine."""
    return any(fnmatch(name, pattern) for pattern in PRIVATE_FILES)


def check_names(names: Iterable[str], where: str) -> None:
    """
    Refuse a repository by the names of its files, before one is downloaded.

    Args:
        names (`Iterable[str]`): Relative paths as the Hub lists them.
        where (`str`): Whose they are, for the message.

    Raises:
        `ReleaseError`: a name that leaves the folder, or weights that exist only as pickles.
    """
    listed = list(names)
    for name in listed:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name):
            raise ReleaseError(
                f"{where} lists a file named {name!r}, which would be written outside of its own folder. Nothing "
                "was downloaded. Do not use this repository."
            )
    in_root = [name for name in listed if "/" not in name]
    pickles = [name for name in in_root if name.endswith(_PICKLES) and name != "training_args.bin"]
    if pickles and not any(name.endswith(".safetensors") for name in in_root):
        raise ReleaseError(
            f"{where} has its weights in {pickles[0]!r}, a pickle, which can run code when it is read. It was not "
            "read. Ask its author for safetensors, or convert it on a machine that you can lose."
        )


def check_is_model(folder: Path, where: str) -> None:
    """
    Check that a folder holds a model at all.

    Raises:
        `ReleaseError`: it has neither a configuration nor that of an adapter.
    """
    if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise ReleaseError(
            f"{where!r} holds no config.json, so it is no model. Name the folder that a run saved (its `output_dir`, "
            "or a checkpoint in it), or a repository that holds an agent."
        )


def check_folder(folder: Path, where: str | None = None) -> None:
    """
    Check an agent's folder before anything of it is loaded.

    Args:
        folder (`Path`): Local copy.
        where (`str`, *optional*): What the user named, for messages.

    Raises:
        `ReleaseError`: no configuration or weights, weights in pickles, a wish for remote code, an index of weights
            that leaves the folder, or a critic that does not belong to the actor.
    """
    where = where or str(folder)
    check_is_model(folder, where)
    check_names([path.relative_to(folder).as_posix() for path in folder.glob("*") if path.is_file()], where)
    for part in (folder, folder / CRITIC_FOLDER):
        if part.is_dir():
            _check_part(part, where)
    _check_adapters(folder, where)
    critic, actor = folder / CRITIC_FOLDER / "config.json", folder / "config.json"
    if critic.exists() and actor.exists():
        check_critic(read_json(critic), read_json(actor), f"The critic of {where}")


def _check_part(part: Path, where: str) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        settings = read_json(part / name) if (part / name).exists() else {}
        if settings.get("auto_map") or settings.get("custom_pipelines"):
            raise ReleaseError(
                f"{where} asks in {name} for code of its own (`auto_map`), which would run with your rights. None was "
                "run. If you trust it, load it with transformers and `trust_remote_code=True`, and pass actor and "
                "tokenizer to TurnPPOAgent."
            )
    weights = list(part.glob("*.safetensors"))
    if not weights:
        raise ReleaseError(
            f"{where} holds no weights in safetensors{' for its critic' if part.name == CRITIC_FOLDER else ''}, and "
            "no other kind is loaded. Save the model again with `save_pretrained`, or wait for its upload to finish."
        )
    for index in part.glob("*.safetensors.index.json"):
        for shard in set(read_json(index).get("weight_map", {}).values()):
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ReleaseError(
                    f"{where} says in {index.name} that weights lie in {shard!r}, outside of its own folder. Nothing "
                    "was loaded. Do not use this repository."
                )


def _check_adapters(folder: Path, where: str) -> None:
    """Adapters of both networks sit on one base model, which this machine can find."""
    files = [path for part in (folder, folder / CRITIC_FOLDER) if (path := part / "adapter_config.json").exists()]
    bases = [str(read_json(path).get("base_model_name_or_path")) for path in files]
    if len(set(bases)) > 1:
        raise ReleaseError(
            f"{where} has an actor on the base model {bases[0]!r} and a critic on {bases[1]!r}. A critic reads the "
            "actor's own tokens; save both on one base."
        )
    for base in bases[:1]:
        if (Path(base).is_absolute() or base.startswith(".")) and not Path(base).is_dir():
            raise ReleaseError(
                f"{where} holds adapters for the base model {base!r}, a folder that is not on this machine. Save them "
                "on a base model that has an id on the Hub, or merge them into it."
            )


def check_critic(critic: Mapping[str, Any], actor: Mapping[str, Any], what: str) -> None:
    """
    Check by their configurations that a critic reads the actor's tokens and gives one number for each.

    Raises:
        `ReleaseError`: several labels, or another vocabulary.
    """
    named = critic.get("id2label")
    labels = len(named) if isinstance(named, Mapping) and named else critic.get("num_labels", 2)
    sizes = labels, _text_config(critic).get("vocab_size")
    vocabulary = _text_config(actor).get("vocab_size")
    if sizes != (1, vocabulary):
        raise ReleaseError(
            f"{what} has {sizes[0]} labels and a vocabulary of {sizes[1]}, but it must have 1 and the actor's "
            f"{vocabulary}: it reads the actor's own tokens and says one value. It belongs to another base model; "
            "train or take one of the same family."
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


def read_json(path: Path) -> dict[str, Any]:
    """
    Read a file that holds one JSON object.

    Raises:
        `ReleaseError`: it does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # wrong bytes, no JSON, numbers or nesting without end
        raise ReleaseError(f"{path} cannot be read as JSON ({error}). Download or save it again.") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{path} holds {type(content).__name__}, not a JSON object. Download or save it again.")
    return content


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _damaged(path: Path, name: str, value: Any, wanted: str) -> ReleaseError:
    return ReleaseError(
        f"{path} is damaged: `{name}` is {value!r}, it must be {wanted}. What the agent plays, and how, is read from "
        "it. Download it again; if it stays so, its author has to save the agent anew."
    )
