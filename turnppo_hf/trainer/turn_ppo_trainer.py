"""`TurnPPOTrainer`: collect, stack, score, credit, critic pass, actor pass, step, log, save."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from huggingface_hub import CommitInfo
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.integrations.deepspeed import propagate_args_to_deepspeed
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from turnppo_hf._trl import BaseTrainer, get_config_model_id, identity
from turnppo_hf.environments.factory import EnvironmentFactory, open_environments
from turnppo_hf.evaluation.results import HeldOut
from turnppo_hf.hub.agent_record import AgentRecord, Example
from turnppo_hf.hub.card.card import prepare_release
from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.models.checkpoint import load_networks
from turnppo_hf.ppo.batch import stack
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.rewards import Rewards
from turnppo_hf.trainer.arguments import check_arguments, default_arguments, refuse_prediction
from turnppo_hf.trainer.callbacks import install_callbacks
from turnppo_hf.trainer.checkpoints import check_best, describe_newest, note_best, write_checkpoint
from turnppo_hf.trainer.collapse_guard import CollapseGuard, restore_optimizer
from turnppo_hf.trainer.collector import Collector
from turnppo_hf.trainer.distributed import Sharding, shard_on_cpu
from turnppo_hf.trainer.ending import Ending
from turnppo_hf.trainer.hub_push import HubPusher
from turnppo_hf.trainer.metrics import check_best_metric, checked_names, rollout_metrics
from turnppo_hf.trainer.networks import build_networks
from turnppo_hf.trainer.optimizer import check_optimizer, groups_of, learning_rates, make_optimizer
from turnppo_hf.trainer.optimizer_step import pick_minibatch, update_again, update_once
from turnppo_hf.trainer.record import agent_record, find_example
from turnppo_hf.trainer.rollout_batch import RolloutBatch, check_failures, learned_from, pending_file
from turnppo_hf.trainer.run_folder import opened_run
from turnppo_hf.trainer.run_settings import run_settings, task_settings
from turnppo_hf.trainer.save_trial import try_saving
from turnppo_hf.trainer.saving import RunClock, check_weights, save_run, save_state
from turnppo_hf.trainer.schedule_free import judge_weights, judged_weights, train_weights
from turnppo_hf.trainer.step_guard import StepGuard, describe_episodes
from turnppo_hf.trainer.task_values import TaskValues
from turnppo_hf.trainer.tasks import check_eval_tasks, check_tasks, load_rows
from turnppo_hf.trainer.training_log import TrainingLog
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trainer.update import Update
from turnppo_hf.trajectory import Trajectory


class TurnPPOTrainer(BaseTrainer):
    """
    Trainer for turn-level PPO on multi-turn environments, with token-level PPO, GRPO, RLOO and GiGPO as baselines.

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
        model (`str` or [`~transformers.PreTrainedModel`]): The actor: model id, path, `"tiny"`, or a causal language
            model. Of a `PeftModel` the adapter is trained.
        reward_funcs (`Callable` or `list[Callable]`, *optional*): Reward functions of TRL; what they return is added
            to an episode's last turn. See [`~turnppo_hf.rollout.rewards.Rewards`].
        args ([`TurnPPOConfig`], *optional*): Configuration; defaults to one that writes to `<model name>-TurnPPO`.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*): Tasks. A row's `seed` seeds
            the environment's reset, `prompt` opens the conversation, `environment` selects one of several, and every
            other column is an option of the reset. Without it the environment makes its own tasks from seeds, and
            `max_steps` must be set.
        eval_dataset ([`~datasets.Dataset`], *optional*): Tasks of the evaluation during training.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): Tokenizer with a chat template;
            loaded from the model's folder by default.
        reward_processing_classes (*optional*): In `GRPOTrainer`'s place so that calls carry over; refused.
        callbacks (`list[TrainerCallback]`, *optional*): As in [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*, defaults to `(None, None)`): Optimizer and scheduler. The default is the one
            of [`~transformers.Trainer`] with two learning rates.
        quantization_config (*optional*): Passed to `from_pretrained` of a frozen model: a `BitsAndBytesConfig`.
        peft_config (`peft.PeftConfig`, *optional*): Adapters to train instead of the model, in the critic as well (see
            `TurnPPOConfig.critic`).
        tools (`list[Callable]`, *optional*): Functions with type hints and a docstring that the model may call.
        rollout_func (`Callable`, *optional*): Plays the episodes itself, as in TRL: takes prompts and the trainer, and
            returns `prompt_ids`, `completion_ids`, `logprobs` and optionally `env_mask`.
        environment_factory (`str`, `Callable` or `dict`, *optional*): Gymnasium id, a callable that returns a
            Gymnasium environment with Text spaces or an object of TRL's environment protocol (see
            [`~turnppo_hf.environments.integrations.tools.ToolEnvironment`]), or a dict of these by the name that the
            column `environment` gives. Without it, `reward_funcs` judge the answers to the dataset's prompts.
        value_model (`str` or [`~transformers.PreTrainedModel`], *optional*): The critic, a token classifier with one
            label; by default one on the actor's backbone with a zero head.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "turn-ppo"]
    held_out: HeldOut | None = None  # the episodes that the agent is judged on; set before training
    _example: Example | None = None
    _is_open = False  # whether the run's folder is this trainer's
    loss_is_scaled_for_ga = True  # every loss is divided by the optimizer step's own totals
    predict = refuse_prediction
    # the repository that is pushed to; None before `init_hf_repo`, and on other ranks than the first
    hub_model_id = property(lambda self: self.hub.repo_id, lambda self, repo_id: setattr(self.hub, "repo_id", repo_id))

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
        self.clock = RunClock()
        args = default_arguments(model) if args is None else args
        check_arguments(
            reward_funcs, args, train_dataset, reward_processing_classes, tools, rollout_func, environment_factory
        )
        set_seed(args.seed)
        networks, self.ref_model = build_networks(model, value_model, args, peft_config, quantization_config)
        actor = networks.actor
        tokenizer = processing_class or AutoTokenizer.from_pretrained(get_config_model_id(actor.config))
        self.chat = Chat(tokenizer, args.chat_template_kwargs, args.context)  # type: ignore[arg-type]  # a dict by now
        self.environments, self.environment_names, self.environment_record = open_environments(
            environment_factory, tools or (), needs_environment=reward_funcs is None, context=args.context
        )
        if offered := self.environments.tools:
            self.chat.offer_tools(offered)
        self.settings = run_settings(args, networks, self.environment_names, self.environment_record)
        how: dict[str, Any] = {"state": lambda: self.state, "timeout_s": args.environment_timeout_s}
        self.rewards = Rewards(reward_funcs, args.reward_weights, **how)
        train_dataset = check_tasks(train_dataset, args, self.environment_names)
        self.settings |= task_settings(train_dataset, self.rewards.functions)
        self._task_values = TaskValues(train_dataset, args.task_seed) if args.task_sampling == "value" else None
        self._needs_prompt = environment_factory is None and reward_funcs is not None
        check_eval_tasks(eval_dataset, self.environment_names, needs_prompt=self._needs_prompt)
        logs_own = reward_funcs is not None or type(self).evaluate is not TurnPPOTrainer.evaluate
        check_best_metric(args.metric_for_best_model, self.environment_names, logs_own=logs_own)
        self.hub, self._last_trajectories = HubPusher(args), list[Trajectory]()
        self._log = TrainingLog(args, is_mixed=len(self.environment_names) > 1)
        self.ending = Ending(self, [self._log, *([] if self._task_values is None else [self._task_values])])
        self._rollout: RolloutBatch | None = None  # under way; the last one used, where none is
        self._figures, self._norms = dict[str, float](), dict[str, float]()  # logged of a step, and its gradients'
        self._pending_file: Path | None = None  # where a resumed run finds the one that was under way
        args.ddp_broadcast_buffers = False  # a rank without episodes makes no forward that could answer a broadcast
        super().__init__(
            model=networks,
            args=args,
            data_collator=identity,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        install_callbacks(self)
        actor.add_model_tags(self._tag_names)
        if self.ref_model not in (None, actor):
            self.ref_model = self.sharding.shard_reference(self.ref_model)
        newest = partial(describe_newest, Path(args.output_dir))
        self._guard = StepGuard(args.max_skipped_steps, self.sharding.sum, newest)
        self._autocast = self.accelerator.autocast if args.bf16 else nullcontext
        whole_on = torch.device("cpu") if args.use_vllm else self.accelerator.device
        self._whole = self.sharding.cut(self.model, whole_on)  # where each rank holds a part of what trains
        self.collector = Collector(
            args,
            actor if self._whole is None else self._whole.copy.actor,
            self.chat,
            self.environments,
            self.environment_names[0],
            train_dataset,
            autocast=self._autocast,
            rewards=self.rewards if reward_funcs is not None or self.environments.of_tools else None,
            rollout_func=None if rollout_func is None else lambda prompts: rollout_func(prompts, self),
        )

    def create_accelerator_and_postprocess(self) -> None:
        """Read from the launch how the networks are sharded, and refuse what is not supported."""
        super().create_accelerator_and_postprocess()
        if shard_on_cpu(self.accelerator) and self.accelerator.state.deepspeed_plugin is not None:
            propagate_args_to_deepspeed(self.accelerator, self.args)
        self.sharding = Sharding(self.accelerator)
        self.collapse = CollapseGuard(self.args, self._go_back, is_cut=self.sharding.in_step)
        self.is_fsdp_enabled, self.is_deepspeed_enabled = self.sharding.is_fsdp, self.sharding.is_deepspeed

    def whole_networks(self, *names: str) -> AbstractContextManager[ActorCritic]:
        """Open the networks named, whole on every rank, to be read as they are now; all ranks enter and leave."""
        if self._whole is not None:
            return self._whole.filled(*names)
        return nullcontext(self.accelerator.unwrap_model(self.model))

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Load the rows of one rollout batch at a time, once for each of its updates."""
        return load_rows(self.train_dataset, self.args, lambda: int(self.state.epoch or 0), self._get_dataloader)

    def _play_rollout_batch(self, rows: list[dict[str, Any]], batch_number: int) -> list[Trajectory]:
        """Play this rank's part of a rollout batch, log what all ranks played, and leave out episodes that failed."""
        start = time.perf_counter()
        with self.whole_networks("actor"):
            mine, self._last_trajectories = self.collector.collect(rows, batch_number)
        duration_s, of_rewards = time.perf_counter() - start, self.rewards.take_metrics(gather_object)
        self._log.add_rollout(self._last_trajectories, self.collector.timing, duration_s, of_rewards)
        check_failures(self._last_trajectories, self.args.max_failed_share)
        return learned_from(mine, self.args)

    @contextmanager
    def opened(self, resume_from_checkpoint: str | bool | None = None) -> Iterator[str | None]:
        """
        Open the run's folder before anything is played, and keep other runs out until it is left; all ranks enter it.

        Yields the checkpoint that the run goes on from, None where it starts anew. For arguments and errors, see
        [`~turnppo_hf.trainer.run_folder.opened_run`].
        """
        if self._is_open:
            yield None if resume_from_checkpoint is None else str(resume_from_checkpoint)
            return
        model = get_config_model_id(self.model.config)
        with opened_run(self.args, self.settings, resume_from_checkpoint, model) as found:
            if found is not None:
                self.sharding.check_checkpoint(str(found[0]))
                self.clock.resume(found[1].duration_s)
                self._example = AgentRecord.from_folder(found[0]).example
            whole = self.accelerator.unwrap_model(self.model)
            try_saving(self.args, whole, self.processing_class, self.make_record(), self.sharding, self.hub)
            self._is_open = True
            try:
                yield None if found is None else str(found[0])
            finally:
                self._is_open = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as [`~transformers.Trainer.train`] does, in a folder of its own; nothing interrupted is played on."""
        with self.opened(resume_from_checkpoint) as checkpoint, self.clock.training(), self.collector.begun():
            self._rollout, self._pending_file, self._last_trajectories = None, None, []
            self.rewards.take_metrics()
            self._log.begin(None if checkpoint is None else Path(checkpoint))
            try:
                with self.ending.saving_first(checkpoint):
                    return super().train(checkpoint, *args, **kwargs)
            finally:
                self.is_in_train = False
                judge_weights(self.optimizer)  # type: ignore[has-type]  # of `Trainer`

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        done = super()._init_training_state(max_steps, *args)
        # a checkpoint's state has the intervals of its own run, which would win over those that are set now
        self.state.compute_steps(self.args, max_steps)
        self.collapse.begin(self.state.log_history)
        return done

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # `Trainer` would make a step before it looks
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def training_step(
        self, model: torch.nn.Module, inputs: list[dict[str, Any]], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute the gradients of one optimizer step; a rollout batch is collected where the last one is used up."""
        args, device = self.args, self.accelerator.device
        train_weights(self.optimizer)
        batch_number, update_number = divmod(self.state.global_step, args.updates_per_batch)
        if update_number > 0 and self._rollout is None and self._pending_file is not None:
            self._rollout = RolloutBatch.load_on_all_ranks(self._pending_file, device)
        played: list[Trajectory] | None = None
        if update_number == 0 or self._rollout is None:
            rows = inputs if self._task_values is None else self._task_values.rows(batch_number, args)
            played = self._play_rollout_batch(rows, batch_number)  # 1. collect
            batch = stack(played, bootstrap_truncated=args.uses_critic and args.bootstrap_truncated)  # 2. stack
            self._rollout = RolloutBatch(batch.to(device), episodes=describe_episodes(played))
            num_tokens = self.sharding.sum(batch.attention_mask.sum().double())
            self._log.count_tokens(float(num_tokens), self.state.log_history)
        start = time.perf_counter()
        rollout, update = self._rollout, self._passes(model)
        critic_only = self.state.global_step < args.critic_warmup_steps
        with self.sharding.step(update.idle, self.model):  # 3. score, 4. credit, 5. critic pass, 6. actor pass
            if args.updates_per_batch == 1:
                figures = update_once(update, rollout, self.sharding, critic_only=critic_only)
            else:
                minibatch = pick_minibatch(len(rollout.batch), args, batch_number, update_number).to(device)
                rescores = args.vllm_importance_sampling_correction or not self.collector.is_exact
                figures = update_again(
                    update, rollout, minibatch, self.sharding, rescores_logprobs=rescores, critic_only=critic_only
                )
        if played is not None and self._task_values is not None and rollout.credit is not None:
            self._log.add(self._task_values.learn(played, rollout.credit.values, rollout.credit.returns))
        # 7. step: `Trainer` clips each network with `_clip_grad_norm` and steps the optimizer, where the guard lets it
        self._guard.watch(figures.losses, figures.findings, rollout.episodes)
        self._figures = figures.metrics(with_critic=args.uses_critic)
        # 8. log
        loss = torch.tensor(figures.loss, device=device)
        self._figures["loss"] = loss.item()
        self._log.add({"time/update_s": time.perf_counter() - start})
        return loss.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # what is logged as `loss` is in the log's own figures

    def _passes(self, model: torch.nn.Module) -> Update:
        """Put the networks into training mode and return the passes that an optimizer step makes over them."""
        model.train()
        # not DDP's forward: it broadcasts buffers, and a rank without episodes would never join
        networks = self.model_wrapped if self.sharding.is_deepspeed else self.model
        calls: dict[str, Any] = {
            "backward": self.sharding.backward,
            "autocast": self._autocast,
            "largest": self.sharding.largest,
        }
        return Update(networks, self.args, ref_model=self.ref_model, **calls)

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        self._norms = self.sharding.clip_networks(self.model, self.args.max_grad_norm or math.inf)
        return torch.tensor(self._norms["actor"])

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save what is due after a step, and end the training where a signal asked for it."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.ending.after_step()

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        """Decide, before each optimizer step, whether it is made; log its figures, or that it was skipped."""
        grad_norm = self._clip_grad_norm(model) if grad_norm is None else grad_norm
        judged = self._norms if self.accelerator.scaler is None else {}
        skips = self._guard.skips(self.state.global_step + 1, judged)
        self._log.add_step(None if skips else self._figures, self._norms, learning_rates(self._groups, self.optimizer))
        self.sharding.allow_step(self.model, not skips)
        self.ending.moves_at = self.state.global_step
        return grad_norm

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build one optimizer with the actor's and the critic's learning rate."""
        if self.optimizer is None:  # type: ignore[has-type]  # of `Trainer`, which mypy does not follow
            self.optimizer = make_optimizer(self.model, self.args, set(self.get_decay_parameter_names(self.model)))
        check_optimizer(self.model, self.optimizer)
        self._groups = groups_of(self.model, self.optimizer)
        return self.optimizer

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Play every task of the evaluation dataset once, at `eval_temperature`, and log the episode metrics."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        check_eval_tasks(dataset, self.environment_names, needs_prompt=self._needs_prompt, is_needed=True)
        with judged_weights(self.optimizer), self.whole_networks("actor"):
            played = self.collector.evaluate(dataset, self.args.eval_temperature)
        check_failures(played, self.args.max_failed_share)
        found = {**rollout_metrics(played), **checked_names(self.rewards.take_metrics(gather_object))}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log to a training log, print the table of turns where asked."""
        if "loss" in logs:
            logs |= self._log.take()
            self._log.show(self._last_trajectories, self._rollout, self.state.global_step)
            logs |= self.collapse.look(logs, self.state.global_step, self.control)
        super().log(logs, start_time)

    def _go_back(self, checkpoint: str, rate_scale: float) -> None:
        """Take up a checkpoint's weights and moments, at a lower learning rate; nothing under way is played on."""
        self._load_from_checkpoint(checkpoint, self.model)
        restore_optimizer(self.optimizer, self.lr_scheduler, checkpoint, rate_scale)
        self._rollout = self._pending_file = None
        self.collector.give_up()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what plain transformers loads, however the launch shards the networks; every rank calls it."""
        networks, folder = self.accelerator.unwrap_model(self.model), output_dir or self.args.output_dir
        check_weights(networks, self.sharding, self._guard.last_checkpoint)
        with judged_weights(self.optimizer):
            save_run(folder, networks, self.processing_class, self.make_record(), self.args, self.sharding)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def make_record(self) -> AgentRecord:
        """Return what `turnppo.json` holds: the environment, and how the actor is prompted, sampled and judged."""
        environment, base = self.environment_record, get_config_model_id(self.model.config)
        if self._example is None:
            self._example = find_example(self.chat, self._last_trajectories, uses_tools="tools" in environment)
        return agent_record(self.args, environment, base_model=base, evaluation=self.held_out, example=self._example)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save what `Trainer` saves, and the rollout batch under way, in a folder that is complete or absent."""
        if trial is None:
            self.store_flos()
        args, state, run_folder = self.args, self.state, self._get_output_dir(trial)
        folder = Path(run_folder) / f"checkpoint-{state.global_step}"
        written = write_checkpoint(folder, args, self.settings, asdict(self.clock.read()))
        with judged_weights(self.optimizer), written as beside:
            pending = state.global_step % args.updates_per_batch
            if pending and self._rollout is not None and self._rollout.credit is not None:
                self._rollout.save(pending_file(beside, args))
            if self._task_values is not None and args.should_save:
                self._task_values.save(beside)
            self.save_model(beside, _internal_call=True)
            note_best(state, folder)
            if not args.save_only_model:
                self._save_optimizer_and_scheduler(beside)
                self._save_scaler(beside)
                self._save_rng_state(beside)
            if args.should_save:
                self._log.save(Path(beside))
                save_state(state, [*self.callback_handler.callbacks, self.control], Path(beside))
        self.ending.saved_at = state.global_step
        if args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if args.should_save:
            rotate_checkpoints(run_folder, args.save_total_limit, state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        self.sharding.load_checkpoint(self.model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._pending_file = pending_file(checkpoint, self.args)
            if self._task_values is not None:
                self._task_values.load(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        check_best(best, Path(self.args.output_dir))
        if self.sharding.in_step:
            super()._load_best_model()
        else:
            load_networks(self.accelerator.unwrap_model(self.model), best)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository; where the Hub fails for a while, every push tries again instead of ending the run."""
        if self.is_world_process_zero():
            self.hub.create_repository(token=token, private=private)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the card of the output folder, its pictures and evaluation results, from what the run has recorded."""
        if self.is_world_process_zero():
            self.save_state()
            tags = [tags] if isinstance(tags, str) else tags
            prepare_release(self.args.output_dir, self.hub_model_id, title=model_name, dataset=dataset_name, tags=tags)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Push actor, critic, tokenizer, record and card as one commit; pickles and checkpoints stay here.

        The arguments are those of [`~transformers.Trainer.push_to_hub`], and so is what is returned. With
        `blocking=False`, save nothing to the output folder before the `Future` is done.

        Raises:
            `PushError`: nothing was committed, after retries; the output folder is complete, and
            `turnppo push FOLDER` pushes it again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        target = {"token": token, "revision": revision, "private": private}
        write_card = partial(self.create_model_card, **kwargs)
        return self.hub.push_release(write_card, commit_message, target, blocking=blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.accelerator.wait_for_everyone()  # every rank has its own part in a checkpoint
        if self.is_world_process_zero():
            on_begin = partial(self.callback_handler.on_push_begin, self.args, self.state, self.control)
            self.hub.push_checkpoint(Path(checkpoint_folder), self.state, on_begin)

    def _finish_current_push(self) -> None:
        self.hub.finish()
