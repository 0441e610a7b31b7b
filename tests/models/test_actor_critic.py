"""One forward of either network against plain forwards, and the critic's copy of the actor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BartConfig

from tests.helpers.tiny import (
    VOCABULARY,
    draw_trajectories,
    make_trajectory,
    make_turn,
    state_values,
    tiny_actor,
    tiny_actor_critic,
    turn_logprobs,
)
from turnppo_hf.models import actor_critic
from turnppo_hf.models.actor_critic import ActorCritic, critic_from_actor, disable_dropout, sampled_logprobs
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import decision_values

ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    # both caps low enough to bend the logits of weights this wide
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "head_dim": None},
}


def architecture(name):
    return tiny_actor(name, **{key: value for key, value in ARCHITECTURES[name].items() if value is not None})


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_equal_those_of_full_logits(name, temperature):
    actor = architecture(name).eval()
    batch = stack(draw_trajectories(1, count=3))
    with torch.no_grad():
        logprobs, entropies = sampled_logprobs(actor, batch, temperature)
        logits = actor(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits / temperature
    distribution = torch.log_softmax(logits, -1)[:, :-1]
    sampled = batch.completion_mask[:, 1:].bool()
    expected = distribution.gather(-1, batch.input_ids[:, 1:, None])[..., 0] * sampled
    torch.testing.assert_close(logprobs[:, 1:], expected, rtol=1e-5, atol=1e-5)
    entropy = torch.distributions.Categorical(logits=logits[:, :-1]).entropy() * sampled
    torch.testing.assert_close(entropies[:, 1:], entropy, rtol=1e-5, atol=1e-5)
    assert not logprobs[:, 0].any()
    assert logprobs.dtype == entropies.dtype == torch.float32


def test_sampled_logprobs_of_soft_capped_logits_differ_from_the_bare_head():
    # control: what calling the head by hand would leave out
    actor = architecture("gemma2").eval()
    batch = stack(draw_trajectories(1, count=3))
    with torch.no_grad():
        logprobs, _ = sampled_logprobs(actor, batch)
        hidden = actor.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        bare = torch.log_softmax(actor.lm_head(hidden), -1)[:, :-1].gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    sampled = batch.completion_mask[:, 1:].bool()
    assert (logprobs[:, 1:] - bare)[sampled].abs().max() > 0.1


def test_sampled_logprobs_run_the_head_at_sampled_tokens_only_and_leave_no_hook():
    actor = tiny_actor()
    batch = stack(draw_trajectories(1))
    seen = []
    handle = actor.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    sampled_logprobs(actor, batch)
    assert seen == [(batch.num_tokens, VOCABULARY)]
    actor(input_ids=batch.input_ids)
    assert seen[-1] == (*batch.input_ids.shape, VOCABULARY)
    handle.remove()
    assert not actor.lm_head._forward_pre_hooks


@pytest.mark.parametrize("name", [*ARCHITECTURES, "qwen3_moe"])
def test_scoring_in_chunks_gives_the_same_and_never_holds_more_logits_than_a_chunk(name, monkeypatch):
    actor = (architecture(name) if name in ARCHITECTURES else tiny_actor(name)).eval()
    batch = stack(draw_trajectories(1, count=6))
    seen, results, plain = [], [], torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda logits, dim: seen.append(logits.numel()) or plain(logits, dim))
    for limit in (2**25, 5 * VOCABULARY):
        monkeypatch.setattr(actor_critic, "_MAX_LOGITS", limit)
        actor.zero_grad()
        logprobs, entropies = sampled_logprobs(actor, batch, 0.7, entropy_gradient=True)
        (logprobs.sum() + entropies.square().sum()).backward()
        gradients = {name: item.grad.clone() for name, item in actor.named_parameters() if item.grad is not None}
        results.append({"logprobs": logprobs.detach(), "entropies": entropies.detach(), **gradients})
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    # soft-capping is the model's own forward's, so these logits are made at once
    largest = batch.num_tokens if name == "gemma2" else 5
    assert seen[0] == batch.num_tokens * VOCABULARY > 5 * VOCABULARY and max(seen[1:]) == largest * VOCABULARY
    assert (
        "forward" not in vars(actor.get_output_embeddings()) and not actor.get_output_embeddings()._forward_pre_hooks
    )


def test_scoring_in_chunks_notices_a_model_that_changes_its_logits_in_a_way_of_its_own(monkeypatch):
    class Doubling(type(tiny_actor())):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            output.logits = 2 * output.logits
            return output

    actor, batch = tiny_actor(), stack(draw_trajectories(1, count=6))
    actor.__class__ = Doubling
    expected, _ = sampled_logprobs(actor, batch)
    monkeypatch.setattr(actor_critic, "_MAX_LOGITS", 5 * VOCABULARY)
    torch.testing.assert_close(sampled_logprobs(actor, batch)[0], expected)


def test_rows_of_other_lengths_are_read_apart_and_give_the_same_gradients(monkeypatch):
    model, batch = tiny_actor_critic("qwen3").eval(), stack(draw_trajectories(3, count=6))
    results, shapes = [], []
    model.critic.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True
    )
    for saved in (10**6, 5):
        monkeypatch.setattr("turnppo_hf.ppo.batch._MIN_SAVED_TOKENS", saved)
        model.zero_grad()
        values, (logprobs, _) = model("critic", batch), model("actor", batch)
        (batch.at_turns(values).square().sum() + logprobs.square().sum()).backward()
        gradients = {name: item.grad.clone() for name, item in model.named_parameters()}
        results.append({"values": batch.at_turns(values.detach()), "logprobs": logprobs.detach(), **gradients})
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
    assert shapes[0] == batch.input_ids.shape
    assert len(shapes) > 2 and sum(shape.numel() for shape in shapes[1:]) <= shapes[0].numel() - 5


def test_sampled_logprobs_of_a_batch_equal_each_turn_alone():
    actor = tiny_actor("qwen3")
    trajectories = draw_trajectories(7)
    batch = stack(trajectories)
    packed = batch.pack_tokens(sampled_logprobs(actor, batch)[0])
    for row, trajectory in zip(packed, trajectories, strict=True):
        expected = torch.cat([turn_logprobs(actor, turn) for turn in trajectory.turns])
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_invariant_21_sampled_logprobs_without_a_sampled_token_are_a_differentiable_zero():
    actor = tiny_actor()
    batch = stack(draw_trajectories(1))
    for name in ("completion_mask", "turn_ids"):
        getattr(batch, name).fill_(0 if name == "completion_mask" else -1)
    logprobs, entropies = sampled_logprobs(actor, batch)
    assert not logprobs.any() and not entropies.any()
    (logprobs.sum() + entropies.sum()).backward()
    assert all(p.grad is None or not p.grad.any() for p in actor.parameters())


def test_actor_gradient_of_a_token_reaches_what_was_read_before_it_only():
    # P P C C E C: the log-prob of the first completion does not depend on itself's embedding, nor on later tokens
    model = tiny_actor_critic()
    batch = stack([make_trajectory([make_turn((1, 2), (3, 4)), make_turn((1, 2, 3, 4, 5), (6,))])])
    captured = _capture_embeddings(model.actor)
    logprobs, _ = model("actor", batch)
    logprobs[0, 2].backward()
    reached = captured[0].grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [True, True, False, False, False, False]


def _capture_embeddings(network):
    """Hold the input embeddings of the next forward, with their gradient."""
    captured = []

    def hold(module, inputs, output):
        output.retain_grad()
        captured.append(output)

    network.get_input_embeddings().register_forward_hook(hold)
    return captured


STATE, RESPONSE, REST = (5, 9, 11, 20), (31, 32, 33), (40, 41)


def _values_of(model, state=STATE, response=RESPONSE, rest=REST):
    turns = [make_turn(state, response), make_turn(state + response + rest, (50,))]
    batch = stack([make_trajectory(turns)])
    with torch.no_grad():
        values = model("critic", batch)
    return batch.at_turns(values)[0], values[0]


def test_invariant_14_the_value_of_a_state_depends_on_its_last_token_and_on_nothing_after_it():
    model = tiny_actor_critic().eval()
    turn_values, values = _values_of(model)
    changed = {
        "first response token": _values_of(model, response=(7, 32, 33)),
        "last response token": _values_of(model, response=(31, 32, 7)),
        "observation": _values_of(model, rest=(7, 7)),
    }
    for what, (other, tokens) in changed.items():
        assert torch.equal(other[0], turn_values[0]), what
        assert not torch.equal(other[1], turn_values[1]), what
        # control: read after the action or at the end of the row, V would have moved
        end = len(STATE + RESPONSE) - 1
        assert what == "observation" or not torch.equal(tokens[end], values[end])
        assert not torch.equal(tokens[-1], values[-1])
    other, _ = _values_of(model, state=(5, 9, 11, 7))
    assert not torch.equal(other[0], turn_values[0])


def test_invariant_15_states_that_share_the_first_token_differ_in_value():
    model = tiny_actor_critic().eval()
    mine, my_tokens = _values_of(model, state=(5, 9, 11, 20))
    other, other_tokens = _values_of(model, state=(5, 8, 11, 20))
    assert (mine[0] - other[0]).abs() > 1e-3
    assert torch.equal(my_tokens[0], other_tokens[0])  # control: at place 0 all states look the same


@pytest.mark.parametrize("algorithm", ["turn_ppo", "token_ppo"])
def test_decision_values_of_a_batch_equal_each_state_alone(algorithm):
    model = tiny_actor_critic("qwen2").eval()
    trajectories = draw_trajectories(3, rewritten=True)
    batch = stack(trajectories)
    with torch.no_grad():
        values = decision_values(batch, model("critic", batch), ALGORITHMS[algorithm].decision)
        for row, trajectory in zip(values, trajectories, strict=True):
            parts = []
            for turn in trajectory.turns:
                states = turn.prompt_ids + turn.completion_ids[: -1 if algorithm == "token_ppo" else 0]
                parts.append(state_values(model.critic, states, len(turn.prompt_ids) - 1))
            expected = torch.cat(parts)
            torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_invariant_16_the_value_at_turns_gives_no_gradient_to_tokens_after_the_last_state():
    model = tiny_actor_critic()
    trajectories = draw_trajectories(3, count=3, bootstrap="extends")
    batch = stack(trajectories)
    captured = _capture_embeddings(model.critic)
    batch.at_turns(model("critic", batch)).sum().backward()
    reached = captured[0].grad.abs().sum(-1) > 0
    last_state = torch.zeros(len(batch.input_ids), dtype=torch.long) - 1
    real = batch.turn_mask.bool()
    last_state.scatter_reduce_(0, batch.turn_rows[real], batch.turn_positions[real], "amax")
    places = torch.arange(batch.input_ids.shape[1])
    assert torch.equal(reached, places <= last_state[:, None])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_critic_from_actor_copies_the_backbone_and_starts_at_zero(name):
    actor = architecture(name)
    critic = critic_from_actor(actor)
    copied, original = critic.base_model.state_dict(), actor.base_model.state_dict()
    assert copied.keys() == original.keys()
    for key, tensor in copied.items():
        assert torch.equal(tensor, original[key])
        assert tensor.data_ptr() != original[key].data_ptr()
    batch = stack(draw_trajectories(1))
    assert not ActorCritic(actor, critic)("critic", batch).any()
    assert critic.config.num_labels == 1
    assert actor.config.num_labels != 1  # the actor's config is its own
    assert critic.config._attn_implementation == actor.config._attn_implementation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_critic_from_actor_keeps_the_dtype_and_gives_float32_values(dtype):
    actor = tiny_actor().to(dtype)
    critic = critic_from_actor(actor)
    assert {parameter.dtype for parameter in critic.parameters()} == {dtype}
    batch = stack(draw_trajectories(1))
    model = ActorCritic(actor, critic)
    assert model("critic", batch).dtype == torch.float32
    assert model("actor", batch)[0].dtype == torch.float32


def test_critic_from_actor_has_no_dropout_left_and_the_actor_keeps_its_own():
    actor = tiny_actor(attention_dropout=0.5, classifier_dropout=0.5)
    critic = critic_from_actor(actor).train()
    nn.init.normal_(critic.score.weight)
    batch = stack(draw_trajectories(1))
    model = ActorCritic(actor.train(), critic)
    with torch.no_grad():
        assert torch.equal(model("critic", batch), model("critic", batch))
        # control: attention's rate is a plain number, which no nn.Dropout holds
        assert not torch.equal(model("actor", batch)[0], model("actor", batch)[0])
        disable_dropout(actor)
        assert torch.equal(model("actor", batch)[0], model("actor", batch)[0])


def test_critic_from_actor_stands_on_the_decoder_of_an_encoder_decoder():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 3, "vocab_size": VOCABULARY}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "encoder_ffn_dim": 16}
    actor = AutoModelForCausalLM.from_config(BartConfig(**sizes, **heads, is_decoder=True))
    for layers, blocks in ((None, 3), (2, 2)):
        critic = critic_from_actor(actor, layers=layers)
        assert len(critic.base_model.decoder.layers) == blocks
        assert not ActorCritic(actor, critic)("critic", stack(draw_trajectories(1))).any()


@pytest.mark.parametrize("mode", ["actor", "critic"])
def test_forward_with_activation_checkpointing_has_the_same_gradient(mode):
    batch = stack(draw_trajectories(1))

    def gradients(checkpointing):
        model = tiny_actor_critic()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        output = model.train()(mode, batch)
        (output[0] if mode == "actor" else output).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for mine, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("mode", ["actor", "critic"])
def test_forward_under_bf16_autocast_is_close_to_float32(mode):
    model = tiny_actor_critic().eval()
    batch = stack(draw_trajectories(1))
    with torch.no_grad():
        exact = model(mode, batch)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(mode, batch)
    for mine, expected in zip(
        rounded if mode == "actor" else [rounded], exact if mode == "actor" else [exact], strict=True
    ):
        assert mine.dtype == torch.float32
        assert 0 < (mine - expected).abs().max() < 0.3  # bf16 keeps 8 bits; the logits reach 10


@pytest.mark.parametrize("kind", ["separate", "shared", "lora"])
def test_values_are_not_rounded_under_bf16_autocast(kind):
    actor = tiny_actor()
    if kind == "lora":
        actor = get_peft_model(actor, LoraConfig(target_modules="all-linear"))
    critic = critic_from_actor(actor, kind)
    head = critic.score
    head.bias = torch.nn.Parameter(torch.tensor([100.3]))
    model = ActorCritic(actor, critic, trunk_gradient=0.0 if kind == "shared" else None).eval()
    batch = stack(draw_trajectories(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        values = model("critic", batch)
    assert set(values[batch.attention_mask.bool()].tolist()) == {torch.tensor(100.3).item()}
    assert "forward" not in vars(head)


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_tokens_that_the_model_rules_out_have_no_part_in_the_entropy(entropy_gradient):
    class Without(type(tiny_actor())):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            ruled_out = torch.arange(output.logits.shape[-1]) == VOCABULARY - 1
            output.logits = output.logits.masked_fill(ruled_out, -torch.inf)
            return output

    actor = tiny_actor()
    actor.__class__ = Without
    batch = stack(draw_trajectories(1))
    batch = replace(batch, input_ids=batch.input_ids.clamp(max=VOCABULARY - 2))
    _, entropies = sampled_logprobs(actor, batch, entropy_gradient=entropy_gradient)
    logits = actor(input_ids=batch.input_ids).logits[..., : VOCABULARY - 1]
    expected = torch.distributions.Categorical(logits=logits).entropy().roll(1, dims=1)
    sampled = batch.completion_mask.bool()
    torch.testing.assert_close(entropies[sampled], expected[sampled])
    if entropy_gradient:
        entropies.sum().backward()
        assert all(item.grad.isfinite().all() for item in actor.parameters() if item.grad is not None)
