"""Rows as one without padding: the numbers of padded rows, or padded rows; and attention is left as it was."""

from __future__ import annotations

import contextlib
import json
import random
import threading

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.helpers.launch import run_ranks
from tests.helpers.steps import ALGORITHMS, difference, gradients_of
from tests.helpers.tiny import config_for, draw_trajectory, make_trajectory, make_turn, tiny_actor
from turnppo_hf.models import packed_rows
from turnppo_hf.models.actor_critic import ActorCritic, critic_from_actor, disable_dropout, positions_of
from turnppo_hf.models.adapters import add_adapter, critic_config
from turnppo_hf.models.packed_rows import PackedRows, runs_packed
from turnppo_hf.models.token_classifier import head_of
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import whiten_credit
from turnppo_hf.trainer.update import Totals, Update

# of random episodes most ratios are clipped, so that entropy gives the actor a gradient
_CONFIG = config_for(entropy_coef=0.01)


@pytest.fixture(autouse=True)
def _pack_wherever_it_saves_a_token(monkeypatch):
    monkeypatch.setattr(packed_rows, "_LEAST_SAVED", 1)
    monkeypatch.setattr(packed_rows, "_LEAST_SHARE", 0.0)


def ragged(rng_seed=0):
    """Twelve episodes of 1 to 8 turns, of two rows and more where history was rewritten."""
    rng = random.Random(rng_seed)
    return stack(
        [
            draw_trajectory(rng, num_turns=1 + number % 8, length=5, rewritten=number % 3 == 0, group=number // 2)
            for number in range(12)
        ]
    )


def rows_of(lengths):
    return stack(
        [make_trajectory([make_turn([number % 60 + 1] * (length - 1), [1])]) for number, length in enumerate(lengths)]
    )


def sdpa_actor(model_type="llama", **overrides):
    actor = tiny_actor(model_type, **overrides)
    actor.set_attn_implementation("sdpa")
    return actor


def networks(model_type="llama", critic="separate", layers=None, dtype=torch.float64, trunk_gradient=0.5, **overrides):
    actor = sdpa_actor(model_type, **overrides).to(dtype)
    value = critic_from_actor(actor, critic, layers).to(dtype)
    disable_dropout(actor)
    nn.init.normal_(head_of(value).weight, std=0.3)
    return ActorCritic(actor, value, trunk_gradient if critic == "shared" else None)


def padded(monkeypatch):
    """Switch packing off."""
    monkeypatch.setattr(packed_rows, "_LEAST_SAVED", 10**9)


def step(model, config, batch, ref_model=None):
    """Gradients and sums of one optimizer step; values, log-probs and entropies of a further forward."""
    model.zero_grad(set_to_none=True)
    update, totals = Update(model, config, ref_model=ref_model), Totals.of(batch)
    if config.uses_critic:
        credit, sums = update.critic_pass(batch, None, totals)
    else:
        credit, sums = update.credit_without_critic(batch), {}
    more = update.actor_pass(batch, whiten_credit(batch, credit, over=config.whiten_advantages), totals).sums
    with torch.no_grad():
        logprobs, entropies = model("actor", batch, 0.7)
        values = model("critic", batch) * batch.attention_mask  # padding has a value in padded rows only
    return gradients_of(model), {**sums, **more}, torch.stack([logprobs, entropies, values])


def gaps(first, second):
    """Distances of the gradients and sums, relative where these are large, and of everything else."""
    pairs = [(float(first[1][name]), float(second[1][name])) for name in first[1] if name != "positions"]
    sums = max(abs(mine - other) / max(abs(other), 1.0) for mine, other in pairs)
    return difference(first[0], second[0]), sums, float((first[2] - second[2]).abs().max())


def assert_packed_equals_padded(model, config, batch, monkeypatch, ref_model=None, tolerance=1e-6):
    packed = step(model, config, batch, ref_model)
    assert packed[1]["positions"] == packed[1]["row_tokens"]  # no padding
    padded(monkeypatch)
    expected = step(model, config, batch, ref_model)
    assert expected[1]["positions"] > 1.2 * expected[1]["row_tokens"]
    assert max(gaps(packed, expected)) < tolerance


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed_step_equals_the_padded_one(algorithm, dtype, monkeypatch):
    config = config_for(algorithm, entropy_coef=0.01)
    tolerance = 1e-6 if dtype == torch.float64 else 5e-6
    assert_packed_equals_padded(networks(dtype=dtype), config, ragged(), monkeypatch, tolerance=tolerance)


@pytest.mark.parametrize(
    ("model_type", "critic", "layers", "trunk_gradient"),
    [
        ("llama", "lora", None, None),
        ("llama", "shared", None, 0.5),
        ("llama", "shared", None, 0.0),
        ("llama", "separate", 1, None),
        ("qwen2", "separate", None, None),
        ("qwen3", "separate", None, None),
        ("gpt_neox", "separate", None, None),
        ("olmo2", "separate", None, None),  # a token classifier of this package
    ],
)
def test_packed_step_of_other_networks_equals_the_padded_one(model_type, critic, layers, trunk_gradient, monkeypatch):
    model = networks(model_type, critic, layers, trunk_gradient=trunk_gradient)
    assert_packed_equals_padded(model, _CONFIG, ragged(1), monkeypatch)


def test_packed_step_with_a_reference_equals_the_padded_one(monkeypatch):
    config, reference = config_for(entropy_coef=0.01, beta=0.1), sdpa_actor(seed=1).double()
    assert_packed_equals_padded(networks(), config, ragged(), monkeypatch, reference)


def adapted(dropout=0.0):
    """An actor with adapters, which are the reference switched off, and a critic with its own on the same base."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules="all-linear", lora_dropout=dropout)
    plain = sdpa_actor().double()
    actor = add_adapter(plain, lora)
    critic = critic_from_actor(actor, "lora")
    critic = add_adapter(critic, critic_config(actor, critic))
    for name, weight in (*actor.named_parameters(), *critic.named_parameters()):
        if "lora_B" in name or "score" in name:  # else adapters change nothing, and all values are 0
            nn.init.normal_(weight, std=0.1)
    return ActorCritic(actor.double(), critic.double())


def test_packed_step_of_adapters_equals_the_padded_one(monkeypatch):
    model = adapted()
    config = config_for(entropy_coef=0.01, beta=0.1)
    assert_packed_equals_padded(model, config, ragged(), monkeypatch, ref_model=model.actor)


@pytest.mark.parametrize("broken", ["position_ids", "tables"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_other_positions_and_rows_that_see_each_other_are_found(broken, model_type, monkeypatch):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "max_position_embeddings": 1024}
    model, batch = networks(model_type, **(sizes if model_type == "gpt2" else {})), ragged()
    assert runs_packed(model.actor, batch) and runs_packed(model.critic, batch)
    original = PackedRows.__init__

    def breaks(self, mask):
        original(self, mask)
        if broken == "position_ids":
            self.positions = torch.arange(len(self.source))
        else:
            self.tables = [(1, len(self.source))]  # all tokens before a token are seen, of whatever row

    monkeypatch.setattr(PackedRows, "__init__", breaks)
    wrong = step(model, _CONFIG, batch)
    padded(monkeypatch)
    expected = step(model, _CONFIG, batch)
    # a distance between positions is all that Llama's rotations keep, so rows moved as a whole give the same
    matters = (broken, model_type) != ("position_ids", "llama")
    assert (min(gaps(wrong, expected)) > 1e-3) == matters
    monkeypatch.setattr(packed_rows, "_LEAST_SAVED", 1)
    packed_rows._MEASURED.clear()
    assert runs_packed(model.actor, batch) != matters


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("mistral", {"sliding_window": 8}),
        (
            "gpt_neo",
            {"attention_types": [[["global", "local"], 1]], "window_size": 8, "num_layers": 2, "num_heads": 4},
        ),
        ("bloom", {"n_head": 4, "n_layer": 2}),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
        ("mamba", {"state_size": 4}),
        ("qwen3_next", {"num_experts": 4, "num_experts_per_tok": 2, "linear_num_value_heads": 4}),
    ],
)
def test_models_that_compute_something_else_in_one_row_keep_padded_rows(model_type, overrides):
    actor = tiny_actor(model_type, **overrides)
    with contextlib.suppress(ValueError):  # not all of them have it
        actor.set_attn_implementation("sdpa")
    assert not runs_packed(actor, ragged())


def test_rows_longer_than_what_was_measured_are_measured_again():
    actor = sdpa_actor("mistral", sliding_window=600, max_position_embeddings=4096)
    short, long = ragged(), rows_of([60, 61, 62, 700])
    assert runs_packed(actor, short)
    assert not runs_packed(actor, long)
    assert not runs_packed(actor, short)


def test_rows_beyond_the_positions_of_a_network_stay_padded():
    actor = sdpa_actor(max_position_embeddings=64)
    assert runs_packed(actor, rows_of([20, 64]))
    assert not runs_packed(actor, rows_of([20, 65]))
    assert runs_packed(actor, rows_of([20, 64]))


def test_networks_and_forwards_whose_numbers_would_differ_keep_padded_rows():
    batch = ragged()
    assert runs_packed(networks().actor, batch)
    assert not runs_packed(tiny_actor(), batch)  # eager
    assert not runs_packed(networks(dtype=torch.bfloat16).actor, batch)
    mixed = networks().actor
    mixed.lm_head.to(torch.bfloat16)
    assert not runs_packed(mixed, batch)
    sharded = networks().actor
    next(sharded.parameters()).ds_id = 0
    assert not runs_packed(sharded, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not runs_packed(networks().actor, batch)
    assert not runs_packed(sdpa_actor(attention_dropout=0.1).eval(), batch)


def test_adapters_with_dropout_keep_padded_rows_from_the_start():
    for dropout, packs in ((0.0, True), (0.1, False)):
        model = adapted(dropout)
        for name, weight in model.actor.named_parameters():
            if "lora_B" in name:
                nn.init.zeros_(weight)  # as they begin, when what is dropped changes nothing
        assert runs_packed(model.actor, ragged()) == packs


def test_recomputed_activations_are_those_of_padded_rows_bit_by_bit(monkeypatch):
    model, batch = networks().train(), ragged()
    assert runs_packed(model.actor, batch)
    model.gradient_checkpointing_enable()
    found = step(model, _CONFIG, batch)
    padded(monkeypatch)
    expected = step(model, _CONFIG, batch)
    assert found[1]["positions"] == expected[1]["positions"]
    assert gaps(found, expected) == (0.0, 0.0, 0.0)


def test_attention_that_does_not_know_rows_raises_where_a_forward_is_made_anew_later():
    model, batch = networks().actor, ragged()
    rows = PackedRows(batch.attention_mask)
    with rows.inputs_of(model) as inputs:
        hidden = model(input_ids=rows.take(batch.input_ids), use_cache=False, **inputs).logits
    assert hidden.isfinite().all()
    with pytest.raises(RuntimeError, match="size"):
        model(input_ids=rows.take(batch.input_ids), use_cache=False, **inputs)


def test_rows_are_packed_only_where_that_leaves_out_enough(monkeypatch):
    monkeypatch.undo()
    actor = networks().actor
    assert not runs_packed(actor, rows_of([*[20] * 60, 25]))  # too little in all
    assert not runs_packed(actor, rows_of([200] * 40 + [190] * 60))  # 600 tokens of 20000
    assert runs_packed(actor, rows_of([20 + 2 * number for number in range(40)]))
    assert not runs_packed(actor, stack([]))


@pytest.mark.slow  # two processes
def test_two_ranks_of_which_one_packs_share_the_gradient_of_padded_rows(tmp_path, monkeypatch):
    from tests.helpers import packed_ranks

    run_ranks("packed_ranks.py", tmp_path)
    found = load_file(tmp_path / "gradients.safetensors")
    assert found.pop("packed").tolist() == [1.0, 0.0]
    padded(monkeypatch)
    model = networks()
    for lengths in (packed_ranks.RAGGED, packed_ranks.EQUAL):
        packed_ranks.differentiate(model, rows_of(lengths))
    # DistributedDataParallel averages over ranks
    assert difference({name: 2 * gradient for name, gradient in found.items()}, gradients_of(model)) < 1e-6


class Wrapped(nn.Module):
    """Holds a module as launchers do."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_positions_are_counted_as_they_are_computed(monkeypatch):
    model, batch = networks(), ragged()
    shapes = []
    model.actor.model.embed_tokens.register_forward_hook(lambda _, args, output: shapes.append(args[0].numel()))

    def computed():
        runs_packed(model.actor, batch)  # measures first
        shapes.clear()
        model("actor", batch)
        assert positions_of(model, batch) == positions_of(Wrapped(Wrapped(model)), batch)
        return sum(shapes), positions_of(model, batch)

    tokens = int(batch.attention_mask.sum())
    assert computed() == (tokens, tokens)
    padded(monkeypatch)
    monkeypatch.setattr("turnppo_hf.ppo.batch._MIN_SAVED_TOKENS", 20)
    assert computed() == (batch.num_positions, batch.num_positions)
    next(model.actor.parameters()).ds_id = 0  # cut over ranks: all rows at once
    assert computed() == (batch.input_ids.numel(), batch.input_ids.numel())
    assert tokens < batch.num_positions < batch.input_ids.numel()


def test_measuring_draws_no_random_number_and_keeps_the_training_mode():
    model, state = networks().train(), torch.get_rng_state()
    model.actor.lm_head.eval()
    assert runs_packed(model.actor, ragged())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training == (name != "lm_head") for name, module in model.actor.named_modules())
    assert not model.actor.lm_head._forward_pre_hooks


def test_sdpa_of_transformers_stays_its_own():
    model, batch = networks(), ragged()
    model("actor", batch)
    assert runs_packed(model.actor, batch)
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward


def test_attention_that_another_library_registered_is_called_and_stays(monkeypatch):
    calls = []

    def theirs(module, query, *args, **kwargs):
        calls.append(tuple(query.shape))
        return sdpa_attention_forward(module, query, *args, **kwargs)

    model, batch = networks(), ragged()
    assert runs_packed(model.actor, batch)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", theirs)
    model("actor", batch)
    lengths = batch.attention_mask.sum(1).tolist()
    tables = [(lengths.count(length), 4, length, 8) for length in sorted(set(lengths), reverse=True)]
    assert calls == tables * 2  # layers
    assert AttentionInterface()["sdpa"] is theirs


@pytest.mark.parametrize("left", [False, True])
def test_other_forwards_of_a_network_meanwhile_are_bit_equal(left):
    model, ids = sdpa_actor(), torch.randint(1, 64, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([[9], [5], [2]])
    mask = (mask.flip(1) if left else mask).long()
    calls = ({"attention_mask": mask}, {}, {"attention_mask": mask, "use_cache": False}, {"input_ids": ids[:, :1]})
    generation = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}

    def all_of_them():
        with torch.no_grad():
            logits = [model(**{"input_ids": ids, **inputs}).logits for inputs in calls]
        return [*logits, model.generate(ids, **generation)]

    expected = all_of_them()
    with PackedRows(ragged().attention_mask).inputs_of(model):
        assert model.config._attn_implementation == packed_rows._OF_ROWS
        found = all_of_them()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_configuration_is_what_it_was_after_a_forward_and_after_one_that_fails():
    model, batch = networks(critic="shared"), ragged()
    model("critic", batch), model("actor", batch)
    assert runs_packed(model.critic, batch)
    with pytest.raises(KeyError), PackedRows(batch.attention_mask).inputs_of(model):
        assert model.actor.config._attn_implementation == packed_rows._OF_ROWS
        raise KeyError
    assert {model.actor.config._attn_implementation, model.critic.config._attn_implementation} == {"sdpa"}


def test_saved_configuration_names_no_attention(tmp_path):
    model = sdpa_actor()
    model.save_pretrained(tmp_path / "before")
    with PackedRows(ragged().attention_mask).inputs_of(model):
        model.save_pretrained(tmp_path / "meanwhile")
    before, meanwhile = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "meanwhile"))
    assert before == meanwhile and packed_rows._OF_ROWS not in json.dumps(meanwhile)


def test_threads_with_networks_of_their_own_do_not_meet(monkeypatch):
    batches = [ragged(number) for number in range(2)]
    models = [networks() for _ in batches]
    found = [None, None]

    def work(number):
        with torch.no_grad():
            found[number] = [models[number]("actor", batches[number], 0.7)[0] for _ in range(10)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    padded(monkeypatch)
    for number in range(2):
        with torch.no_grad():
            expected = models[number]("actor", batches[number], 0.7)[0]
        assert all((mine - expected).abs().max() < 1e-6 for mine in found[number])
