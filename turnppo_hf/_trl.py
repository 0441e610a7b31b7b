"""The only file that touches private or one-level-down names of TRL; tried with trl 1.16."""

try:
    from trl.trainer.base_config import _BaseConfig as BaseConfig
    from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer
    from trl.trainer.utils import (
        RepeatSampler,
        create_model_from_path,
        disable_dropout_in_model,
        get_config_model_id,
        identity,
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
    "create_model_from_path",
    "disable_dropout_in_model",
    "get_config_model_id",
    "identity",
    "print_prompt_completions_sample",
]
