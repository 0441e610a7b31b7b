"""The only file that touches private or one-level-down names of TRL; tried with trl 1.16."""

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
