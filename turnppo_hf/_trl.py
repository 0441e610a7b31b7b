"""The only file that imports private or one-level-down names of TRL, tried with 1.16, and the list of all others."""

try:
    from trl.chat_template_utils import (
        add_response_schema,
        get_training_chat_template,
        is_chat_template_prefix_preserving,
        parse_response,
        supports_tool_calling,
    )
    from trl.trainer.base_config import _BaseConfig as BaseConfig
    from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer
    from trl.trainer.utils import (
        RepeatSampler,
        create_model_from_path,
        disable_dropout_in_model,
        get_callable_name,
        get_config_model_id,
        identity,
        is_async_callable,
        print_prompt_completions_sample,
    )
except ImportError as error:
    raise ImportError(
        f"turnppo_hf builds on names of TRL 1.16 that this environment lacks ({error}). "
        'Install the version it was tried with: pip install "trl>=1.16,<1.17".'
    ) from error

__all__ = [
    "BaseConfig",
    "BaseTrainer",
    "RepeatSampler",
    "add_response_schema",
    "create_model_from_path",
    "disable_dropout_in_model",
    "get_callable_name",
    "get_config_model_id",
    "get_training_chat_template",
    "identity",
    "is_async_callable",
    "is_chat_template_prefix_preserving",
    "parse_response",
    "print_prompt_completions_sample",
    "supports_tool_calling",
]

# private names of other libraries that are used as attributes or defined anew -> "file: why; versions tried"
PRIVATE_NAMES = {
    "openenv.core.EnvClient._ws": "environments/integrations/openenv.py: shows a new connection; openenv 0.10",
    "transformers.PretrainedConfig._attn_implementation": "generation/transformers_generator.py, "
    "models/packed_rows.py: whether the mask, or rows without one, are taken; transformers 5.19 to 5.24",
    "transformers.PreTrainedModel._no_split_modules": "models/actor_critic.py, trainer/fsdp_sharding.py, "
    "trainer/zero_sharding.py: the blocks that are cut one by one; transformers 5.19 to 5.24",
    "transformers.PreTrainedModel._hf_peft_config_loaded": "trainer/networks.py: refuses an adapter that cannot be "
    "switched off; transformers 5.19 to 5.24",
    "torch.nn.Module._parameters": "models/adapters.py, trainer/first_rank_weights.py: networks that hold the "
    "same tensors; torch 2.11 to 2.15",
    "torch.nn.Module._buffers": "models/adapters.py, trainer/first_rank_weights.py: networks that hold the "
    "same tensors; torch 2.11 to 2.15",
    "deepspeed.Parameter._hp_mapping": "trainer/distributed.py: gradients under ZeRO-1 and ZeRO-2; deepspeed 0.19",
    "accelerate.utils.DeepSpeedPlugin.select._from_accelerator_state": "trainer/distributed.py: DeepSpeed on CPU "
    "processes; accelerate 1.15",
    "transformers.Trainer.save_model._internal_call": "trainer/turn_ppo_trainer.py, cli/train.py: "
    "saves without a push; 5.19 to 5.24",
    "os._exit": "trainer/interruptions.py: ends a process whose main thread hangs; Python 3.11 to 3.13",
    "threading._register_atexit": "hub/background.py: pushes end before the thread pools do; Python 3.11 to 3.13",
    "threading._start_new_thread": "hub/late_threads.py: hands out threads that were started in time; Python 3.12.0 "
    "and 3.12.1",
    "transformers.Trainer._get_dataloader": "trainer/turn_ppo_trainer.py: loads the rows of one rollout batch; "
    "5.19 to 5.24",
    "transformers.Trainer._clip_grad_norm": "trainer/turn_ppo_trainer.py: each network by its own norm; 5.19 to 5.24",
    "transformers.Trainer._get_grad_norm": "trainer/turn_ppo_trainer.py: judges each step before it is made; 5.19 to "
    "5.24",
    "transformers.Trainer._maybe_log_save_evaluate": "trainer/turn_ppo_trainer.py: what is due after a step; "
    "5.19 to 5.24",
    "transformers.Trainer._init_training_state": "trainer/turn_ppo_trainer.py: intervals of this run; 5.19 to 5.24",
    "transformers.Trainer._run_epoch": "trainer/turn_ppo_trainer.py: no step beyond the last; 5.19 to 5.24",
    "transformers.Trainer._get_output_dir": "trainer/turn_ppo_trainer.py: where checkpoints lie; 5.19 to 5.24",
    "transformers.Trainer._save_checkpoint": "trainer/turn_ppo_trainer.py, trainer/ending.py: complete or absent, "
    "with the pending batch; 5.19 to 5.24",
    "transformers.Trainer._save_optimizer_and_scheduler": "trainer/turn_ppo_trainer.py: part of a checkpoint; 5.19 to "
    "5.24",
    "transformers.Trainer._save_scaler": "trainer/turn_ppo_trainer.py: part of a checkpoint; 5.19 to 5.24",
    "transformers.Trainer._save_rng_state": "trainer/turn_ppo_trainer.py: part of a checkpoint; 5.19 to 5.24",
    "accelerate.Accelerator._optimizers": "trainer/distributed.py: marks a step as skipped; accelerate 1.15",
    "accelerate.optimizer.AcceleratedOptimizer._is_overflow": "trainer/distributed.py: keeps the schedule where a "
    "step is skipped; accelerate 1.15",
    "transformers.Trainer._load_from_checkpoint": "trainer/turn_ppo_trainer.py: reads both networks; 5.19 to 5.24",
    "transformers.Trainer._load_optimizer_and_scheduler": "trainer/turn_ppo_trainer.py: refuses the state of another "
    "launch; 5.19 to 5.24",
    "transformers.Trainer._load_best_model": "trainer/turn_ppo_trainer.py: reads both networks; 5.19 to 5.24",
    "transformers.Trainer._push_from_checkpoint": "trainer/turn_ppo_trainer.py: pushes from a copy; 5.19 to 5.24",
    "transformers.Trainer._finish_current_push": "trainer/turn_ppo_trainer.py: waits for pushes; 5.19 to 5.24",
    "trl.trainer.base_trainer._BaseTrainer._tag_names": "trainer/turn_ppo_trainer.py: tags of the card; trl 1.16",
    "transformers.TrainingArguments._VALID_DICT_FIELDS": "trainer/turn_ppo_config.py: fields that take JSON; "
    "transformers 5.19 to 5.24",
    "evaluate.Metric._info": "evaluation/agent_episodes/agent_episodes.py: a metric's own hook; evaluate 0.4.6",
    "evaluate.Metric._compute": "evaluation/agent_episodes/agent_episodes.py: a metric's own hook; evaluate 0.4.6",
}
