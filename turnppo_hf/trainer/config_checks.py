"""Values of `TurnPPOConfig` in, one clear error out for the first that cannot work."""

from __future__ import annotations

import json
import math
import numbers
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, get_args, get_type_hints

import numpy as np
from transformers import SchedulerType
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames, trainer_log_levels

from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.environments.reading import as_number
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.ppo.credit import WHITENING
from turnppo_hf.ppo.losses import IMPORTANCE_SAMPLING_LEVELS, KL_ESTIMATORS, LOSS_AGGREGATIONS
from turnppo_hf.rollout.context import read_context

CRITICS = ("separate", "lora", "shared")
VLLM_MODES = ("colocate", "server")
OFF_POLICY_CREDITS = ("none", "turn_vtrace")
CORRECTIONS = ("turn_truncate", "token_truncate")


_OBJECTS = ("model_init_kwargs", "chat_template_kwargs", "generation_kwargs")
_UNIT = "it discounts what comes later"
# field -> lowest and highest value, and why no other
_RANGES = (
    ("gamma", 0.0, 1.0, _UNIT),
    ("lam", 0.0, 1.0, _UNIT),
    ("token_gamma", 0.0, 1.0, _UNIT),
    ("token_lam", 0.0, 1.0, _UNIT),
    ("token_advantage_coef", 0.0, math.inf, "a negative weight would reward what did worse than the rest"),
    ("vtrace_rho_max", 1e-12, math.inf, "no turn would get credit"),
    ("vtrace_c_max", 1e-12, math.inf, "no later turn would give credit"),
    ("gigpo_gamma", 0.0, 1.0, _UNIT),
    ("gigpo_omega", 0.0, math.inf, "a negative weight would reward what did worse than the rest"),
    ("critic_lr_multiplier", 1e-12, math.inf, "the critic would not learn"),
    ("critic_layers", 1, math.inf, "without a block the critic would see single tokens"),
    ("critic_warmup_steps", 0, math.inf, "it counts optimizer steps"),
    ("critic_trunk_gradient", 0.0, 1.0, "it is a share"),
    ("epsilon", 1e-12, 1.0, "the clip range would be empty or reach a negative ratio"),
    ("epsilon_high", 1e-12, math.inf, "the clip range would be empty"),
    ("entropy_coef", 0.0, math.inf, "a negative bonus would be a penalty on exploration"),
    ("beta", 0.0, math.inf, "a negative KL penalty drives the actor away from the reference"),
    ("num_iterations", 1, math.inf, "no update would be made"),
    ("num_minibatches", 1, math.inf, "no update would be made"),
    ("num_generations", 1, math.inf, "no episode would be played"),
    ("generation_batch_size", 1, math.inf, "no episode would be played"),
    ("learning_rate", 0.0, math.inf, "a negative rate would worsen the policy"),
    ("max_tokens_per_micro_batch", 1, math.inf, "no token would fit"),
    ("max_failed_share", 0.0, 1.0, "it is a share"),
    ("max_skipped_steps", 1, math.inf, "it counts steps in a row"),
    ("max_turns", 1, math.inf, "no turn would be sampled, so no gradient exists"),
    ("max_turn_length", 1, math.inf, "no token would be sampled, so no gradient exists"),
    ("max_tool_calling_iterations", 0, math.inf, "it counts rounds of tool calls"),
    ("environment_timeout_s", 1e-6, math.inf, "no environment could answer"),
    ("max_completion_length", 1, math.inf, "no token would be sampled, so no gradient exists"),
    ("temperature", 1e-6, math.inf, "a deterministic policy has no gradient"),
    ("top_p", 1e-6, 1.0, "it is a share of probability"),
    ("top_k", 0, math.inf, "it counts tokens, 0 for off"),
    ("max_parallel_episodes", 1, math.inf, "no episode would be played"),
    ("eval_temperature", 0.0, math.inf, "0 is greedy"),
    ("cliprange_value", 1e-12, math.inf, "the value could not move"),
    ("oversampling_factor", 1.0, math.inf, "a batch would never be full"),
    ("filter_groups", 0, math.inf, "it counts attempts"),
    ("vllm_gpu_memory_utilization", 1e-6, 1.0, "it is a share of memory"),
    ("vllm_max_model_length", 2, math.inf, "no prompt and response would fit"),
    ("vllm_server_port", 1, 65535, "it is a TCP port"),
    ("vllm_server_timeout", 1e-6, math.inf, "no answer would be waited for"),
    ("vllm_importance_sampling_clip_max", 1.0, math.inf, "even exact samples would be weighed down"),
    ("min_p", 0.0, 1.0, "it is a share of the likeliest token's probability"),
    ("num_generations_eval", 1, math.inf, "no episode would be played"),
    ("num_completions_to_print", 0, math.inf, "it counts rows of a table"),
    # of TrainingArguments
    ("adam_beta1", 0.0, 1.0 - 1e-12, "it is the weight of the past in a mean"),
    ("adam_beta2", 0.0, 1.0 - 1e-12, "it is the weight of the past in a mean"),
    ("adam_epsilon", 0.0, math.inf, "a step would be divided by less than nothing"),
    ("weight_decay", 0.0, math.inf, "weights would grow by themselves"),
    ("max_grad_norm", 0.0, math.inf, "it is a norm, 0 for no clipping"),
    ("num_train_epochs", 1e-12, math.inf, "no task would be played"),
    ("max_steps", -1, 2**31, "it counts optimizer steps, -1 for whole epochs"),
    ("warmup_steps", 0, math.inf, "it counts steps, or is a share of them"),
    ("per_device_train_batch_size", 1, math.inf, "no episode would be played"),
    ("gradient_accumulation_steps", 1, math.inf, "no episode would be played"),
    ("logging_steps", 0, math.inf, "it counts steps"),
    ("eval_steps", 0, math.inf, "it counts steps"),
    ("save_steps", 1e-12, math.inf, "it counts steps"),
    ("save_total_limit", 1, math.inf, "no checkpoint would be kept"),
    ("eval_delay", 0, math.inf, "it counts steps or epochs"),
    ("dataloader_num_workers", 0, 4096, "it counts processes"),
    ("dataloader_prefetch_factor", 1, math.inf, "it counts batches"),
    ("seed", 0, 2**32 - 1, "it seeds generators of 32 bits"),
    ("data_seed", 0, 2**32 - 1, "it seeds generators of 32 bits"),
    ("ddp_timeout", 1, 2**31, "it counts seconds"),
)
# infinity switches these off
_UNBOUNDED = {"vtrace_rho_max", "vtrace_c_max", "epsilon_high", "cliprange_value", "max_grad_norm"}
_UNBOUNDED |= {"vllm_importance_sampling_clip_max"}
_KINDS = {float: "a number", int: "an integer", bool: "True or False"}


def check_choice(config: Any, name: str, choices: Iterable[str]) -> None:
    """Refuse a value outside a list."""
    value, known = getattr(config, name), list(choices)
    if _value(value) not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.{did_you_mean(value, known)}")


def _value(choice: Any) -> Any:
    return getattr(choice, "value", choice)  # of an enumeration's member


def check_inherited_choices(config: Any) -> None:
    """Refuse values outside the lists of `TrainingArguments`, whose own errors do not name the field."""
    for name, choices in (
        ("log_level", trainer_log_levels),
        ("log_level_replica", trainer_log_levels),
        ("optim", OptimizerNames),
        ("lr_scheduler_type", SchedulerType),
        ("eval_strategy", IntervalStrategy),
        ("logging_strategy", IntervalStrategy),
        ("save_strategy", SaveStrategy),
        ("hub_strategy", HubStrategy),
    ):
        check_choice(config, name, [_value(choice) for choice in choices])
    evaluates, saves = (_value(getattr(config, f"{name}_strategy")) for name in ("eval", "save"))
    if config.load_best_model_at_end and saves not in ("best", evaluates):
        raise ValueError(
            f"`load_best_model_at_end` is True, but `eval_strategy` is {evaluates!r} and `save_strategy` {saves!r}, "
            'so not every checkpoint has a score. Set both to the same, or `save_strategy` to "best".'
        )


def check_kinds(config: Any) -> None:
    """
    Refuse numbers and switches of another type, and numbers that are not finite.

    Raises:
        `TypeError`: a text for a number, a fraction for a count, a number for a switch, or None for either.
        `ValueError`: NaN, or infinity where it means nothing.
    """
    defaults, ranged = {item.name: item.default for item in fields(config)}, {name for name, *_ in _RANGES}
    for name, hint in _type_hints(type(config)).items():  # type: ignore[arg-type]
        kinds, value = set(get_args(hint)) or {hint}, getattr(config, name, None)
        if not kinds <= {bool, int, float, type(None)} or value is defaults.get(name):
            continue
        if value is None and type(None) in kinds:
            continue
        kind = next(kind for kind in (float, int, bool) if kind in kinds)
        is_switch = isinstance(value, bool | np.bool_)
        number = {float: numbers.Real, int: numbers.Integral}.get(kind)
        if not (bool in kinds and is_switch) and (number is None or is_switch or not isinstance(value, number)):
            raise TypeError(
                f"`{name}` must be {_KINDS[kind]}, got {value!r} ({type(value).__name__}), and what is computed with "
                f"it would fail or be another number. Set `{name}` to such a value in TurnPPOConfig."
            )
        is_limit = name in _UNBOUNDED and value == math.inf
        if isinstance(value, float) and not (math.isfinite(value) or is_limit or (name in ranged and value != value)):
            raise ValueError(
                f"`{name}` must be a finite number, got {value}: it is counted or computed with. Set `{name}` to one "
                "in TurnPPOConfig."
            )


@cache
def _type_hints(config: type) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(config).items() if name in config.__dataclass_fields__}  # type: ignore[attr-defined]


def check_choices(config: Any) -> None:
    """Refuse values outside a list, and pairs of choices that exclude each other."""
    for name, choices in (
        ("critic", CRITICS),
        ("importance_sampling_level", IMPORTANCE_SAMPLING_LEVELS),
        ("loss_aggregation", LOSS_AGGREGATIONS),
        ("whiten_advantages", WHITENING),
        ("kl_estimator", KL_ESTIMATORS),
        ("vllm_mode", VLLM_MODES),
        ("vllm_importance_sampling_mode", CORRECTIONS),
        ("oversampling_rest", ("continue", "drop")),
        ("off_policy_credit", OFF_POLICY_CREDITS),
        ("task_sampling", ("uniform", "value")),
        ("collapse_action", ("warn", "stop", "rollback")),
        ("log_format", ("auto", "lines", "dict")),
    ):
        check_choice(config, name, choices)
    read_context(config.context)
    if config.collapse_action == "rollback" and (config.save_strategy == "no" or config.save_only_model):
        raise ValueError(
            f'`collapse_action` is "rollback", but `save_strategy` is "{config.save_strategy.value}" and '
            f"`save_only_model` {config.save_only_model}: there would be no checkpoint with an optimizer to go to. "
            'Set `save_strategy` to "steps" and `save_only_model` to false, or `collapse_action` to "stop".'
        )
    if config.collapse_action != "warn" and config.logging_strategy == "no":
        raise ValueError(
            f'`collapse_action` is "{config.collapse_action}", but `logging_strategy` is "no", and its signs are '
            'read from log entries, so it would never act. Set `logging_strategy` to "steps", or leave it out.'
        )
    per_token = ALGORITHMS[config.algorithm].decision == "token"
    if per_token and config.importance_sampling_level != "token":
        raise ValueError(
            f"`importance_sampling_level` is {config.importance_sampling_level!r}, but {config.algorithm} has another "
            'advantage at every token of a turn, so no ratio per turn exists. Set it to "token".'
        )
    if per_token and config.whiten_advantages == "turns":
        raise ValueError(
            f'`whiten_advantages` is "turns", but {config.algorithm} has no advantage per turn. Use "tokens" or '
            '"none".'
        )


def check_ranges(config: Any) -> None:
    """Refuse numbers outside their range, and numbers that the algorithm cannot use."""
    for name, low, high, why in _RANGES:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise ValueError(
                f"`{name}` must be {_describe(low, high)}, got {value}: {why}. Set `{name}` in TurnPPOConfig."
            )
    if not config.uses_critic and config.critic_warmup_steps:
        raise ValueError(
            f"`critic_warmup_steps` is {config.critic_warmup_steps}, but {config.algorithm} has no critic, so these "
            "steps would train nothing. Set it to 0."
        )
    if (config.num_generations_eval or 1) > 1 and config.eval_temperature == 0.0:
        raise ValueError(
            f"`num_generations_eval` is {config.num_generations_eval}, but `eval_temperature` is 0, so all episodes "
            "of a task would be the same one. Set `eval_temperature`, or leave `num_generations_eval` out."
        )
    if not config.uses_critic and config.num_generations < 2:  # type: ignore[operator]
        raise ValueError(
            f"`num_generations` must be at least 2 for {config.algorithm}, got {config.num_generations}: its baseline "
            "is the mean over the other episodes of the same task. Set it to 8, or use an algorithm with a critic."
        )
    weights = config.reward_weights
    if weights is not None and not (isinstance(weights, list | tuple) and all(map(_is_finite, weights))):
        raise ValueError(
            f"`reward_weights` is {weights!r:.80}, and rewards are multiplied by its entries. Give a list of finite "
            "numbers, one for each reward function."
        )
    if config.uses_critic and 0 < config.max_steps <= config.critic_warmup_steps:
        warnings.warn(
            f"`critic_warmup_steps` is {config.critic_warmup_steps} and `max_steps` {config.max_steps}: the critic "
            "alone is trained, and the actor stays as it is. Lower the first for an actor that learns.",
            stacklevel=2,
        )


def check_credit(config: Any) -> None:
    """Refuse parts of the credit that the algorithm has no place for."""
    algorithm = ALGORITHMS[config.algorithm]
    of_turns = algorithm.has_critic and algorithm.decision == "turn"
    for name, is_set in (
        ("token_advantage_coef", config.token_advantage_coef > 0.0),
        ("off_policy_credit", config.off_policy_credit != "none"),
    ):
        if is_set and not of_turns:
            raise ValueError(
                f"`{name}` is {getattr(config, name)!r}, but {config.algorithm} has no critic of turns, whose values "
                "it needs. Leave it out, or set the algorithm to one with GAE over turns."
            )
    if config.task_sampling == "value" and not config.uses_critic:
        raise ValueError(
            f'`task_sampling` is "value", but {config.algorithm} has no critic that values tasks. Leave it out; '
            "`filter_groups` replaces groups that teach nothing."
        )
    if config.filter_groups and config.uses_critic:
        raise ValueError(
            f"`filter_groups` is {config.filter_groups}, but {config.algorithm} compares no episodes of one task: a "
            "critic tells what an episode teaches. Leave it out, or use an algorithm without a critic."
        )
    if config.token_advantage_coef > 0.0 and config.importance_sampling_level != "token":
        raise ValueError(
            f"`token_advantage_coef` is {config.token_advantage_coef:g}, but `importance_sampling_level` is "
            f"{config.importance_sampling_level!r}: a ratio per turn has one term for all its tokens, so their own "
            'advantages have no place. Set it to "token", or leave it out.'
        )
    if config.token_advantage_coef > 0.0 and config.token_gamma == config.token_lam == 1.0:
        warnings.warn(
            "`token_advantage_coef` is set with `token_gamma` and `token_lam` of 1, at which the turn's return is in "
            "every token's advantage and only the spread of the values is left. Set `token_lam` to 0.9 or so.",
            stacklevel=2,
        )
    if config.beta > 0.0 and config.kl_estimator == "k1":
        warnings.warn(
            f"`beta` is {config.beta:g} with `kl_estimator` k1, whose expected gradient is 0, so it holds the actor "
            'nowhere and adds noise. Set it to "k3", or to "k2".',
            stacklevel=2,
        )


def check_critic_kind(config: Any) -> None:
    """Refuse settings of a critic that the algorithm or the kind of critic does not have."""
    if config.critic_layers is not None and config.critic == "shared":
        raise ValueError(
            f'`critic_layers` is {config.critic_layers}, but `critic` is "shared", which is a head on what the whole '
            'actor computes, so a smaller depth would save nothing. Set critic="separate" or "lora", or leave it out.'
        )
    if config.critic == "shared" and not config.disable_dropout:
        raise ValueError(
            '`disable_dropout` is False, but `critic` is "shared": a critic has none, since noise in its values is '
            'noise in every advantage, and its layers are the actor\'s. Set critic="separate" or "lora", or leave it '
            "out."
        )
    if not config.uses_critic and config.critic_layers is not None:
        raise ValueError(
            f"`critic_layers` is {config.critic_layers}, but {config.algorithm} has no critic, so it would have no "
            "effect. Leave it out."
        )
    for name in ("cliprange_value", "bootstrap_truncated"):
        if not config.uses_critic and getattr(config, name) is not None:
            raise ValueError(
                f"`{name}` is {getattr(config, name)}, but {config.algorithm} has no critic, so it would have no "
                "effect. Leave it out."
            )
    if not config.uses_critic and config.critic != "separate":
        raise ValueError(
            f'`critic` is "{config.critic}", but {config.algorithm} has no critic, so it would have no effect. Leave '
            "it out."
        )
    if config.critic_trunk_gradient and config.critic != "shared":
        raise ValueError(
            f'`critic_trunk_gradient` is {config.critic_trunk_gradient:g}, but `critic` is "{config.critic}", and its '
            'gradient never meets the actor\'s weights. Set critic="shared", or leave it out.'
        )
    if config.critic_trunk_gradient and config.critic_warmup_steps:
        raise ValueError(
            f"`critic_warmup_steps` is {config.critic_warmup_steps}, but with `critic_trunk_gradient` the value loss "
            "moves the actor's trunk in these steps, and the policy drifts. Set one of them to 0."
        )


def check_vllm(config: Any) -> None:
    """Refuse settings of vLLM that would have no effect or cannot be had."""
    rules = ("vllm_structured_outputs_regex", "vllm_structured_outputs_choice")
    needs = [name for name in (*rules, "generation_kwargs") if getattr(config, name)]
    if needs and not config.use_vllm:
        raise ValueError(f"`{needs[0]}` is set without `use_vllm`, so it would have no effect. Set both or neither.")
    if all(getattr(config, name) for name in rules):
        raise ValueError(f"`{rules[0]}` and `{rules[1]}` are both set, but a response follows one rule. Keep one.")
    if needs:
        warnings.warn(
            f"`{needs[0]}` is known to vLLM alone: the saved agent, and with it the evaluations of `turnppo train` "
            "before and after, sample with transformers and without it, so their episodes can differ from training's.",
            stacklevel=2,
        )
    if config.vllm_enable_sleep_mode and config.vllm_mode == "server":
        raise ValueError("`vllm_enable_sleep_mode` is True, but a server keeps its memory. Leave it out.")
    if config.vllm_importance_sampling_mode == "token_truncate" and config.importance_sampling_level != "token":
        raise ValueError(
            f'`vllm_importance_sampling_mode` is "token_truncate", but `importance_sampling_level` is '
            f"{config.importance_sampling_level!r}: a ratio per turn has no terms of its tokens to weigh. Set it to "
            '"turn_truncate".'
        )
    if config.oversampling_factor > 1.0 and config.num_generations > 1:  # type: ignore[operator]
        raise ValueError(
            f"`oversampling_factor` is {config.oversampling_factor:g} with `num_generations` "
            f"{config.num_generations}: a batch would close on parts of groups, and its baseline is the whole group. "
            "Set one of them to 1."
        )


def _is_finite(value: Any) -> bool:
    return math.isfinite(as_number(value))


def _describe(low: float, high: float) -> str:
    if high == math.inf:
        return "positive" if 0 < low < 1 else f"at least {low:g}"
    return f"above 0 and at most {high:g}" if 0 < low < 1 else f"between {low:g} and {high:g}"


def check_json(config: Any, names: Iterable[str]) -> None:
    """
    Check fields that may be a mapping written as JSON.

    Raises:
        `ValueError`: the text is none; the message names the field.
    """
    for name in _OBJECTS:
        value = getattr(config, name)
        if value is not None and not isinstance(value, Mapping) and not str(value).startswith("{"):
            raise ValueError(
                f"`{name}` is {value!r:.80}, but it holds arguments by their names. Give a mapping, or on the command "
                f"line JSON such as --{name} '{{\"name\": 1}}', in single quotes."
            )
    for name in names:
        value = getattr(config, name, None)
        if not isinstance(value, str) or not value.lstrip().startswith("{"):  # the name of a file, for some
            continue
        try:
            json.loads(value)
        except ValueError as error:
            raise ValueError(
                f"`{name}` is no JSON: {error}. It is read as a JSON object. Write for example "
                f"--{name} '{{\"name\": 1}}', in single quotes."
            ) from error
