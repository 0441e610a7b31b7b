"""`turnppo.json`, what an agent plays and how, in; an `AgentRecord` out, and back."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium

from turnppo_hf.environments import adapt, full_id, make_environment
from turnppo_hf.environments.conversation import TextEnvironment, warn_of_lost_rules
from turnppo_hf.environments.exits import close_unused
from turnppo_hf.environments.factory import require_callable
from turnppo_hf.environments.integrations.tools import ToolEnvironment
from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.evaluation.json_fields import EXTRA, NULLABLE, FieldError, read_fields, write_fields
from turnppo_hf.evaluation.results import HeldOut, Package
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.files import read_json
from turnppo_hf.ppo.algorithms import ALGORITHMS, Algorithm
from turnppo_hf.redaction import redacted_json
from turnppo_hf.rollout.context import read_context

RECORD_FILE = "turnppo.json"
SCHEMA_VERSION = 1
MAX_EPISODES = 100_000  # of an evaluation that a record asks for

EnvironmentSource = str | Callable[[], gymnasium.Env[str, str]]

# arguments of environments that read or write files, load datasets, or connect to a server
DATA_ARGUMENTS = ("data", "levels", "folder", "server")
SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_LIMITS = ("max_turns", "max_turn_length", "max_completion_length")

# arguments of `apply_chat_template` that a record may not set: they change what is rendered, or how long it takes
_OWN_TEMPLATE_ARGUMENTS = (
    *("conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
)


@dataclass(frozen=True)
class Example:
    """What the actor read before its first turn of one training episode. A field is None where it was not recorded."""

    messages: tuple[Mapping[str, Any], ...] | None = None  # of the conversation: `role`, `content`
    prompt: str | None = None  # the text that the chat template makes of them


@dataclass(frozen=True)
class AgentRecord:
    """
    How an agent is prompted, sampled and judged, and in which environment: the content of `turnppo.json`.

    A field that is None was not recorded, and has no key in the file; `environment` is `null` there.

    Example: `AgentRecord(environment="turnppo_hf/Sokoban-v0", environment_kwargs={"size": 5}, limits={"max_turns":
    None, "max_turn_length": 8, "max_completion_length": 512}, algorithm="turn_ppo", gamma=0.99, lam=0.9)`.
    """

    package: Package = field(default_factory=Package)  # that saved the agent
    limits: Mapping[str, int | None] | None = None  # arguments of `Limits`: turns, tokens a turn, tokens an episode
    chat_template_kwargs: Mapping[str, Any] | None = None  # arguments of `apply_chat_template`
    context: str | None = None  # what a prompt holds of earlier turns: full, last or window:k
    sampling: Mapping[str, float] | None = None  # in training: `temperature`, `top_p`, `top_k`, `min_p`
    algorithm: str | None = None  # a key of `ALGORITHMS`
    gamma: float | None = None  # discount per turn; of turn_ppo only
    lam: float | None = None  # lambda of GAE over turns; of turn_ppo only
    token_gamma: float | None = None  # discount per token; of token_ppo only
    token_lam: float | None = None  # lambda of GAE over tokens; of token_ppo only
    bootstrap_truncated: bool | None = None  # which cut episodes the critic judged further; None by their ending
    value_position: str | None = None  # in words: the tokens at which the critic was trained
    base_model: str | None = None  # id or folder name of the model that training started from
    seed: int | None = None  # of the training run
    environment: str | None = field(default=None, metadata=NULLABLE)  # Gymnasium id; None where Gymnasium has none
    environment_kwargs: Mapping[str, Any] | None = None  # arguments of the training environment
    environment_name: str | None = None  # of an environment that has no id
    tools: tuple[str, ...] | None = None  # names of the tools that the agent called; None where it acted by text
    environment_version: str | None = None  # of the environment's rules
    action_grammar: str | None = None  # what a response must look like, in the environment's notation
    data: str | None = None  # the data that the environment reads, in words
    evaluation: HeldOut = field(default_factory=HeldOut)  # the held-out episodes
    example: Example = field(default_factory=Example)
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys of other versions, written again as they are

    @classmethod
    def from_folder(cls, folder: str | Path) -> AgentRecord:
        """
        Read `turnppo.json` of an agent; nothing is recorded where there is none.

        Raises:
            `ReleaseError`: it is no JSON object, has a wrong value, or was written by a newer version.
        """
        path = Path(folder) / RECORD_FILE
        return cls.from_dict(read_json(path), str(path)) if path.exists() else cls()

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], source: str = RECORD_FILE) -> AgentRecord:
        """
        Check the content of a `turnppo.json`.

        Args:
            found (`Mapping`): The content.
            source (`str`, *optional*): Where it was read, for messages.

        Raises:
            `ReleaseError`: a wrong value, or the schema of a newer version.
        """
        version = found.get("schema_version", 0)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ReleaseError(
                f"{source} is of a newer version: `schema_version` is {version}, it must be at most {SCHEMA_VERSION} "
                "for this one. Upgrade turnppo-hf."
            )
        try:
            return cls._read(found, version)
        except FieldError as error:
            raise ReleaseError(
                f"{source} is damaged: {error} What the agent plays, and how, is read from it. Download it again; if "
                "it stays so, its author has to save the agent anew."
            ) from error

    def changed(self, changes: Mapping[str, Any]) -> AgentRecord:
        """
        Return the record with other values of some keys, as a user of the agent asks for them.

        Raises:
            `ReleaseError`: a key that no record has, or a wrong value.
        """
        names = [*(item.name for item in fields(self) if item.name != EXTRA), *self.extra, "schema_version"]
        for name in changes:
            if name not in names:
                raise ReleaseError(
                    f"`record` has no key {name!r}.{did_you_mean(name, names, cutoff=0.5)} It would have no effect. "
                    f"The keys are {', '.join(names)}."
                )
        try:
            if (version := changes.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
                raise FieldError("schema_version", version, f"{SCHEMA_VERSION}, or left out")
            return self._read({**write_fields(self), **changes}, SCHEMA_VERSION)
        except FieldError as error:
            raise ReleaseError(f"In `record`, {error} What the agent plays, and how, is read from it.") from error

    @classmethod
    def _read(cls, found: Mapping[str, Any], version: Any) -> AgentRecord:
        if isinstance(version, bool) or not isinstance(version, int):
            raise FieldError("schema_version", version, "an integer")
        record = read_fields(cls, {name: value for name, value in found.items() if name != "schema_version"})
        _check_ranges(record)
        return record

    def to_dict(self) -> dict[str, Any]:
        """Return what `turnppo.json` holds."""
        return {"schema_version": SCHEMA_VERSION, **write_fields(self)}

    def save(self, folder: str | Path) -> None:
        """Write `turnppo.json` into a folder, without secrets."""
        (Path(folder) / RECORD_FILE).write_text(redacted_json(self.to_dict()), encoding="utf-8")

    @property
    def method(self) -> Algorithm | None:
        """What the agent was trained with."""
        return None if self.algorithm is None else ALGORITHMS[self.algorithm]

    def is_of(self, environment: str) -> bool:
        """Whether it is the record's environment: by its Gymnasium id, where a module may stand before it."""
        return self.environment is not None and environment.rpartition(":")[2] == self.environment.rpartition(":")[2]

    @property
    def turn_discounts(self) -> tuple[float, float]:
        """
        Gamma and lambda per turn by which the agent's turns are judged.

        They are 1 unless the agent was trained with turn-level PPO: the critic of token PPO learned returns of tokens.
        """
        if self.method is not None and "gamma" not in self.method.discounts:
            return 1.0, 1.0
        return (1.0 if self.gamma is None else float(self.gamma)), (1.0 if self.lam is None else float(self.lam))

    @property
    def held_out_kwargs(self) -> dict[str, Any]:
        """Arguments of the held-out environment."""
        return {**(self.environment_kwargs or {}), **(self.evaluation.environment_kwargs or {})}

    @property
    def top_p(self) -> float:
        """Nucleus that is sampled from; 1 is the whole distribution."""
        return (self.sampling or {}).get("top_p", 1.0)

    @property
    def min_p(self) -> float | None:
        """Share of the likeliest token's probability below which a token is not sampled; None is no such bound."""
        return (self.sampling or {}).get("min_p")

    @property
    def top_k(self) -> int:
        """Number of tokens that are sampled from; 0 is all."""
        return int((self.sampling or {}).get("top_k", 0))


def resolve_environment(
    record: AgentRecord,
    environment: EnvironmentSource | None,
    kwargs: Mapping[str, Any],
    *,
    model: str,
    is_local: bool,
) -> tuple[str, partial[gymnasium.Env[str, str]]]:
    """
    Choose an environment: the one given, else the held-out one of the record, as far as the record is trusted.

    Args:
        record ([`AgentRecord`]): Of the agent.
        environment (`str` or `Callable`, *optional*): Gymnasium id, or what builds an environment.
        kwargs (`Mapping`): Arguments of the environment, on top of the record's where it is the record's.
        model (`str`): The agent's name, for messages.
        is_local (`bool`): Whether the record is trusted to name data of this machine. No record is trusted to name a
            module to import.

    Returns:
        `tuple[str, functools.partial]`: its name, and what builds one, with all arguments in `keywords`.

    Raises:
        `ReleaseError`: the record names none, or one that cannot be built here.
        `TypeError`: it is no id, and cannot be called.
    """
    if environment is not None and not isinstance(environment, str):
        require_callable(environment, "`environment` is")
        name = getattr(environment, "__name__", type(environment).__name__)
        return name, partial(_build, environment, **kwargs)
    name = full_id(environment) if environment else _trusted_environment(record, model)
    if record.is_of(name):
        recorded = record.held_out_kwargs
        for key in DATA_ARGUMENTS:
            if not is_local and key not in kwargs and recorded.get(key) not in (None, "synthetic"):
                raise ReleaseError(
                    f"The agent's record asks for {key} {recorded[key]!r}, which would be opened by this machine or "
                    "with your token. Name it yourself if you trust it: "
                    f"--environment_kwargs {json.dumps({key: recorded[key]})!r}."
                )
        kwargs = {**recorded, **kwargs}
    factory = partial(make_environment, name, **kwargs)
    try:
        world = factory()  # so that a mistake is raised here
        warn_of_lost_rules(TextEnvironment(world), record.context or "full")
        if record.is_of(name):
            _warn_of_version(record, str(getattr(world.unwrapped, "version", "")))
        close_unused(world)
    except ValueError as error:
        if environment is None and name not in gymnasium.registry:
            error.add_note(f"Where a module of yours registers it, name both: --environment MODULE:{name}.")
        raise
    return name, factory


def _build(source: Callable[..., Any], /, **kwargs: Any) -> Any:
    """Build what is played by text: Gymnasium's environments, OpenEnv's clients, TextArena's games."""
    environment = adapt(source(**kwargs))
    if isinstance(environment, ToolEnvironment):
        raise TypeError(
            f"{environment.name} is played by tool calls, which an agent alone cannot make. Evaluate it with the "
            "trainer's evaluate(), or name an environment that is played by text."
        )
    return environment


def _warn_of_version(record: AgentRecord, version: str) -> None:
    if record.environment_version and version and record.environment_version != version:
        warnings.warn(
            f"The agent was trained in version {record.environment_version} of {record.environment}, and this is "
            f"version {version}: prompts, parsing or levels may differ, and with them its score.",
            stacklevel=4,
        )


def _trusted_environment(record: AgentRecord, model: str) -> str:
    if record.tools is not None:
        raise ReleaseError(
            f"The model {model!r} was trained in conversations with tools ({', '.join(record.tools)}), and code that "
            "only its training script has. Build that environment and evaluate with the trainer's evaluate(), or name "
            "another environment here."
        )
    if record.environment is None:
        raise ReleaseError(
            f"The model {model!r} does not name the environment it plays: it has no turnppo.json, or was trained in "
            "an environment without a Gymnasium id. Name one: --environment turnppo_hf/Sokoban-v0, or MODULE:ID for "
            "one that a module of yours registers."
        )
    if ":" in record.environment:
        raise ReleaseError(
            f"The model's record names the environment {record.environment!r}, which would import the module "
            f"{record.environment.partition(':')[0]!r} on this machine. Name the environment yourself if you trust it."
        )
    return record.environment


def _check_ranges(record: AgentRecord) -> None:
    for name, value in (record.limits or {}).items():
        if name not in _LIMITS:
            raise FieldError(f"limits.{name}", value, f"absent: the limits are {', '.join(_LIMITS)}")
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise FieldError(f"limits.{name}", value, "a positive integer or null")
    if record.algorithm is not None and record.algorithm not in ALGORITHMS:
        raise FieldError("algorithm", record.algorithm, f"one of {', '.join(ALGORITHMS)}")
    if record.context is not None:
        try:
            read_context(record.context)
        except ValueError as error:
            raise FieldError("context", record.context, "full, last or window:k with k from 1 on") from error
    for name, value in (record.chat_template_kwargs or {}).items():
        if name in _OWN_TEMPLATE_ARGUMENTS:
            raise FieldError(f"chat_template_kwargs.{name}", value, "absent")
    for name, number in (record.sampling or {}).items():
        if name not in SAMPLING:
            raise FieldError(f"sampling.{name}", number, f"absent: known are {', '.join(SAMPLING)}")
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise FieldError(f"sampling.{name}", number, "a number from 0 on")
        if name == "min_p" and number > 1:
            raise FieldError("sampling.min_p", number, "at most 1")
        if name == "top_p" and not 0 < number <= 1:
            raise FieldError("sampling.top_p", number, "above 0 and at most 1")
        if name == "top_k" and number != int(number):
            raise FieldError("sampling.top_k", number, "a whole number")
    for name in ("gamma", "lam", "token_gamma", "token_lam"):
        number = getattr(record, name)
        if number is not None and not 0 <= number <= 1:
            raise FieldError(name, number, "a number from 0 to 1")
    for name, low, high in (("episodes", 1, MAX_EPISODES), ("seed", 0, 2**63), ("temperature", 0, 1e6)):
        number = getattr(record.evaluation, name)
        if number is not None and not low <= number <= high:
            raise FieldError(f"evaluation.{name}", number, f"a number from {low} to {high:g}")
    for task in record.evaluation.tasks or ():
        seed = task.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise FieldError("evaluation.tasks", "...", "a list of objects with a `seed`, an integer from 0 on")
