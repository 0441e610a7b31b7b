"""A model's configuration in, that of its first blocks out: what a shallow critic is, and is saved as."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

# decoders that are taken out of an encoder-decoder count their blocks by themselves
_DEPTHS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
# lists with an entry per block that do not have `layer` or `block` in their name
_PER_BLOCK = ("activation_sparsity_pattern", "full_attn_idxs", "indexer_types", "intermediate_size")


def depth_of(config: PreTrainedConfig) -> int:
    """Return how many blocks a causal language model has."""
    text = config.get_text_config(decoder=True)
    return int(next((getattr(text, name) for name in _DEPTHS if getattr(text, name, None)), 0))


def first_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """
    Return the configuration of a model's first blocks; what it lists per block is cut, too.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Of the whole model.
        layers (`int`): How many blocks stay.

    Raises:
        `ValueError`: the model has fewer blocks, or its configuration cannot describe the first ones alone.
    """
    depth = depth_of(config)
    if not 1 <= layers <= depth:
        raise ValueError(
            f"`critic_layers` must be between 1 and the {depth} blocks that the actor has, got {layers}: the critic "
            "is made of the actor's first blocks. Leave it out for all of them."
        )
    cut = _cut(config, layers)
    if not _is_read_back(cut):
        others = [number for number in range(1, depth + 1) if _is_read_back(_cut(config, number))]
        raise ValueError(
            f"`critic_layers` is {layers}, but configurations of {config.model_type!r} change when they are read with "
            f"these blocks alone ({_kinds(cut)}), so the critic could not be loaded again. Set it to one of {others}."
        )
    return cut


def _cut(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    cut = copy.deepcopy(config)
    text: Any = cut.get_text_config(decoder=True)
    depth = depth_of(config)
    for name, value in list(vars(text).items()):
        of_blocks = name in _PER_BLOCK or "layer" in name or "block" in name
        if of_blocks and isinstance(value, (list, tuple)) and len(value) == depth:
            setattr(text, name, value[:layers])
    if getattr(text, "num_kv_shared_layers", None):  # the last blocks, which read keys and values of earlier ones
        text.num_kv_shared_layers = max(text.num_kv_shared_layers - (depth - layers), 0)
    if hasattr(text, "attention_types"):  # GPT-Neo derives its list from this one
        text.attention_types = [[[kind], 1] for kind in text.attention_layers]
    differing = text.to_dict().get("per_layer_config")  # what single blocks have of their own, by their number
    setattr(text, next(name for name in _DEPTHS if getattr(text, name, None)), layers)
    if differing:
        text.per_layer_config = {key: value for key, value in differing.items() if int(key) < layers}
    return cut


def _is_read_back(config: PreTrainedConfig) -> bool:
    """Whether the configuration that is saved is the one that is read; some force the kind of the last block."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn of what is forced
    try:
        again = type(config).from_dict(config.to_dict())
    except Exception:  # each class has checks of its own
        return False
    finally:
        logging.set_verbosity(verbosity)
    return _kinds(again) == _kinds(config)


def _kinds(config: PreTrainedConfig) -> Any:
    return getattr(config.get_text_config(decoder=True), "layer_types", None)
