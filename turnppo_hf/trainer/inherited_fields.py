"""Fields of TrainingArguments and of GRPOConfig in; one sentence out for each that would have no effect here."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from transformers import Trainer
from transformers.trainer_pt_utils import AcceleratorConfig

_CUTS = "micro-batches are cut by tokens here"
_EVALUATION = "an evaluation plays episodes and returns their metrics"
_GRADIENTS = "gradients are added over the ranks once, after all passes"
_COMPILE = "lengths differ in every step, so each one would be compiled anew, and the passes call no compiled forward"
_LIGER = (
    "Liger replaces the loss of supervised training, and the losses here are computed from log-probs of sampled tokens"
)
_OUT = "Leave it out"

# field of TrainingArguments -> why no value but its default is taken, and what to do instead
REFUSED: Mapping[str, tuple[str, str]] = {
    "accelerator_config": (
        "it cuts batches of tensors over the ranks, and a rollout batch is cut by episodes",
        "Leave it out, and set `generation_batch_size`",
    ),
    "auto_find_batch_size": (
        f"it would try the same size again, since {_CUTS}",
        "Lower `max_tokens_per_micro_batch`, which leaves the gradient as it is",
    ),
    "batch_eval_metrics": (_EVALUATION, "Pass a reward function; what it logs is in the evaluation's metrics"),
    "bf16_full_eval": ("episodes are judged with the weights that are trained", "Set `bf16` to compute in bfloat16"),
    "ddp_broadcast_buffers": ("a rank without episodes makes no forward that could answer", _OUT),
    "ddp_bucket_cap_mb": (_GRADIENTS, _OUT),
    "ddp_find_unused_parameters": (_GRADIENTS, _OUT),
    "ddp_static_graph": (_GRADIENTS, _OUT),
    "enable_jit_checkpoint": (
        "it would write a checkpoint's folder that is not complete or absent",
        "Leave it out, and set `save_steps`",
    ),
    "fp16": (
        "its loss scaling does not survive two losses with a clip per network",
        "Use `bf16`, or float32",
    ),
    "fp16_full_eval": ("episodes are judged with the weights that are trained", "Set `bf16` to compute in bfloat16"),
    "ignore_data_skip": (
        "a resumed run would play the tasks again that it has learned from, and rows are skipped in no time",
        _OUT,
    ),
    "include_for_metrics": (_EVALUATION, "Pass a reward function; what it logs is in the evaluation's metrics"),
    "include_num_input_tokens_seen": ("a step's input is tasks", "Leave it out, and read `num_tokens` in the log"),
    "label_names": ("rows are tasks and have no labels", _OUT),
    "label_smoothing_factor": (
        "no target is smoothed: losses are computed from log-probs of sampled tokens",
        "Use `entropy_coef` to keep the policy broad",
    ),
    "liger_kernel_config": (_LIGER, _OUT),
    "neftune_noise_alpha": (
        "with noise in the embeddings the policy that is trained is not the one that sampled",
        "Use `entropy_coef` or `temperature` to explore",
    ),
    "optim_target_modules": ("it belongs to optimizers of GaLore and APOLLO, which are refused", _OUT),
    "parallelism_config": (
        "two networks in one optimizer were never tried with it",
        "Use one of trainer_configs/accelerate: multi_gpu, fsdp2, zero2 or zero3",
    ),
    "prediction_loss_only": (_EVALUATION, _OUT),
    "remove_unused_columns": ("a row's columns select and configure the environment", _OUT),
    "torch_compile": (_COMPILE, "Leave it out, and use `bf16`"),
    "torch_compile_backend": (_COMPILE, "Leave it out, and use `bf16`"),
    "torch_compile_mode": (_COMPILE, "Leave it out, and use `bf16`"),
    "torch_empty_cache_steps": (
        f"the cache is not emptied between steps: {_CUTS}",
        "Lower `max_tokens_per_micro_batch` where memory runs out",
    ),
    "train_sampling_strategy": (
        "the order of tasks is another field's",
        "Leave it out, and set `shuffle_dataset` or `task_sampling`",
    ),
    "use_cache": ("a pass reads whole rows, and the sampler has a cache of its own", _OUT),
    "use_liger_kernel": (_LIGER, "Leave it out; the head runs at sampled tokens only"),
}

# other values that ask for what happens anyway
_NEUTRAL: Mapping[str, Collection[Any]] = {
    "ddp_broadcast_buffers": (False,),
    "include_num_input_tokens_seen": (False,),
    "neftune_noise_alpha": (0,),
}

_RATIO = "Use `epsilon` and `epsilon_high`, the clip ranges of the ratio"
_LOSS = "Use `loss_aggregation`, which names how terms of the loss are averaged, and `importance_sampling_level`"
_SAMPLER = "the training weights sample with a cache and a mask of their own"
_DIVERGENCE = "the ratio is clipped, and turns of other weights are weighed"

# field of GRPOConfig that TurnPPOConfig lacks -> why, and what to use instead
LACKING: Mapping[str, tuple[str, str]] = {
    "cache_implementation": (_SAMPLER, "Leave it out"),
    "cast_lm_head_to_fp32": ("log-probs are computed in float32 from the head's logits", "Leave it out"),
    "delta": ("no term of the loss is clipped a second time", _RATIO),
    "ds3_gather_for_generation": ("weights that ZeRO-3 cuts are always gathered to sample", "Leave it out"),
    "entropy_coef_delta": ("the bonus has one weight for the whole run", "Use `entropy_coef`"),
    "entropy_coef_max": ("the bonus has one weight for the whole run", "Use `entropy_coef`"),
    "entropy_coef_min": ("the bonus has one weight for the whole run", "Use `entropy_coef`"),
    "entropy_target": ("the bonus has one weight for the whole run", "Use `entropy_coef`"),
    "log_completions_hub_repo": (
        "trajectories are saved beside the checkpoints",
        "Use `log_completions`, and push the folder `trajectories`",
    ),
    "log_multimodal": ("observations are text", "Leave it out"),
    "log_unique_prompts": ("a table has a row for each turn", "Use `num_completions_to_print`"),
    "loss_type": ("the clipped loss of PPO is the only one", _LOSS),
    "multi_objective_aggregation": (
        "rewards are added before advantages are computed, as a critic needs one return",
        "Use `reward_weights`",
    ),
    "off_policy_mask_threshold": (_DIVERGENCE, "Use `off_policy_credit` or `vllm_importance_sampling_correction`"),
    "pad_to_multiple_of": ("rows are padded to the longest of a micro-batch", "Use `max_tokens_per_micro_batch`"),
    "ref_model_mixup_alpha": ("the reference is the model before training, as in the paper", "Use `beta` alone"),
    "ref_model_sync_steps": ("the reference is the model before training, as in the paper", "Use `beta` alone"),
    "repetition_penalty": (
        "it makes the policy that samples another one than the policy whose log-probs are trained, at every token",
        "Use `top_p`, `top_k` or `min_p`, or a reward function that counts repetitions",
    ),
    "router_aux_loss_coef": ("no loss of a router is added", "Freeze the router, or train adapters of other layers"),
    "sapo_temperature_neg": ("the ratio is clipped, not gated", _RATIO),
    "sapo_temperature_pos": ("the ratio is clipped, not gated", _RATIO),
    "steps_per_generation": (
        "a rollout batch is used for `num_iterations` x `num_minibatches` optimizer steps",
        "Use `num_minibatches` and `generation_batch_size`",
    ),
    "sync_ref_model": ("the reference is the model before training, as in the paper", "Use `beta` alone"),
    "top_entropy_quantile": ("every sampled token is trained", "Leave it out"),
    "transformers_continuous_batching_config": (_SAMPLER, "Use `max_parallel_episodes`, or `use_vllm`"),
    "trust_remote_code": (
        "a released agent must load without code of others",
        'Use `model_init_kwargs={"trust_remote_code": true}` where the model needs it',
    ),
    "use_adaptive_entropy": ("the bonus has one weight for the whole run", "Use `entropy_coef`"),
    "use_bias_correction_kl": ("the penalty is an estimate at sampled tokens", "Use `beta` and `kl_estimator`"),
    "use_transformers_continuous_batching": (_SAMPLER, "Use `max_parallel_episodes`, or `use_vllm`"),
    "use_transformers_paged": (_SAMPLER, "Use `max_parallel_episodes`, or `use_vllm`"),
    "vespo_k_neg": ("the ratio is clipped, not weighed", _RATIO),
    "vespo_k_pos": ("the ratio is clipped, not weighed", _RATIO),
    "vespo_lambda_neg": ("the ratio is clipped, not weighed", _RATIO),
    "vespo_lambda_pos": ("the ratio is clipped, not weighed", _RATIO),
    "vllm_group_port": ("weights reach the server without a group of processes", "Use `vllm_server_port`"),
    "vllm_importance_sampling_cap": ("it has the name of newer versions", "Use `vllm_importance_sampling_clip_max`"),
    "vllm_importance_sampling_clip_min": (
        "weights are truncated above, where they add variance",
        "Use `vllm_importance_sampling_clip_max`",
    ),
    "vllm_model_impl": ("weights are sent by vLLM's own names", "Leave it out"),
    "vllm_tensor_parallel_size": (
        "an engine in the trainer's process runs on that process's device",
        'Use `vllm_mode="server"`, and start `turnppo vllm-serve` with vLLM\'s own flags',
    ),
}

# what others call a field, TRL's former PPOConfig among them -> its name here
OTHER_NAMES: Mapping[str, str] = {
    "batch_size": "generation_batch_size",
    "clip_range": "epsilon",
    "cliprange": "epsilon",
    "ent_coef": "entropy_coef",
    "epochs": "num_train_epochs",
    "gae_lambda": "lam",
    "kl_coef": "beta",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_new_tokens": "max_turn_length",
    "mini_batch_size": "num_minibatches",
    "num_mini_batches": "num_minibatches",
    "num_ppo_epochs": "num_iterations",
    "ppo_epochs": "num_iterations",
    "response_length": "max_turn_length",
    "steps": "max_steps",
}

# optimizers that are made of the model's layers instead of the groups of actor and critic
_OF_LAYERS = ("galore", "apollo", "lomo", "adalomo")


def check_inherited(config: Any) -> None:
    """
    Refuse values of `TrainingArguments` that would have no effect.

    Raises:
        `ValueError`: one of them is set; the message names the field, why, and what to use instead.
    """
    defaults = {item.name: item.default for item in fields(type(config))}
    for name, (why, instead) in REFUSED.items():
        value = getattr(config, name, None)
        if value in (None, "", [], {}, defaults.get(name)) or value in _NEUTRAL.get(name, ()):
            continue
        if name == "accelerator_config" and _asks_for_defaults(value):
            continue
        raise ValueError(f"`{name}` is {value!r}, but {why}. {instead}.")
    optimizer = _name_of(config.optim)
    if optimizer.startswith(_OF_LAYERS):
        raise ValueError(
            f"`optim` is {optimizer!r}, which is made of a model's layers and steps them with one rate, but actor and "
            'critic have a rate each. Use "adamw_torch", or "adamw_8bit" or "adafactor" to save memory.'
        )


def _asks_for_defaults(accelerator_config: Any) -> bool:
    """Whether each given setting is the default, as in a saved configuration, which lacks some of them."""
    given = accelerator_config
    if isinstance(given, AcceleratorConfig):
        given = given.to_dict()
    return isinstance(given, Mapping) and given.items() <= AcceleratorConfig().to_dict().items()


def check_optimizer_arguments(config: Any) -> None:
    """
    Refuse an optimizer that is not installed, and arguments that it does not read.

    Raises:
        `ValueError`: `optim` or `optim_args` is such a one.
    """
    if config.optim == type(config).optim and not config.optim_args:
        return
    name, given = _name_of(config.optim), str(config.optim_args or "")
    if given and not all(part.count("=") == 1 for part in given.split(",")):
        raise ValueError(
            f"`optim_args` is {given!r}, which is no list of arguments, so the optimizer cannot read it. Write "
            '"name=value,name=value".'
        )
    plain = copy.copy(config)
    plain.optim_args = None
    try:
        of_optimizer = Trainer.get_optimizer_cls_and_kwargs(config)
        is_read = not given or of_optimizer != Trainer.get_optimizer_cls_and_kwargs(plain)
    except (ValueError, ImportError, KeyError, TypeError) as error:
        raise ValueError(
            f"`optim` {name!r} cannot be used with `optim_args` {config.optim_args!r} here "
            f"({type(error).__name__}: {' '.join(str(error).split())}), so no step could be made. Install what it "
            'needs, or set `optim` to "adamw_torch".'
        ) from error
    if not is_read:
        raise ValueError(
            f"`optim_args` is {given!r}, but {name!r} reads none of it, so it would have no effect. Leave it out; "
            "`adam_beta1`, `adam_beta2`, `adam_epsilon` and `weight_decay` are fields of their own."
        )


def _name_of(choice: Any) -> str:
    return str(getattr(choice, "value", choice))


def describe_lacking(name: str) -> str | None:
    """Return why `TurnPPOConfig` lacks a name that others have, and what to use; None where nobody is known to."""
    if name in OTHER_NAMES:
        here = OTHER_NAMES[name]
        return f"`{name}` is no field, so it would have no effect: it is called `{here}` here. Set `{here}`."
    if name not in LACKING:
        return None
    why, instead = LACKING[name]
    return f"TurnPPOConfig lacks GRPOConfig's `{name}`: {why}. {instead}."
