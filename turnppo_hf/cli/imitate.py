"""`turnppo imitate`: a YAML file and flags in; an actor that imitates a planner or episodes, a start, out."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from trl import SFTConfig

from turnppo_hf.agent import TurnPPOAgent
from turnppo_hf.cli.common import RunConfigError, hide_loading_bars, read_json_object, warn_of_seen_levels
from turnppo_hf.cli.train_arguments import (
    HELD_OUT_SEED,
    FieldParser,
    check_range,
    check_seed_start,
    parse_words,
)
from turnppo_hf.environments import full_id, make_environment
from turnppo_hf.environments.conversation import TextEnvironment, warn_of_lost_rules
from turnppo_hf.environments.exits import close_unused, failures_as_errors
from turnppo_hf.evaluation.results import HeldOut
from turnppo_hf.evaluation.summary import Summary, summarize
from turnppo_hf.hub.agent_record import RECORD_FILE, AgentRecord
from turnppo_hf.hub.run_record import package_version
from turnppo_hf.models.demonstrations import (
    make_demonstrations,
    read_demonstrations,
    reference_player,
    rows_in_context,
)
from turnppo_hf.models.imitation import check_sizes, imitate, tiny_llama, word_tokenizer, write_actor
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.rollout.context import read_context
from turnppo_hf.trainer.checkpoints import try_write
from turnppo_hf.trainer.record import public_name
from turnppo_hf.trainer.run_folder import RunFolder
from turnppo_hf.trainer.turn_ppo_config import describe_fields

NEW, PLANNER = "new", "planner"
_ONLY_WITH = {"episodes": (PLANNER, "noise"), "model": (NEW, "new_model")}  # what a field is read with
_MAX_POSITIONS = 4096  # that a new actor reads; they cost no parameters


@describe_fields
@dataclass
class ImitationArguments:
    """
    Whom an actor imitates, and when it is good enough.

    Parameters:
        environment (`str`):
            Gymnasium id of a text environment, such as `"turnppo_hf/MiniGrid-v0"`.
        model (`str`, *optional*, defaults to `"new"`):
            Where to start: model id, folder, a name in the package, or `"new"` for a small Llama with a token for each
            word of the demonstrations.
        new_model (`dict` or `str`, *optional*):
            Fields of `LlamaConfig` for a new model, such as `{"hidden_size": 96}`; JSON on the command line.
        environment_kwargs (`dict` or `str`, *optional*):
            Arguments of the environment; JSON on the command line.
        eval_environment_kwargs (`dict` or `str`, *optional*):
            What changes in them for the held-out episodes, such as `{"split": "test"}`.
        context (`str`, *optional*, defaults to `"full"`):
            What the actor reads of earlier turns, as in training: `full`, `last` or `window:k`.
        episodes (`str`, *optional*, defaults to `"planner"`):
            What is imitated: `"planner"`, the environment's own reference player; a Parquet file of episodes; or a
            dataset on the Hub with a column `messages`. Their episodes that missed their goal are left out; those of a
            planner are kept up to where it has no way to its goal any more.
        num_episodes (`int`, *optional*):
            How many of them. Defaults to 2000 of a planner, to all of a file or dataset.
        noise (`float`, *optional*):
            Share of a planner's turns that are drawn at random instead. Defaults to 0.2.
        target_success (`float`, *optional*):
            Stop at the first evaluation whose share of solved held-out episodes reaches it.
        success_steps (`int`, *optional*, defaults to `50`):
            Optimizer steps between two such evaluations.
        eval_episodes (`int`, *optional*, defaults to `256`):
            Held-out episodes of each.
        eval_seed_start (`int`, *optional*, defaults to `1000000`):
            Their seeds count up from here.
        eval_temperature (`float`, *optional*, defaults to `1.0`):
            0 is greedy; training samples at 1.
        max_turn_length (`int`, *optional*, defaults to `64`):
            Tokens of one response, recorded for training as well.
        max_completion_length (`int`, *optional*, defaults to `2048`):
            Tokens after the first prompt, as in training; recorded.
    """

    environment: str
    model: str = NEW
    new_model: dict[str, Any] | str | None = None
    environment_kwargs: dict[str, Any] | str | None = None
    eval_environment_kwargs: dict[str, Any] | str | None = None
    context: str = "full"
    episodes: str = PLANNER
    num_episodes: int | None = None
    noise: float | None = None
    target_success: float | None = None
    success_steps: int = 50
    eval_episodes: int = 256
    eval_seed_start: int = HELD_OUT_SEED
    eval_temperature: float = 1.0
    max_turn_length: int = 64
    max_completion_length: int = 2048

    def __post_init__(self) -> None:
        for name in ("new_model", "environment_kwargs", "eval_environment_kwargs"):
            setattr(self, name, read_json_object(name, getattr(self, name)))
        read_context(self.context)
        for name in ("num_episodes", "success_steps", "eval_episodes", "max_turn_length", "max_completion_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RunConfigError(f"`{name}` must be at least 1, got {value}: it counts what is done. Raise it.")
        check_seed_start(self.eval_seed_start)
        if not 0 <= self.eval_temperature < math.inf:
            raise RunConfigError(
                f"`eval_temperature` must be a finite number from 0 on, got {self.eval_temperature}: logits are "
                "divided by it. Set 1, or 0 for greedy play."
            )
        for name in ("noise", "target_success"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise RunConfigError(f"`{name}` must be between 0 and 1, got {value}: it is a share. Correct it.")
        if self.new_model:
            check_sizes("new_model", _mapping(self.new_model))
        for name, (value, other) in _ONLY_WITH.items():
            given, chosen = getattr(self, other), getattr(self, name)
            if given not in (None, {}) and chosen != value:
                raise RunConfigError(
                    f"`{other}` is {given}, but it is read with `{name}: {value}` alone, and `{name}` is {chosen!r}, "
                    "so it would have no effect. Leave it out."
                )


@dataclass(frozen=True)
class Imitation:
    """What a warm start came to."""

    folder: Path
    points: tuple[tuple[int, Summary], ...]  # optimizer steps and held-out success, in order; the last is the actor's

    @property
    def success(self) -> float | None:
        """Share of held-out episodes that the saved actor solves; None where the environment does not say."""
        return self.points[-1][1].success_rate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take every word as it is: `run` reads the words with TRL's parser, `--help` among them."""
    parser.prefix_chars = "\0"  # so that no word is a flag here
    parser.add_argument("words", nargs="*")


def build_parser() -> FieldParser:
    """Return the parser of `turnppo imitate`."""
    return FieldParser(
        (ImitationArguments, SFTConfig),
        prog="turnppo imitate",
        usage="turnppo imitate CONFIG.yaml [--field value ...]",
        description="Train an actor by imitation, as a start for `turnppo train`; every field below, those of TRL's "
        "SFTConfig included, is a key of the YAML file and a flag.",
        allow_abbrev=False,
    )


def run(arguments: argparse.Namespace) -> int:
    """Imitate as the file and the flags ask for, or print the help of their fields."""
    if {"-h", "--help"} & set(arguments.words):
        build_parser().print_help()
        raise SystemExit(0)  # as argparse does
    (asked, training), _ = parse_words(arguments.words, build_parser(), _defaults(), _ONLY_WITH)
    hide_loading_bars()
    done = run_imitation(asked, training)
    reached = "" if done.success is None else f", held-out success {done.success:.3f}"
    print(f"actor in {done.folder}{reached}: turnppo train CONFIG --model {done.folder}")
    return 0


def run_imitation(asked: ImitationArguments, training: SFTConfig) -> Imitation:
    """
    Make or read demonstrations, imitate them, and save the actor.

    Args:
        asked ([`ImitationArguments`]): Whom to imitate, and until when.
        training (`SFTConfig`): How; it holds the seed and the output folder.

    Returns:
        [`Imitation`]
    """
    folder = Path(str(training.output_dir))
    _check_training(training)
    try_write(folder)
    with RunFolder(folder).locked():
        _check_folder(folder)
        return Imitation(folder, tuple(_imitate_into(folder, asked, training)))


def _check_training(training: SFTConfig) -> None:
    """Refuse what would end in a message of a library, or do something else than it says."""
    if not 0 < training.learning_rate < math.inf:
        raise RunConfigError(
            f"`learning_rate` must be a finite number above 0, got {training.learning_rate}: weights are moved by it. "
            "Correct it."
        )
    check_range("seed", training.seed, 0, 2**32 - 1, "NumPy takes no other")
    if training.max_steps == 0:
        raise RunConfigError(
            "`max_steps` is 0, and whole epochs would be trained, as with -1. Set a number of steps, or leave it out."
        )


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds more than an earlier imitation: what is not written over would be taken for ours."""
    found = RunFolder(folder).agent_files()
    if found and ("critic" in found or RECORD_FILE not in found or AgentRecord.from_folder(folder).algorithm):
        raise RunConfigError(
            f"`output_dir` {folder} holds {found[-1]} of another agent, and this actor would mix with it. Choose "
            "another `output_dir`, or empty the folder."
        )


def _imitate_into(folder: Path, asked: ImitationArguments, training: SFTConfig) -> list[tuple[int, Summary]]:
    """Save the actor in the folder; return its held-out success over optimizer steps."""
    set_seed(training.seed)
    conversations = load_conversations(asked, training.seed)
    if asked.model == NEW:
        tokenizer = word_tokenizer(conversations, _MAX_POSITIONS)
        model = tiny_llama(tokenizer, **_mapping(asked.new_model))
    else:
        start = find_model(asked.model)
        tokenizer = AutoTokenizer.from_pretrained(start)
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    print(
        f"{len(conversations)} conversations of {asked.episodes}, actor {asked.model} with "
        f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.2f} M parameters",
        flush=True,
    )
    record = _record(asked)
    kwargs = {**_mapping(asked.environment_kwargs), **_mapping(asked.eval_environment_kwargs)}
    held_out = partial(make_environment, asked.environment, **kwargs)
    warn_of_seen_levels(asked.environment, _mapping(asked.environment_kwargs), kwargs)
    points: list[tuple[int, Summary]] = []

    def judge(actor: PreTrainedModel, step: int) -> bool:
        tasks = [{"seed": asked.eval_seed_start + number} for number in range(asked.eval_episodes)]
        agent = TurnPPOAgent(actor, tokenizer, record=record)
        episodes = agent.play_tasks(held_out, tasks, temperature=asked.eval_temperature)
        summary = summarize(episodes)
        points.append((step, summary))
        cut = fmean(episode.stop_reason.is_out_of_tokens for episode in episodes)
        print(_line(step, summary) + (f", cut by a limit of tokens {cut:.3f}" if cut else ""), flush=True)
        if asked.target_success is None:
            return False
        if summary.success_rate is None:
            raise RunConfigError(
                f"`target_success` is {asked.target_success}, but {asked.environment} does not say which episodes are "
                "solved, so it would never be reached. Leave it out, or let `info` hold `solved`."
            )
        return summary.success_rate >= asked.target_success

    if not judge(model, 0):
        rows = rows_in_context(conversations, asked.context)
        training.assistant_only_loss = "messages" in rows.column_names
        model = imitate(model, tokenizer, rows, training, stop=judge, stop_steps=asked.success_steps)
    if asked.target_success is not None and (points[-1][1].success_rate or 0.0) < asked.target_success:
        print(f"The target {asked.target_success} was not reached. Raise `max_steps` or `num_episodes`.", flush=True)
    write_actor(folder, model.to(torch.float32), tokenizer, record)
    return points


def load_conversations(asked: ImitationArguments, seed: int) -> Dataset:
    """Play or read what is imitated."""
    if asked.episodes != PLANNER:
        found = read_demonstrations(asked.episodes)
        return found if asked.num_episodes is None else found.select(range(min(asked.num_episodes, len(found))))
    environment = make_environment(asked.environment, **_mapping(asked.environment_kwargs))
    player = reference_player(environment)
    noise = 0.2 if asked.noise is None else asked.noise
    with failures_as_errors(f"The environment {asked.environment!r}"):
        return make_demonstrations(environment, player, asked.num_episodes or 2000, noise, seed)


def _record(asked: ImitationArguments) -> AgentRecord:
    """What the actor's folder says about it."""
    kwargs = _mapping(asked.environment_kwargs)
    environment = make_environment(asked.environment, **kwargs)
    conversation = TextEnvironment(environment)
    warn_of_lost_rules(conversation, asked.context)
    described = conversation.record()
    close_unused(environment)
    return AgentRecord(
        **{**described, "environment": full_id(asked.environment), "environment_kwargs": kwargs},
        package=package_version(),
        context=asked.context,
        limits={
            "max_turns": None,
            "max_turn_length": asked.max_turn_length,
            "max_completion_length": asked.max_completion_length,
        },
        base_model=None if asked.model == NEW else public_name(asked.model),
        evaluation=HeldOut(
            environment_kwargs={**kwargs, **_mapping(asked.eval_environment_kwargs)},
            episodes=asked.eval_episodes,
            seed=asked.eval_seed_start,
            temperature=asked.eval_temperature,
        ),
    )


def _defaults() -> dict[str, Any]:
    """Defaults that suit small actors on a processor, where TRL's are for large ones on an accelerator."""
    checkpointing = {"activation_checkpointing", "gradient_checkpointing"} & {item.name for item in fields(SFTConfig)}
    on_accelerator = torch.accelerator.is_available()
    quiet = {"report_to": "none", "save_strategy": "no", "logging_steps": 50, "disable_tqdm": not on_accelerator}
    switches = dict.fromkeys(("bf16", *sorted(checkpointing)[:1]), on_accelerator)
    return {**quiet, **switches, "use_cpu": not on_accelerator, "max_length": None, "per_device_train_batch_size": 32}


def _mapping(value: Any) -> dict[str, Any]:
    assert isinstance(value, dict), "read in __post_init__"
    return value


def _line(step: int, summary: Summary) -> str:
    if summary.success_rate is None:
        return f"step {step:>5}: mean return {summary.mean_return:.3f}"
    interval = json.dumps([round(end, 3) for end in (summary.success_low or 0.0, summary.success_high or 0.0)])
    return (
        f"step {step:>5}: success {summary.success_rate:.3f} {interval}, mean turns {summary.mean_turns:.1f}, "
        f"unreadable turns {summary.invalid_turns:.3f}"
    )
