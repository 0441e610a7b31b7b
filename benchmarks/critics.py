"""Which causal language models of transformers a critic stands on: with transformers alone, and with this package.

`python benchmarks/critics.py [--json] [--types NAME ...]`. For every model type a tiny random actor is built; on it a
critic, which makes a forward and a backward, is saved, loaded by AutoModelForTokenClassification and gives the same
values; then a critic of the actor's first block, which does the same and reads what the actor's first block reads.
`before` counts the types that transformers has a token classifier for. Nothing is measured in seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import fields
from typing import Any

import torch
from harness import parser_for, run
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging

from turnppo_hf.models.actor_critic import critic_from_actor

IDS = torch.arange(3, 15)[None]
LARGEST = 2e7  # parameters; above, a type has sizes that are set by none of these names
SMOKE = ("llama", "olmo2", "opt")
WIDTH = ("hidden_size", "d_model", "n_embd", "embedding_dim", "dim")
INNER = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim")
DEPTH = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
SIZES: dict[str, Any] = {
    **dict.fromkeys(WIDTH, 32),
    **dict.fromkeys(INNER, 64),
    **dict.fromkeys((*DEPTH, "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys((*HEADS, "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "word_embed_proj_dim"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "rotary_dim", "laurel_rank"), 4),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **{"num_key_value_heads": 2, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size_per_layer_input": 8},
}
_KEYS = {"num_key_value_heads": 4}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
_LATENT = ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "glm4_moe_lite")
_FULL = {"layer_types": ["full_attention"] * 2}
# what single types need beside
OTHER: dict[str, dict[str, Any]] = {
    **dict.fromkeys((*_LATENT, "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"), _KEYS),
    **dict.fromkeys(("bamba", "granitemoehybrid"), _MAMBA),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _FULL),
    "dots1": {"n_shared_experts": 1},
    "gemma3n_text": {
        **{"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8},
    "olmo_hybrid": {"layer_types": ["full_attention", "linear_attention"]},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(kind: type, other: dict[str, Any]) -> Any:
    """Make a small configuration; parts for images and sound are small, too."""
    named = {item.name for item in fields(kind)} - set(getattr(kind, "attribute_map", None) or ())
    sizes: dict[str, Any] = {name: size for name, size in SIZES.items() if name in named}
    for name, part in (getattr(kind, "sub_configs", None) or {}).items():
        if getattr(part, "model_type", ""):
            try:
                sizes[name] = tiny_config(part, {}).to_dict()
            except Exception:  # sizes that do not fit together: it keeps its own
                continue
    return kind(**{**sizes, **other})


def tiny_actor(name: str) -> PreTrainedModel:
    """Build a random actor of a model type."""
    config = tiny_config(CONFIG_MAPPING[name], OTHER.get(name, {}))
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:.2g} parameters with every size set that is known here")
    torch.manual_seed(0)
    actor = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        actor(input_ids=IDS, use_cache=False)
    return actor


def check_critic(actor: PreTrainedModel, layers: int | None) -> None:
    """Build, differentiate, save and load a critic."""
    critic = critic_from_actor(actor, layers=layers).eval()
    for name, weight in critic.named_parameters():
        if name.startswith(("score.", "classifier.")):
            torch.nn.init.normal_(weight)
    output = critic(input_ids=IDS, use_cache=False, output_hidden_states=layers is not None)
    assert output.logits.shape == (1, IDS.shape[1], 1)
    output.logits.sum().backward()
    with tempfile.TemporaryDirectory() as folder:
        critic.save_pretrained(folder)
        loaded, found = AutoModelForTokenClassification.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"], "weights are missing or left over"
    assert torch.equal(loaded.eval()(input_ids=IDS, use_cache=False).logits, output.logits), "it gives other values"
    if layers is not None:
        states = actor(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
        assert len(output.hidden_states) == layers + 1, "it has another depth"
        assert torch.allclose(output.hidden_states[0], states[0], atol=1e-6), "it reads something else"


def outcome(name: str) -> dict[str, str]:
    """Return `works`, or why not, for a type's critic and its critic of one block."""
    try:
        actor = tiny_actor(name)
    except Exception as error:
        return {"not built": reason(error)}
    found = {}
    for what, layers in (("critic", None), ("first block", 1)):
        try:
            check_critic(actor, layers)
            found[what] = "works"
        except Exception as error:
            found[what] = reason(error)
    return found


def reason(error: Exception) -> str:
    """Return an error's first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Walk over the types."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = options.types or (SMOKE if options.smoke else tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    types = {name: outcome(name) for name in names}
    counts = Counter(what for found in types.values() for what, text in found.items() if text == "works")
    return {
        "types": len(names),
        "before": sum(name in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES for name in names),
        "after": counts["critic"],
        "first_block": counts["first block"],
        "not_built": sum("not built" in found for found in types.values()),
        "others": {name: found for name, found in types.items() if set(found.values()) != {"works"}},
    }


if __name__ == "__main__":
    parser = parser_for(__doc__)
    parser.add_argument("--types", nargs="+", help="model types (default: all)")
    run("critics", parser, measure)
