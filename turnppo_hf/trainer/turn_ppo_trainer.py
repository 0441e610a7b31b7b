"""`TurnPPOTrainer`: collect, stack, score, credit, epochs x minibatches, log, save."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch.utils.data import Sampler
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.integrations.deepspeed import propagate_args_to_deepspeed

from turnppo_hf._trl import get_config_model_id, identity
from turnppo_hf.environments.factory import EnvironmentFactory, open_environments
from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.ppo.batch import TurnBatch, stack
from turnppo_hf.ppo.credit import flatten, record_credit, whitened
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.parquet import save_trajectories
from turnppo_hf.rollout.rewards import Rewards
from turnppo_hf.trainer.arguments import check_sources, refuse_unsupported
from turnppo_hf.trainer.collector import Collector
from turnppo_hf.trainer.distributed import Sharding, StepInDeepSpeed, WholeNetworks, load_whole, shard_on_cpu
from turnppo_hf.trainer.metrics import credit_metrics, print_turns, rollout_metrics, sampling_metrics, update_metrics
from turnppo_hf.trainer.networks import check_launch, load_actor, load_critic, load_reference, pair
from turnppo_hf.trainer.rollout_batch import RolloutBatch
from turnppo_hf.trainer.saving import SavingTrainer
from turnppo_hf.trainer.tasks import TaskSampler, TaskStream, check_eval_tasks, check_tasks
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trainer.update import Totals, Update
from turnppo_hf.trajectory import FailedEpisodesError, GenerationError, StopReason, Trajectory


class TurnPPOTrainer(SavingTrainer):
    """
    Trainer for turn-level PPO on multi-turn environments, with token-level PPO, GRPO and RLOO as baselines.

    Example:
    ```python
    from turnppo_hf import TurnPPOConfig, TurnPPOTrainer

    trainer = TurnPPOTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        args=TurnPPOConfig(output_dir="runs/sokoban", generation_batch_size=64, max_steps=100),
        environment_factory="turnppo_hf/Sokoban-v0",
    )
    trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The actor: model id, path, or a causal language model. Of a `PeftModel` the adapter is trained.
        reward_funcs (`Callable` or `list[Callable]`, *optional*):
            Reward functions of TRL; what they return is added to an episode's last turn. See
            [`~turnppo_hf.rollout.rewards.Rewards`].
        args ([`TurnPPOConfig`], *optional*):
            Configuration; defaults to one that writes to `<model name>-TurnPPO`.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Tasks. A row's `seed` seeds the environment's reset, `prompt` opens the conversation, `environment`
            selects one of several, and every other column is an option of the reset. Without it the environment makes
            its own tasks from seeds, and `max_steps` must be set.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Tasks of the evaluation during training.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer with a chat template; loaded from the model's folder by default.
        reward_processing_classes (*optional*):
            In `GRPOTrainer`'s place so that calls carry over; not supported yet, and refused.
        callbacks (`list[TrainerCallback]`, *optional*):
            As in [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler. The default is the one of [`~transformers.Trainer`] with two learning rates.
        quantization_config (*optional*):
            Passed to `from_pretrained` of a frozen model, such as a `BitsAndBytesConfig`.
        peft_config (`peft.PeftConfig`, *optional*):
            Adapters to train instead of the model, in the critic as well (see `TurnPPOConfig.critic`).
        tools (`list[Callable]`, *optional*):
            Functions with type hints and a docstring that the model may call.
        rollout_func (`Callable`, *optional*):
            Plays the episodes itself, as in TRL: takes prompts and the trainer, and returns `prompt_ids`,
            `completion_ids`, `logprobs` and optionally `env_mask`.
        environment_factory (`str`, `Callable` or `dict`, *optional*):
            Gymnasium id, a callable that returns a Gymnasium environment with Text spaces or an object of TRL's
            environment protocol (see [`~turnppo_hf.environments.integrations.tools.ToolEnvironment`]), or a dict of
            these by the name that the column `environment` gives. Without it, `reward_funcs` judge the
            answers to the dataset's prompts.
        value_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The critic, a token classifier with one label; by default one on the actor's backbone with a zero head.
    """

    # every loss is divided by the optimizer step's own totals
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: TurnPPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: EnvironmentFactory | Mapping[str, EnvironmentFactory] | None = None,
        value_model: str | PreTrainedModel | None = None,
    ) -> None:
        refuse_unsupported(reward_processing_classes=reward_processing_classes)
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = TurnPPOConfig(f"{name.split('/')[-1]}-TurnPPO")
        set_seed(args.seed)
        load_whole(model)
        actor = load_actor(model, args, peft_config, quantization_config)
        tokenizer = processing_class or AutoTokenizer.from_pretrained(get_config_model_id(actor.config))
        self.chat = Chat(tokenizer, args.chat_template_kwargs)  # type: ignore[arg-type]  # a dict after __post_init__
        check_sources(reward_funcs, args, train_dataset, tools, rollout_func, environment_factory)
        self.environments, self.environment_names, self.environment_record = open_environments(
            environment_factory, tools or (), needs_environment=reward_funcs is None
        )
        if offered := self.environments.tools:
            self.chat.offer_tools(offered)
        rewards = Rewards(reward_funcs, args.reward_weights, state=lambda: self.state)
        train_dataset = check_tasks(train_dataset, args, self.environment_names)
        check_eval_tasks(eval_dataset, self.environment_names)
        critic = load_critic(value_model, actor, args) if args.uses_critic else None
        self.ref_model = load_reference(actor, args)
        self._metrics: dict[str, list[float]] = defaultdict(list)  # since the last log
        self._last_trajectories: list[Trajectory] = []
        # a rank without episodes makes no forward in which it could answer another rank's broadcast
        args.ddp_broadcast_buffers = False
        super().__init__(
            model=pair(actor, critic, args),
            args=args,
            data_collator=identity,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        check_launch(self.model, args.critic, is_shared_out=self.sharding.in_step)
        if self.sharding.is_deepspeed:
            self.add_callback(StepInDeepSpeed(self.accelerator))
        actor.add_model_tags(self._tag_names)
        if self.ref_model not in (None, actor):
            self.ref_model = self.sharding.shard_reference(self.ref_model)
        self._autocast = self.accelerator.autocast if args.bf16 else nullcontext
        self._whole = None
        if self.sharding.is_split:
            self._whole = WholeNetworks(self.model, torch.device("cpu") if args.use_vllm else self.accelerator.device)
        self.collector = Collector(
            args,
            actor if self._whole is None else self._whole.copy.actor,
            self.chat,
            self.environments,
            self.environment_names[0],
            train_dataset,
            autocast=self._autocast,
            rewards=rewards if reward_funcs is not None or self.environments.of_tools else None,
            rollout_func=None if rollout_func is None else lambda prompts: rollout_func(prompts, self),
        )

    def create_accelerator_and_postprocess(self) -> None:
        """Learn from the launch how the networks are shared out, and refuse what is not supported."""
        super().create_accelerator_and_postprocess()
        if shard_on_cpu(self.accelerator) and self.accelerator.state.deepspeed_plugin is not None:
            propagate_args_to_deepspeed(self.accelerator, self.args)
        self.sharding = Sharding(self.accelerator)
        self.is_fsdp_enabled, self.is_deepspeed_enabled = self.sharding.is_fsdp, self.sharding.is_deepspeed

    def whole_networks(self, *names: str) -> AbstractContextManager[ActorCritic]:
        """
        Give the networks as they are now, whole on every rank and for reading only.

        Args:
            names (`str`): `"actor"`, `"critic"`: the networks that are needed, where they must be gathered. All ranks
                enter and leave together.
        """
        if self._whole is not None:
            return self._whole.filled(*names)
        return nullcontext(self.accelerator.unwrap_model(self.model))

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Load the rows of one rollout batch at a time, once for each of its updates."""
        share = self.args.generation_batch_size // self.args.world_size
        if isinstance(self.train_dataset, TaskStream):  # it gives each rank its own rows
            return torch.utils.data.DataLoader(self.train_dataset, batch_size=share, collate_fn=identity)
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=share,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return TaskSampler(
            epoch=lambda: int(self.state.epoch or 0),
            data_source=self.train_dataset if train_dataset is None else train_dataset,
            mini_repeat_count=self.args.num_generations,
            batch_size=self.args.tasks_per_batch,
            repeat_count=self.args.updates_per_batch,
            shuffle=self.args.shuffle_dataset,
            seed=self.args.seed,
        )

    def _collect(self, rows: list[dict[str, Any]], batch_number: int) -> list[Trajectory]:
        """Play this rank's share of a rollout batch and log what all ranks saw."""
        start = time.perf_counter()
        with self._saving_what_is_trained(), self.whole_networks("actor"):
            trajectories, self._last_trajectories = self.collector.collect(rows, batch_number)
        duration, timing = time.perf_counter() - start, self.collector.timing
        self._log_now(
            {
                **rollout_metrics(self._last_trajectories, bootstrap_truncated=self.args.bootstrap_truncated),
                **self._logged_by_rewards(),
                "time/rollout_s": duration,
                "time/generate_s": timing.generate_s,
                "time/environment_s": timing.environment_s,
                "time/wait_s": timing.wait_s,
                "time/sync_s": timing.sync_s,
                "sampling/tokens_per_s": timing.num_tokens / duration,
            }
        )
        self._stop_if_too_many_failed()
        return [trajectory for trajectory in trajectories if trajectory.stop_reason is not StopReason.ERROR]

    def _logged_by_rewards(self) -> dict[str, float]:
        return {} if self.collector.rewards is None else self.collector.rewards.take_metrics(gather_object)

    @contextmanager
    def _saving_what_is_trained(self) -> Iterator[None]:
        """Save a checkpoint where the generator gives up, and say so."""
        try:
            yield
        except GenerationError as error:
            if not self.is_in_train:
                raise
            saved = self._checkpoint_here()
            raise GenerationError(f"{error} {saved} Resume from it with `resume_from_checkpoint`.") from error

    def _checkpoint_here(self) -> str:
        """Save before the run stops; return a sentence about it."""
        self._rollout = None
        self._save_checkpoint(self.model, trial=None)
        step = self.state.global_step
        return f"A checkpoint of step {step} was saved in {self.args.output_dir}."

    def _stop_if_too_many_failed(self) -> None:
        failed = [trajectory for trajectory in self._last_trajectories if trajectory.stop_reason is StopReason.ERROR]
        if len(failed) > self.args.max_failed_share * len(self._last_trajectories):
            saved = self._checkpoint_here()
            raise FailedEpisodesError(
                f"{len(failed)} of {len(self._last_trajectories)} episodes failed, more than `max_failed_share` "
                f"({self.args.max_failed_share}) allows; the first with {failed[0].error!r} in "
                f"{failed[0].environment!r}. {saved} Mend the environment and resume from it."
            )

    def training_step(
        self, model: torch.nn.Module, inputs: list[dict[str, Any]], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Make the gradients of one optimizer step, after collecting a rollout batch where the last one is used up."""
        batch_number, update_number = divmod(self.state.global_step, self.args.updates_per_batch)
        if update_number == 0 or (self._rollout is None and not self._load_pending()):
            batch = stack(self._collect(inputs, batch_number), bootstrap_truncated=self.args.bootstrap_truncated)
            self._rollout = RolloutBatch(batch.to(self.accelerator.device))
            self._count_tokens(batch)
        assert self._rollout is not None
        start = time.perf_counter()
        model.train()
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        update = Update(
            # not DDP's forward: it broadcasts buffers, and a rank without episodes would never join
            self.model_wrapped if self.sharding.is_deepspeed else self.model,
            self.args,
            ref_model=self.ref_model,
            backward=self.sharding.backward,
            autocast=self._autocast,
            largest=self.sharding.largest,
        )
        with self.sharding.step(update.idle, self.model):
            sums, totals = self._passes(update, batch_number, update_number)
        if update_number == 0:  # later, the policy has moved
            shares = gather_object([gaps.cpu() for gaps in update.sampling_gaps])
            self._log_now(sampling_metrics(torch.cat([torch.zeros(0), *shares])))
        names = sorted({name for share in gather_object([list(sums)]) for name in share})
        values = torch.stack([sums[name].cpu().double() for name in names]) if names else torch.zeros(0)
        values = self.sharding.sum(values)
        reduced = dict(zip(names, values.tolist(), strict=True))
        self._log_now(update_metrics(reduced, totals.num_tokens))
        self._log_now({"time/update_s": time.perf_counter() - start})
        loss = reduced.get("policy_loss", 0.0) + reduced.get("value_loss", 0.0)
        return torch.tensor(loss, device=self.accelerator.device)

    def _count_tokens(self, batch: TurnBatch) -> None:
        """Go on counting from the last value logged, which a resumed run has as well."""
        logged = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
        before = self._metrics["num_tokens"][-1:] or logged[-1:] or [0.0]
        here = self.sharding.sum(batch.attention_mask.sum().double())
        self._log_now({"num_tokens": before[0] + float(here)})

    def _passes(
        self, update: Update, batch_number: int, update_number: int
    ) -> tuple[Mapping[str, torch.Tensor], Totals]:
        """Critic forward and backward, credit and whitening from its values, actor forward and backward."""
        rollout = self._rollout
        assert rollout is not None
        sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.accelerator.device))
        once = self.args.updates_per_batch == 1
        if rollout.credit is None and not (once and self.args.uses_critic):
            self._score(update, rollout)
        picked = self._minibatch(len(rollout.batch), batch_number, update_number)
        batch = rollout.batch if once else rollout.batch.select(picked)
        totals = Totals.of(batch, self.sharding.sum)
        known = None if rollout.credit is None else rollout.credit.select(picked, rollout.credit.mask.shape[1])
        if self.args.uses_critic:
            credit, critic_sums = update.critic_pass(batch, known, totals)
            sums |= critic_sums
            rollout.credit = credit if rollout.credit is None else rollout.credit
        if rollout.advantages is None:
            self._whiten(rollout)
        if self.state.global_step >= self.args.critic_warmup_steps:
            assert rollout.credit is not None and rollout.advantages is not None
            # a batch that is used once is picked whole, so its own credit is the one just made
            credit = rollout.credit if known is None else known
            sums |= update.actor_pass(batch, credit, rollout.advantages[picked], totals)
        return sums, totals

    def _score(self, update: Update, rollout: RolloutBatch) -> None:
        """Read values and log-probs before the first of several updates."""
        if self.args.uses_critic:
            rollout.credit, _ = update.critic_pass(rollout.batch, None, None)
        else:
            rollout.credit = update.credit_without_critic(rollout.batch)
        recomputed = self.args.vllm_importance_sampling_correction or not self.collector.generator.exact
        if recomputed and self.args.updates_per_batch > 1:
            rollout.batch = update.score_logprobs(rollout.batch)

    def _whiten(self, rollout: RolloutBatch) -> None:
        """Whiten with the statistics of all ranks, and log the credit before it."""
        batch, credit = rollout.batch, rollout.credit
        over = str(self.args.whiten_advantages)
        mine = {} if credit is None else flatten(batch, credit, over=over)
        shares = [share for share in gather_object([mine]) if share]
        everybody = {name: torch.cat([share[name] for share in shares]) for name in (shares[0] if shares else ())}
        if credit is not None:
            reference = everybody["sample"].to(credit.advantages.device)
            rollout.advantages = whitened(batch, credit, over=over, reference=reference)
        if everybody:
            self._log_now(credit_metrics(everybody, with_critic=self.args.uses_critic))

    def _minibatch(self, num_trajectories: int, batch_number: int, update_number: int) -> torch.Tensor:
        """Pick the trajectories of an update; the order is another one in every pass, and the same after a resume."""
        iteration, part = divmod(update_number, self.args.num_minibatches)
        if self.args.updates_per_batch == 1:
            return torch.arange(num_trajectories, device=self.accelerator.device)
        seed = (self.args.seed, 2, batch_number, iteration, self.accelerator.process_index)
        order = np.random.default_rng(seed).permutation(num_trajectories)
        return torch.from_numpy(np.array_split(order, self.args.num_minibatches)[part]).to(self.accelerator.device)

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Clip each network by itself: the critic's norm is many times the actor's and would scale it away."""
        norms = {
            name: self.sharding.clip_gradients(parameters, self.args.max_grad_norm)
            for name, parameters in self.model.parameter_sets.items()
        }
        self._log_now({f"grad_norm/{name}": norm for name, norm in norms.items()})
        return torch.tensor(norms["actor"])

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build one optimizer with the actor's and the critic's learning rate."""
        if self.optimizer is None:
            decays = set(self.get_decay_parameter_names(self.model))
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = self.model.parameter_groups(
                decays, self.args.learning_rate, self.args.critic_lr_multiplier, self.args.weight_decay
            )
            self.optimizer = optimizer_class(groups, **kwargs)
        self.model.check_optimizer(self.optimizer)
        return self.optimizer

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Play every task of the evaluation dataset once, at `eval_temperature`, and log the episode metrics."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("There is no `eval_dataset` to evaluate on. Pass one here or to TurnPPOTrainer.")
        with self._saving_what_is_trained(), self.whole_networks("actor"):
            everybody = self.collector.evaluate(dataset, self.args.eval_temperature)
        found = {**rollout_metrics(everybody), **self._logged_by_rewards()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _log_now(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics[name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log to a training log, print the table of turns where asked."""
        if "loss" in logs:
            for name, values in self._metrics.items():
                real = [value for value in values if value == value]
                logs[name] = values[-1] if name == "num_tokens" else sum(real) / len(real) if real else float("nan")
            self._metrics.clear()
            if self.optimizer is not None and self.args.uses_critic:
                logs["learning_rate_critic"] = self.optimizer.param_groups[-1]["lr"]
            # a run resumed in the middle of a rollout batch has its tensors, not its texts
            if self.args.log_completions and self._last_trajectories and self.accelerator.is_main_process:
                self._log_completions()
        super().log(logs, start_time)

    def _log_completions(self) -> None:
        played = [item for item in self._last_trajectories if item.stop_reason is not StopReason.ERROR]
        credit = None if self._rollout is None else self._rollout.credit
        if credit is not None and self.accelerator.num_processes == 1:
            played = record_credit(played, credit)
        print_turns(played, self.state.global_step, self.args.num_completions_to_print)
        file = Path(self.args.output_dir) / "trajectories" / f"trajectories_{self.state.global_step:05d}.parquet"
        save_trajectories(played, file)
