"""Which models the sampler of the training weights is exact for is measured, and the others are refused."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from turnppo_hf import TurnPPOAgent
from turnppo_hf.generation import sampler_check
from turnppo_hf.generation.sampler_check import check_sampler, check_training_mode, sampler_gaps
from turnppo_hf.generation.transformers_generator import TransformersGenerator, rounds_as
from turnppo_hf.models.actor_critic import disable_dropout

SIZES = {
    **{"vocab_size": 107, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
LOCAL = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}
LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    **{"factor": 8.0, "original_max_position_embeddings": 64},
}


def make(kind, dtype=torch.float32, attention=None, **changes):
    """A random model whose weights are wide, so that a wrong place or mask is seen."""
    torch.manual_seed(0)
    sizes = {} if kind == "gpt_neo" else SIZES
    settings = {**sizes, "vocab_size": 107, "hidden_size": 32, **changes}
    config = AutoConfig.for_model(kind, **{name: value for name, value in settings.items() if value is not None})
    model = AutoModelForCausalLM.from_config(config, **({"attn_implementation": attention} if attention else {}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)


EXACT = [
    *(("llama", {}), ("gpt2", {}), ("opt", {}), ("gpt_neox", {}), ("falcon", {}), ("mpt", {}), ("qwen3_moe", {})),
    ("qwen3_moe", {"output_router_logits": True}),
    ("gpt_neo", {**LOCAL, "attention_types": [[["global"], 2]]}),
    ("mistral", {"sliding_window": 8}),
    ("mistral", {"sliding_window": 64}),
    ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}),
    ("gemma2", {"sliding_window": 16, "head_dim": 8, "attention": "eager"}),
    ("gemma3_text", {"sliding_window": 400, "head_dim": 8}),
    ("modernbert-decoder", {"local_attention": 16}),
    ("llama4_text", {"attention_chunk_size": 512, "num_local_experts": 2}),
]
INEXACT = [
    ("gpt_neo", {**LOCAL, "window_size": 8, "max_position_embeddings": 256}),
    ("gpt_neo", {**LOCAL}),  # its window is 256, as TinyStories has it
    ("gpt_neo", {**LOCAL, "window_size": 400, "max_position_embeddings": 1024}),
    ("rwkv", {}),
    ("recurrent_gemma", {"head_dim": 8}),
    ("llama4_text", {"attention_chunk_size": 32, "num_local_experts": 2}),
    ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    ("bert", {}),  # it reads backwards, too
]
FOREIGN = [
    *(("bloom", {}), ("falcon", {"alibi": True}), ("mamba", {}), ("openai-gpt", {})),
    ("jamba", {"mamba_d_state": 4, "num_experts": 2, "use_mamba_kernels": False}),
    ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, **dict.fromkeys(SIZES), "vocab_size": 107}),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "changes"), EXACT)
def test_exact_models_pass(kind, changes, dtype):
    gaps = check_sampler(make(kind, dtype, **changes))
    assert gaps.worst < (1e-5 if dtype == torch.float32 else 0.1) and gaps.longest >= 319


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "changes"), INEXACT)
def test_inexact_models_are_refused(kind, changes, dtype):
    if kind == "recurrent_gemma" and dtype == torch.bfloat16:
        pytest.skip("its gap is within what bfloat16 explains")
    message = rf"{kind} does not sample exactly.*up to \d+ tokens.* nats apart.*another policy.*use_vllm"
    with pytest.raises(ValueError, match=message):
        check_sampler(make(kind, dtype, **changes))


@pytest.mark.parametrize(("kind", "changes"), FOREIGN)
def test_models_that_do_not_run_in_the_sampler_are_refused_with_a_sentence(kind, changes):
    with pytest.raises(ValueError, match=rf"{kind} does not run in the sampler.*Error.*Nothing could be .*use_vllm"):
        check_sampler(make(kind, **changes))


def test_a_window_is_found_by_prompts_that_are_longer_and_not_by_shorter_ones():
    model = make("gpt_neo", **LOCAL, window_size=400, max_position_embeddings=1024)
    assert sampler_gaps(model, at_most=256).worst < 1e-5  # control: within the window nothing is seen
    assert sampler_gaps(model).worst > 0.1


@pytest.mark.parametrize(
    ("kind", "changes", "longest", "window"),
    [
        ("mistral", {"sliding_window": 64, "max_position_embeddings": 40}, 40, 64),
        ("mistral", {"sliding_window": 64, "max_position_embeddings": 400}, 319, None),
        ("mistral", {"sliding_window": 4096}, 512, 4096),
        ("gpt2", {"n_positions": 24, "max_position_embeddings": None}, 24, None),
        ("gpt2", {"n_positions": 8, "max_position_embeddings": None}, 8, None),
        ("llama", {"max_position_embeddings": 2}, 2, None),
    ],
)
def test_prompts_are_as_long_as_fit_and_a_window_out_of_reach_is_logged(kind, changes, longest, window, caplog):
    with caplog.at_level(logging.INFO, logger="turnppo_hf"):
        gaps = check_sampler(make(kind, **changes))
    assert gaps.longest <= longest < gaps.longest + 12 and gaps.window == window
    assert (f"the model's window of {window} was not reached" in caplog.text) is (window is not None)


def test_less_is_measured_where_memory_or_processor_allows_no_more(monkeypatch):
    model = make("mistral", sliding_window=1500, max_position_embeddings=4096)
    whole = TransformersGenerator._forward
    lengths = []

    def forward(self, picked, ids, positions, is_padding):
        lengths.append(int(positions.max()) + 1)
        if lengths[-1] > 1200:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, picked, ids, positions, is_padding)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersGenerator, "_forward", forward)
        gaps = check_sampler(model)
        assert max(lengths) > 1500 and 500 < gaps.longest <= 1200 and gaps.window == 1500
    monkeypatch.setattr(sampler_check, "_PROCESSOR_WORK", 400 * sum(item.numel() for item in model.parameters()))
    assert 300 < check_sampler(model).longest <= 400


@pytest.mark.parametrize("kind", ["gpt2", "opt", "phi3", "gpt_neox", "mixtral"])
def test_dropout_is_seen_and_is_off_where_the_trainer_switches_it_off(kind):
    rates = {"gpt2": "attn_pdrop", "opt": "dropout", "phi3": "resid_pdrop", "gpt_neox": "hidden_dropout"}
    model = make(kind, **{rates.get(kind, "attention_dropout"): 0.3})
    with pytest.raises(ValueError, match=r"gives log-probs in training mode that are up to .*noise"):
        check_training_mode(model)
    disable_dropout(model)
    check_training_mode(model)


@pytest.mark.parametrize(
    ("kind", "names", "changes", "dtype"),
    [
        ("phimoe", "router_jitter_noise", {"num_local_experts": 4}, torch.float32),
        ("mixtral", "router_jitter_noise", {"router_jitter_noise": 0.3}, torch.float32),
        ("mixtral", "router_jitter_noise", {"router_jitter_noise": 0.3}, torch.bfloat16),
        (
            "falcon",
            "attention_dropout and hidden_dropout",
            {"hidden_dropout": 0.3, "attention_dropout": 0.3},
            torch.float32,
        ),
    ],
)
def test_noise_of_training_mode_that_is_no_dropout_layer_is_refused_until_it_is_off(kind, names, changes, dtype):
    off = dict.fromkeys(names.split(" and "), 0.0)
    check_training_mode(make(kind, dtype, **{**changes, **off}))
    model = make(kind, dtype, **changes)
    disable_dropout(model)
    with pytest.raises(ValueError, match=rf"{kind} gives log-probs in training mode.*Set {names} to 0"):
        check_training_mode(model)


def test_measuring_changes_nothing(tiny_actor):
    tiny_actor.train()
    state, weights = torch.get_rng_state(), [item.clone() for item in tiny_actor.parameters()]
    noisy = make("mixtral", router_jitter_noise=0.3, num_local_experts=4)
    check_sampler(tiny_actor)
    check_training_mode(tiny_actor)
    torch.set_rng_state(state)
    with pytest.raises(ValueError, match="training mode"):
        check_training_mode(noisy)
    assert torch.equal(state, torch.get_rng_state()) and tiny_actor.training
    assert all(torch.equal(*pair) for pair in zip(weights, tiny_actor.parameters(), strict=True))
    assert all(item.grad is None for item in tiny_actor.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt_neo", LOCAL, "gpt_neo does not sample exactly"),
        ("bloom", {}, "bloom does not run in the sampler"),
        ("phimoe", {"num_local_experts": 4}, "phimoe gives log-probs in training mode"),
    ],
)
@pytest.mark.parametrize("begins_with", ["train", "evaluate"])
def test_trainer_refuses_before_anything_is_played(make_trainer, kind, changes, message, begins_with):
    from datasets import Dataset

    trainer = make_trainer(
        model=make(kind, **changes), algorithm="grpo", num_generations=4, eval_dataset=Dataset.from_dict({"seed": [1]})
    )
    started = []
    trainer.collector._worker.start = started.append
    with pytest.raises(ValueError, match=message):
        getattr(trainer, begins_with)()
    assert not started and trainer.state.global_step == 0


def test_noise_that_is_wanted_is_not_refused(make_trainer, tiny_tokenizer):
    model = make("gpt2", attn_pdrop=0.3, max_position_embeddings=None, n_positions=512)
    make_trainer(model=model, disable_dropout=False, max_steps=1, algorithm="grpo", num_generations=4).train()


def test_measured_once_and_not_for_who_samples_elsewhere(make_trainer, monkeypatch):
    calls = []
    monkeypatch.setattr("turnppo_hf.trainer.collector.check_sampler", lambda *_, **__: calls.append("sampler"))
    monkeypatch.setattr("turnppo_hf.trainer.collector.check_training_mode", lambda *_, **__: calls.append("mode"))
    trainer = make_trainer()
    trainer.train()
    assert calls == ["sampler", "mode"]
    trainer.collector._checked, trainer.collector.rollout_func = False, lambda prompts: {}
    trainer.collector._check()
    assert calls == ["sampler", "mode", "mode"] and not trainer.collector.is_exact


def test_agent_refuses_what_it_would_sample_wrongly(tiny_tokenizer):
    agent = TurnPPOAgent(make("gpt_neo", **LOCAL), tiny_tokenizer)
    for _ in range(2):
        with pytest.raises(ValueError, match="gpt_neo does not sample exactly"):
            agent.act("P#")


def test_arithmetic_that_rounds_more_is_not_held_to_float32(tiny_actor):
    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    assert rounds_as(tiny_actor, sampler_check.nullcontext) == torch.float32
    assert rounds_as(tiny_actor, autocast) == torch.bfloat16
    assert check_sampler(make("llama"), autocast=autocast).worst > 1e-4  # in float32 it would be refused
    tiny_actor.is_quantized = True
    assert rounds_as(tiny_actor, sampler_check.nullcontext) == torch.bfloat16


def test_tokens_that_the_model_rules_out_are_no_noise(tiny_actor):
    plain = tiny_actor.lm_head.forward
    tiny_actor.lm_head.forward = lambda hidden: plain(hidden).index_fill(-1, torch.tensor([3]), -torch.inf)
    check_training_mode(tiny_actor)
