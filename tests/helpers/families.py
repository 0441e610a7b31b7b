"""Tiny random models of families for which transformers has no token classifier."""

from __future__ import annotations

from tests.helpers.tiny import tiny_actor

_KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}
# what a family has beside the sizes of `tiny_actor`
FAMILIES = {
    "gemma3_text": {**_KINDS, "query_pre_attn_scalar": 8},
    # per-layer inputs, wider heads in every other layer, and a last layer that reads another one's keys
    "gemma4_text": {
        **_KINDS,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 256,
        "num_kv_shared_layers": 1,
    },
    "olmo2": {},
    "olmo3": _KINDS,
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5},
    "cohere2": {**_KINDS, "logit_scale": 0.5},
    "ernie4_5": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},  # narrower where the head stands
    "gptj": {"rotary_dim": 4},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "hunyuan_v1_dense": {},
    "nanochat": {},
}


def family_actor(name, **overrides):
    """A model of four layers."""
    return tiny_actor(name, **{"num_hidden_layers": 4, **FAMILIES[name], **overrides})
