"""`TurnPPOConfig`: every field of the trainer, with GRPOConfig's spelling wherever GRPOConfig has the field."""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import torch
from transformers import SchedulerType

from turnppo_hf._trl import BaseConfig
from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.redaction import MASK, check_unmasked, redact, remember_secrets
from turnppo_hf.trainer.config_checks import (
    check_choice,
    check_choices,
    check_credit,
    check_critic_kind,
    check_inherited_choices,
    check_json,
    check_kinds,
    check_ranges,
    check_vllm,
)
from turnppo_hf.trainer.inherited_fields import check_inherited, check_optimizer_arguments, describe_lacking

_Config = TypeVar("_Config")


def describe_fields(cls: type[_Config]) -> type[_Config]:
    """Make each field's text in a dataclass's docstring the help of its flag, so that it is written once."""
    entries = re.findall(r"^    (\w+) \(.*\):\n((?: {8}.+\n?)+)", inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in entries}
    for item in fields(cls):  # type: ignore[arg-type]
        if item.name in texts:
            item.metadata = MappingProxyType({**item.metadata, "help": texts[item.name]})
    return cls


@describe_fields
@dataclass
class TurnPPOConfig(BaseConfig):
    r"""
    Configuration of [`TurnPPOTrainer`].

    Only the parameters specific to turn-level PPO and to multi-turn rollouts are listed; for all others see
    [`~transformers.TrainingArguments`]. Fields that TRL's `GRPOConfig` has keep its name and meaning.

    > [!NOTE]
    > `logging_steps` defaults to 10. `gradient_accumulation_steps` only enters `generation_batch_size`: micro-batches
    > are cut by `max_tokens_per_micro_batch` and never change the gradient.

    Parameters:
        > Parameters with other defaults than in [`~transformers.TrainingArguments`]

        learning_rate (`float`, *optional*, defaults to `1e-6`):
            The actor's initial learning rate for AdamW.
        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            Must stay False: a row's columns select and configure the environment.
        gradient_checkpointing (`bool`, *optional*):
            Recompute activations in the backward pass. Unset: on, but off on CPU.
        bf16 (`bool`, *optional*):
            bf16 autocast. Unset: on where the accelerator supports it, off on CPU.
        dataloader_pin_memory (`bool`, *optional*, defaults to `False`):
            Rows are tasks, not tensors: there is nothing to pin.
        trackio_static_space_id (`str` or `None`, *optional*, defaults to `False`):
            Space that a push makes of Trackio's logs, public unless `hub_private_repo` is set. False: none; None: a
            default name.

        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Empty `output_dir` before the training, where it holds another run; without it such a folder is refused.

        > Parameters that control the model

        model_init_kwargs (`dict` or `str`, *optional*):
            Keyword arguments for `from_pretrained` where `model` is a string.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Switch dropout off in the actor (it is always off in the critic): with dropout the ratio is not 1 before
            the first update.

        > Parameters that control the algorithm

        algorithm (`str`, *optional*, defaults to `"turn_ppo"`):
            `"turn_ppo"` (GAE over turns, one ratio per turn), `"token_ppo"` (GAE over tokens), or without a critic
            `"grpo"`, `"rloo"` (group baselines) or `"gigpo"` (the same for episodes and for shared states). It sets
            the defaults of `importance_sampling_level`, `whiten_advantages` and `num_generations`.
        gamma (`float`, *optional*, defaults to `0.99`):
            Discount per turn.
        lam (`float`, *optional*, defaults to `0.9`):
            GAE's lambda per turn. `lambda` in YAML and on the command line.
        token_gamma (`float`, *optional*, defaults to `1.0`):
            Discount per token, used by `token_ppo` and with `token_advantage_coef`.
        token_lam (`float`, *optional*, defaults to `1.0`):
            GAE's lambda per token, used by `token_ppo` and with `token_advantage_coef`.
        token_advantage_coef (`float`, *optional*, defaults to `0.0`):
            Weight of a token's own advantage inside its response, less its mean there, beside the turn's whitened one.
            Above 0 `turn_ppo` has a ratio per token, and its critic is trained at the tokens of responses as well.
        off_policy_credit (`str`, *optional*, defaults to `"none"`):
            `"turn_vtrace"` weighs turns that older weights or another engine sampled, in advantages and in the
            critic's targets, by the newest actor (a further forward) and in place of
            `vllm_importance_sampling_correction`.
        vtrace_rho_max (`float`, *optional*, defaults to `1.0`):
            Where V-trace truncates the weight of a turn's own error.
        vtrace_c_max (`float`, *optional*, defaults to `1.0`):
            Where V-trace truncates the weight with which later errors reach a turn.
        gigpo_omega (`float`, *optional*, defaults to `1.0`):
            Weight of a turn's advantage over the group's turns that began in the same state, used by `gigpo` only. At
            0 it is `grpo`.
        gigpo_gamma (`float`, *optional*, defaults to `0.95`):
            Discount per turn of the returns that are compared there.
        critic_lr_multiplier (`float`, *optional*, defaults to `10.0`):
            The critic's learning rate is `learning_rate` times this.
        critic (`str`, *optional*, defaults to `"separate"`):
            `"separate"` (a network of its own; beside adapters, an adapter on a frozen copy of the base), `"lora"` (a
            second adapter on the actor's frozen base) or `"shared"` (a head on the actor's trunk).
        critic_layers (`int`, *optional*):
            How many of the actor's first blocks a critic of the kinds `"separate"` and `"lora"` has, before the final
            norm and its head. It is saved as a network of this depth. All by default.
        critic_trunk_gradient (`float`, *optional*, defaults to `0.0`):
            Share of the value loss's gradient that enters the trunk of a shared critic; 0 stops it.
        critic_warmup_steps (`int`, *optional*, defaults to `0`):
            Optimizer steps at the start in which only the critic is trained.
        importance_sampling_level (`str`, *optional*):
            `"turn"` (product over the turn's tokens), `"turn_geometric"` (its length-normalised form) or `"token"`.
            Defaults to `"turn"` for `turn_ppo` without `token_advantage_coef`, else `"token"`.
        loss_aggregation (`str`, *optional*, defaults to `"trajectory_tokens"`):
            `"trajectory_tokens"` (sum over a trajectory divided by its sampled tokens, mean over trajectories),
            `"batch_tokens"` (sum divided by all sampled tokens) or `"turns"` (mean over turns).
        whiten_advantages (`str`, *optional*):
            `"turns"`, `"tokens"` or `"none"`: over what advantages are whitened, once per rollout batch on all ranks.
            Defaults to `"turns"` for `turn_ppo`, `"tokens"` for `token_ppo`, `"none"` for the group baselines.
        scale_rewards (`bool`, *optional*, defaults to `True`):
            Divide advantages of `grpo` and `gigpo` by the group's standard deviation.
        epsilon (`float`, *optional*, defaults to `0.2`):
            Clip range below 1 of the ratio.
        epsilon_high (`float`, *optional*):
            Clip range above 1 of the ratio. Defaults to `epsilon`.
        cliprange_value (`float`, *optional*):
            Clip range of the value around its value before the update, in units of return. Off by default.
        beta (`float`, *optional*, defaults to `0.0`):
            Coefficient of the KL divergence to the initial model. 0 loads no reference model.
        kl_estimator (`str`, *optional*, defaults to `"k3"`):
            `"k1"`, `"k2"` or `"k3"`.
        entropy_coef (`float`, *optional*, defaults to `0.0`):
            Coefficient of the entropy bonus (mean over sampled tokens).
        bootstrap_truncated (`bool`, *optional*):
            Whether a truncated episode's last turn is bootstrapped with the critic. Unset follows the stop reason:
            yes for limits from outside the task, no for budgets that the prompt shows.

        > Parameters that control the data

        num_iterations (`int`, *optional*, defaults to `1`):
            Passes over a rollout batch.
        num_minibatches (`int`, *optional*, defaults to `1`):
            Optimizer steps per pass; each takes whole trajectories.
        generation_batch_size (`int`, *optional*):
            Episodes per rollout batch over all ranks. Defaults to `per_device_train_batch_size` x ranks x
            `gradient_accumulation_steps` x `num_minibatches`.
        num_generations (`int`, *optional*):
            Episodes per task. Defaults to 1 for PPO (every task in a batch is another one), 8 without a critic.
        max_tokens_per_micro_batch (`int`, *optional*, defaults to `16384`):
            Padded tokens of one forward and backward pass. Lower it when memory runs out: the gradient stays the same.
        shuffle_dataset (`bool`, *optional*, defaults to `True`):
            Shuffle the tasks.
        task_sampling (`str`, *optional*, defaults to `"uniform"`):
            `"value"` draws tasks less, down to a tenth, whose first state the critic values as surely won or lost,
            between the lowest and the highest returns of the newest episodes.
        reward_weights (`list[float]`, *optional*):
            Weight of each reward function. Unset: 1. An environment's own reward counts with weight 1.
        mask_truncated_completions (`bool`, *optional*, defaults to `False`):
            Leave episodes out of the update, and out of their group's baseline, that a limit of tokens cut:
            `max_completion_length`, or the context.
        max_failed_share (`float`, *optional*, defaults to `0.5`):
            Training stops, with a checkpoint, when a larger share of a rollout batch's or an evaluation's episodes
            failed; below it others are played in a batch in their place.
        max_skipped_steps (`int`, *optional*, defaults to `5`):
            Optimizer steps in a row whose loss, gradient or log-probs are not finite: each is skipped, and the last
            of them stops the training.
        collapse_action (`str`, *optional*, defaults to `"warn"`):
            What signs of a collapse in the log lead to: `"warn"` logs a sentence each, `"stop"` ends the training as
            well, `"rollback"` goes back to the last checkpoint from before them, with half of the learning rate, three
            times at most.

        > Parameters that control the rollout

        max_turns (`int`, *optional*):
            Turns per episode, a limit beside the environment's own.
        max_turn_length (`int`, *optional*):
            Tokens of one response.
        max_completion_length (`int`, *optional*, defaults to `2048`):
            Tokens after the first prompt, responses and observations together, that the last prompt and response
            hold: of the whole episode where `context` is full, of one row where it leaves out earlier turns.
        environment_timeout_s (`float`, *optional*, defaults to `600.0`):
            Seconds that an environment's reset or step, a response's tool calls or a reward function may take. An
            episode that takes longer failed; its thread is abandoned.
        context (`str`, *optional*, defaults to `"full"`):
            What the model reads of earlier turns: `"full"` (all), `"last"` (system message, column `prompt` and the
            newest observation) or `"window:k"` (the newest k observations and the responses between them).
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; log-probs are those of the scaled distribution.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus sampling; it changes what is drawn, not what is scored.
        max_tool_calling_iterations (`int`, *optional*):
            Rounds of tool calls per episode; a later call is not executed and ends the episode. No limit by default.
        top_k (`int`, *optional*, defaults to `0`):
            Top-k sampling, 0 for off; it changes what is drawn, not what is scored.
        min_p (`float`, *optional*):
            Sampling leaves out tokens less likely than this share of the likeliest one's probability; it changes what
            is drawn, not what is scored.
        max_parallel_episodes (`int`, *optional*, defaults to `256`):
            Episodes that generate at the same time on one rank; bounds the KV cache.
        chat_template_kwargs (`dict` or `str`, *optional*):
            Passed to the chat template, such as `{"enable_thinking": false}`.
        oversampling_factor (`float`, *optional*, defaults to `1.0`):
            Episodes under way per episode that a rollout batch takes: the batch is complete when enough have ended.
        oversampling_rest (`str`, *optional*, defaults to `"continue"`):
            What becomes of the others: `"continue"` plays them on in the next batch, `"drop"` ends them.
        filter_groups (`int`, *optional*, defaults to `0`):
            Times at most that groups whose episodes all have the same return are replaced, in a rollout batch, by
            groups of further tasks. For the algorithms without a critic.
        generation_kwargs (`dict` or `str`, *optional*):
            Further sampling parameters of vLLM, such as `{"stop": ["</action>"], "include_stop_str_in_output": true}`.
            The saved agent samples without them.

        > Parameters that control vLLM

        use_vllm (`bool`, *optional*, defaults to `False`):
            Sample with vLLM instead of with the training weights.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`):
            `"colocate"`: in the trainer's process. `"server"`: on a server that `turnppo vllm-serve` started.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            Share of the device's memory that a colocated engine may take.
        vllm_max_model_length (`int`, *optional*):
            Tokens of a prompt and its response in a colocated engine. Defaults to what the model reads.
        vllm_enable_sleep_mode (`bool`, *optional*, defaults to `False`):
            A colocated engine frees its memory during updates. GPU only.
        vllm_server_base_url (`str`, *optional*):
            The server's address, such as `"http://localhost:8000"`, instead of host and port.
        vllm_server_host (`str`, *optional*, defaults to `"127.0.0.1"`):
            The server's host.
        vllm_server_port (`int`, *optional*, defaults to `8000`):
            The server's port.
        vllm_server_timeout (`float`, *optional*, defaults to `240.0`):
            Seconds for which an answer, or a server that is gone, is waited for.
        vllm_structured_outputs_regex (`str`, *optional*):
            Regular expression that every response matches.
        vllm_structured_outputs_choice (`list[str]`, *optional*):
            Texts of which every response is one.
        vllm_importance_sampling_correction (`bool`, *optional*):
            Weigh the loss by the trainer's over the sampler's probability, truncated. Unset: on where vLLM computes in
            half precision, and where oversampling continues episodes of older weights.
        vllm_importance_sampling_mode (`str`, *optional*):
            `"turn_truncate"` (one weight a turn) or `"token_truncate"`. Unset: as `importance_sampling_level`.
        vllm_importance_sampling_clip_max (`float`, *optional*, defaults to `3.0`):
            Where the weights are truncated.

        > Parameters that control the logging

        log_format (`str`, *optional*, defaults to `"auto"`):
            What a run prints: `"auto"` (a table in a terminal, lines in a file, a curve in a notebook, of the numbers
            that matter, and a report at the end), `"lines"` everywhere, or `"dict"`, every number.
        log_completions (`bool`, *optional*, defaults to `False`):
            Print a table of turns at every logging step and save the trajectories beside the checkpoints.
        num_completions_to_print (`int`, *optional*):
            Rows of that table; all by default.
        eval_temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of evaluation episodes; 0 is greedy.
        num_generations_eval (`int`, *optional*):
            Episodes per task of an evaluation during training. One by default.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *BaseConfig._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "chat_template_kwargs",
        "generation_kwargs",
    ]

    learning_rate: float = 1e-6
    remove_unused_columns: bool | None = False
    gradient_checkpointing: bool | None = None
    bf16: bool | None = None

    dataloader_pin_memory: bool = False
    # TRL's parser reads the second type of a union as the one that may be None
    trackio_static_space_id: str | None | Literal[False] = False  # noqa: RUF036

    overwrite_output_dir: bool = False

    model_init_kwargs: dict[str, Any] | str | None = None
    disable_dropout: bool = True

    algorithm: str = "turn_ppo"
    gamma: float = 0.99
    lam: float = 0.9
    token_gamma: float = 1.0
    token_lam: float = 1.0
    token_advantage_coef: float = 0.0
    off_policy_credit: str = "none"
    vtrace_rho_max: float = 1.0
    vtrace_c_max: float = 1.0
    gigpo_omega: float = 1.0
    gigpo_gamma: float = 0.95
    critic_lr_multiplier: float = 10.0
    critic: str = "separate"
    critic_layers: int | None = None
    critic_trunk_gradient: float = 0.0
    critic_warmup_steps: int = 0
    importance_sampling_level: str | None = None
    loss_aggregation: str = "trajectory_tokens"
    whiten_advantages: str | None = None
    scale_rewards: bool = True
    epsilon: float = 0.2
    epsilon_high: float | None = None
    cliprange_value: float | None = None
    beta: float = 0.0
    kl_estimator: str = "k3"
    entropy_coef: float = 0.0
    bootstrap_truncated: bool | None = None

    num_iterations: int = 1
    num_minibatches: int = 1
    generation_batch_size: int | None = None
    num_generations: int | None = None
    max_tokens_per_micro_batch: int = 16384
    shuffle_dataset: bool = True
    task_sampling: str = "uniform"
    reward_weights: list[float] | None = None
    mask_truncated_completions: bool = False
    max_failed_share: float = 0.5
    max_skipped_steps: int = 5
    collapse_action: str = "warn"

    max_turns: int | None = None
    max_turn_length: int | None = None
    max_completion_length: int = 2048
    environment_timeout_s: float = 600.0
    context: str = "full"
    max_tool_calling_iterations: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    max_parallel_episodes: int = 256
    chat_template_kwargs: dict[str, Any] | str | None = None
    oversampling_factor: float = 1.0
    oversampling_rest: str = "continue"
    filter_groups: int = 0
    generation_kwargs: dict[str, Any] | str | None = None

    use_vllm: bool = False
    vllm_mode: str = "colocate"
    vllm_gpu_memory_utilization: float = 0.3
    vllm_max_model_length: int | None = None
    vllm_enable_sleep_mode: bool = False
    vllm_server_base_url: str | None = None
    vllm_server_host: str = "127.0.0.1"
    vllm_server_port: int = 8000
    vllm_server_timeout: float = 240.0
    vllm_structured_outputs_regex: str | None = None
    vllm_structured_outputs_choice: list[str] | None = None
    vllm_importance_sampling_correction: bool | None = None
    vllm_importance_sampling_mode: str | None = None
    vllm_importance_sampling_clip_max: float = 3.0

    log_format: str = "auto"
    log_completions: bool = False
    num_completions_to_print: int | None = None
    eval_temperature: float = 0.0
    num_generations_eval: int | None = None

    def __new__(cls, *_: Any, **given: Any) -> TurnPPOConfig:
        """Refuse names that are no fields, with the nearest one."""
        names = inspect.signature(cls.__init__).parameters
        for name in given:
            if name not in names:
                if lacking := describe_lacking(name):
                    raise TypeError(lacking)
                raise TypeError(
                    f"{cls.__name__} has no field {name!r}.{did_you_mean(name, names)} It would have no effect. Leave "
                    "it out, or see the class for its fields."
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_inherited(self)
        check_inherited_choices(self)
        check_kinds(self)
        on_accelerator = not self.use_cpu and torch.accelerator.is_available()
        # transformers 5.23 renamed the field and warns where the old name is set
        renamed = hasattr(self, "activation_checkpointing")
        checkpointing = "activation_checkpointing" if renamed else "gradient_checkpointing"
        if self.gradient_checkpointing is None and getattr(self, checkpointing) is None:
            setattr(self, checkpointing, on_accelerator)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and on_accelerator and _supports_bf16()
        waits_for_plateau = self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
        is_judged = self.load_best_model_at_end or waits_for_plateau
        if is_judged and self.metric_for_best_model is None:  # type: ignore[has-type]
            self.metric_for_best_model = "reward"  # transformers would wait for a loss, which no evaluation has
        check_unmasked({item.name: getattr(self, item.name) for item in fields(self)}, "in its argument or flag")
        check_json(self, self._VALID_DICT_FIELDS)
        try:
            super().__post_init__()
        except ValueError as error:  # some of its messages have several lines
            raise ValueError(" ".join(str(error).split())) from error
        if waits_for_plateau and self.greater_is_better:  # PyTorch's own default is that less is better
            self.lr_scheduler_kwargs = {"mode": "max", **(self.lr_scheduler_kwargs or {})}  # type: ignore[has-type]
        remember_secrets({item.name: getattr(self, item.name) for item in fields(self)})
        check_choice(self, "algorithm", ALGORITHMS)
        self._fill_defaults_of_the_algorithm()
        check_choices(self)
        check_ranges(self)
        check_credit(self)
        check_critic_kind(self)
        check_vllm(self)
        check_optimizer_arguments(self)
        self._fold_batch_sizes()

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments without secrets, as they are saved and as trackers get them."""
        tokens = {name: value and MASK for name, value in vars(self).items() if name.endswith("_token")}
        return dict(redact({**super().to_dict(), **tokens}))

    def __str__(self) -> str:
        lines = [f"{name}={value},\n" for name, value in sorted(self.to_dict().items())]
        return f"{type(self).__name__}(\n{''.join(lines)})"

    __repr__ = __str__

    @property
    def uses_critic(self) -> bool:
        """Whether the algorithm has a critic at all."""
        return ALGORITHMS[self.algorithm].has_critic

    @property
    def task_seed(self) -> int:
        """What the order of tasks is drawn with."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps per rollout batch."""
        return self.num_iterations * self.num_minibatches

    @property
    def tasks_per_batch(self) -> int:
        """Distinct tasks per rollout batch, over all ranks."""
        return self.generation_batch_size // self.num_generations  # type: ignore[operator]  # filled in __post_init__

    def _fill_defaults_of_the_algorithm(self) -> None:
        if self.importance_sampling_level is None and self.token_advantage_coef > 0.0:
            self.importance_sampling_level = "token"
        for name in ("importance_sampling_level", "whiten_advantages", "num_generations"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(ALGORITHMS[self.algorithm], name))
        if self.epsilon_high is None:
            self.epsilon_high = self.epsilon
        if self.vllm_importance_sampling_correction is None:
            continued = self.oversampling_factor > 1.0 and self.oversampling_rest == "continue"
            self.vllm_importance_sampling_correction = continued or bool(self.use_vllm and self.bf16)
        if self.vllm_importance_sampling_mode is None:
            level = "token" if self.importance_sampling_level == "token" else "turn"
            self.vllm_importance_sampling_mode = f"{level}_truncate"

    def _fold_batch_sizes(self) -> None:
        self.gradient_accumulation_steps: int
        ranks, updates = self.world_size, self.num_minibatches
        folded = self.per_device_train_batch_size * ranks * self.gradient_accumulation_steps * updates
        if self.generation_batch_size is None:
            self.generation_batch_size = folded
        elif self.gradient_accumulation_steps > 1 and folded != self.generation_batch_size:
            warnings.warn(
                f"`generation_batch_size` is {self.generation_batch_size}, so `gradient_accumulation_steps` "
                f"({self.gradient_accumulation_steps}), by which it would be {folded}, has no effect. Set one.",
                stacklevel=4,
            )
        # one training step is one optimizer step here, whatever number of micro-batches it takes
        self.gradient_accumulation_steps = 1
        group = ranks * self.num_generations  # type: ignore[operator]
        for divisor, what in ((ranks * updates, "ranks x num_minibatches"), (group, "ranks x num_generations")):
            if self.generation_batch_size % divisor:
                raise ValueError(
                    f"`generation_batch_size` ({self.generation_batch_size}) must be divisible by {what} ({divisor}): "
                    "every rank takes the same number of whole episodes and groups. Change one of them."
                )


def _supports_bf16() -> bool:
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
