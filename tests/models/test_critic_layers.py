"""A critic of the first blocks: it computes what the actor's first blocks compute, and is saved as what it is."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import AutoModelForTokenClassification

from tests.helpers.families import FAMILIES, family_actor
from tests.helpers.tiny import config_for, tiny_actor
from turnppo_hf import TurnPPOAgent
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.models.actor_critic import ActorCritic, critic_from_actor
from turnppo_hf.models.checkpoint import load_networks, save_networks
from turnppo_hf.models.critic_layers import depth_of, first_layers
from turnppo_hf.models.pretrained import load_agent_networks
from turnppo_hf.trainer.networks import build_networks

IDS = torch.arange(3, 15)[None]
NATIVE = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "qwen3": {"layer_types": ["full_attention", "sliding_attention"] * 2, "use_sliding_window": True},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "intermediate_size": [64, 32, 64, 32],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
    },
}


def actor_of(name):
    if name in FAMILIES:
        return family_actor(name).eval()
    return tiny_actor(name, **{"num_hidden_layers": 4, **NATIVE[name]}).eval()


def hidden_states(network):
    with torch.no_grad():
        return network.eval()(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("name", [*FAMILIES, *NATIVE])
def test_first_blocks_compute_what_they_compute_in_the_actor(name, tmp_path):
    actor = actor_of(name)
    critic = critic_from_actor(actor, layers=2)
    mine, whole = hidden_states(critic), hidden_states(actor)
    assert len(mine) == 3 and len(whole) == 5  # embeddings, and after each block; the last of both is normed
    assert torch.equal(mine[0], whole[0]) and torch.equal(mine[1], whole[1])
    hook = {}
    # before the norm: what the third block gets as its input
    blocks = next(item for item in actor.modules() if isinstance(item, torch.nn.ModuleList) and len(item) == 4)
    handle = blocks[2].register_forward_pre_hook(lambda _, args: hook.update(second=args[0]))
    hidden_states(actor)
    handle.remove()
    blocks = next(item for item in critic.modules() if isinstance(item, torch.nn.ModuleList) and len(item) == 2)
    blocks[1].register_forward_hook(
        lambda _, args, output: hook.update(mine=output[0] if isinstance(output, tuple) else output)
    )
    hidden_states(critic)
    assert torch.equal(hook["mine"], hook["second"])

    for head in [module for path, module in critic.named_children() if path in ("score", "classifier")]:
        torch.nn.init.normal_(head.weight)
    critic.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert len(saved.get("layer_types") or "12") == 2
    loaded, found = AutoModelForTokenClassification.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not found["missing_keys"] and not found["unexpected_keys"] and depth_of(loaded.config) == 2
    with torch.no_grad():
        assert torch.equal(loaded.eval()(input_ids=IDS).logits, critic(input_ids=IDS).logits)


def test_lists_that_have_as_many_entries_by_chance_stay_whole():
    config = tiny_actor(eos_token_id=[1, 2], rope_parameters=None).config
    config.layer_types = ["full_attention", "full_attention"]
    cut = first_layers(config, 1)
    assert cut.eos_token_id == [1, 2] and cut.layer_types == ["full_attention"] and cut.num_hidden_layers == 1
    assert config.num_hidden_layers == 2 and len(config.layer_types) == 2  # the actor's is its own


@pytest.mark.parametrize("layers", [0, 3, -1])
def test_depth_outside_of_the_actors_is_one_sentence(layers):
    with pytest.raises(ValueError, match=f"`critic_layers` must be between 1 and the 2 blocks.*got {layers}"):
        critic_from_actor(tiny_actor(), layers=layers)


def test_depth_at_which_a_configuration_changes_when_it_is_read_names_the_others():
    with pytest.raises(ValueError, match=r"`critic_layers` is 1.*Set it to one of \[2, 4\]"):
        critic_from_actor(family_actor("gemma4_text"), layers=1)


def test_blocks_that_cannot_stand_alone_are_refused():
    actor = tiny_actor("gpt_neox_japanese")  # its last block alone has a bias
    with pytest.raises(ValueError, match=r"first blocks of GPTNeoXJapaneseModel cannot be taken alone.*dense_bias"):
        critic_from_actor(actor, layers=1)
    assert critic_from_actor(actor, layers=2) is not None


def test_shallow_critic_has_its_own_weights_and_the_whole_ones_requires_grad():
    actor = tiny_actor()
    actor.get_input_embeddings().weight.requires_grad_(False)
    critic = critic_from_actor(actor, layers=1)
    assert all(parameter.requires_grad for parameter in critic.parameters())
    theirs = {parameter.data_ptr() for parameter in actor.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in critic.parameters()}


@pytest.mark.parametrize("kind", ["separate", "lora"])
def test_shallow_critic_of_adapters_is_loaded_by_peft_as_what_it_is(tmp_path, kind, tiny_tokenizer):
    base = tmp_path / "base"
    family_actor("olmo3").save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    networks, _ = build_networks(str(base), None, config_for(critic=kind, critic_layers=1), lora)
    for name, parameter in networks.critic.named_parameters():
        if "lora_B" in name or "score" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_networks(networks, tiny_tokenizer, AgentRecord(), str(tmp_path / "run"))
    expected = networks.critic.eval()(input_ids=IDS).logits
    _, critic = load_agent_networks(tmp_path / "run", torch.float32)
    plain = peft.AutoPeftModelForTokenClassification.from_pretrained(tmp_path / "run" / "critic", num_labels=1).eval()
    for loaded in (critic, plain):
        assert len(loaded.get_base_model().model.layers) == 1
        torch.testing.assert_close(loaded(input_ids=IDS).logits, expected)
    # merged, it is a network of its depth
    TurnPPOAgent.from_pretrained(tmp_path / "run").merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForTokenClassification.from_pretrained(tmp_path / "merged" / "critic")
    assert depth_of(merged.config) == 1 and len(merged.config.layer_types) == 1
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
    # it goes on where it was
    again, _ = build_networks(str(base), None, config_for(critic=kind, critic_layers=1), lora)
    load_networks(again, str(tmp_path / "run"))
    assert torch.equal(again.critic.eval()(input_ids=IDS).logits, expected)
    other, _ = build_networks(str(base), None, config_for(critic=kind, critic_layers=2), lora)
    with pytest.raises(ValueError, match="`critic_layers` that it was trained with"):
        load_networks(other, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "words"),
    [("opt", "Could not locate the layers.*Leave `critic_layers` out"), ("gemma4_text", "has a share for each block")],
)
def test_blocks_that_peft_does_not_take_are_refused_beside_adapters(name, words):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=words):
        build_networks(family_actor(name), None, config_for(critic_layers=2), lora)


def test_adapters_that_cannot_record_a_depth_are_refused():
    with pytest.raises(ValueError, match=r"`critic_layers` is 1, but a IA3Config records no layers.*LoraConfig"):
        adapter = peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
        build_networks(tiny_actor(), None, config_for(critic_layers=1), adapter)


def saved(folder, tokenizer, actor, **options):
    save_networks(ActorCritic(actor, critic_from_actor(actor, **options)), tokenizer, AgentRecord(), str(folder))


def test_checkpoint_of_another_depth_or_class_says_what_differs_and_what_to_do(tmp_path, tiny_tokenizer):
    saved(tmp_path / "whole", tiny_tokenizer, tiny_actor())
    saved(tmp_path / "qwen", tiny_tokenizer, tiny_actor("qwen3"))
    saved(tmp_path / "wide", tiny_tokenizer, tiny_actor(intermediate_size=32))
    saved(tmp_path / "headless", tiny_tokenizer, tiny_actor())
    tiny_actor().save_pretrained(tmp_path / "headless" / "critic")
    actor = tiny_actor()
    run = ActorCritic(actor, critic_from_actor(actor, layers=1))
    before = {name: value.clone() for name, value in run.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"The critic in .* is a 'llama' of 2 blocks, but .* 1 blocks.*`critic_layers`"
    ):
        load_networks(run, str(tmp_path / "whole"))
    with pytest.raises(
        ValueError, match=r"The critic in .* is a 'qwen3' of 2 blocks, but this run's is a 'llama' of 1"
    ):
        load_networks(run, str(tmp_path / "qwen"))
    other = ActorCritic(tiny_actor("qwen3"), None)
    with pytest.raises(ValueError, match=r"The actor in .* is a 'llama' of 2 blocks, but .* 'qwen3'.*Set `model` as"):
        load_networks(other, str(tmp_path / "whole"))
    run = ActorCritic(actor, critic_from_actor(actor))
    with pytest.raises(ValueError, match=r"is a network with '.*mlp.*' \(32, 32\), but.*\(32, 64\)"):
        load_networks(run, str(tmp_path / "wide"))
    with pytest.raises(ValueError, match=r"The critic in .* is a network without 'score"):
        load_networks(run, str(tmp_path / "headless"))
    assert all(torch.equal(value, before[name]) for name, value in run.state_dict().items() if name in before)
    load_networks(run, str(tmp_path / "whole"))  # control


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"critic_layers": 0}, "`critic_layers` must be at least 1, got 0"),
        ({"critic_layers": 1, "critic": "shared"}, '`critic_layers` is 1, but `critic` is "shared"'),
        ({"critic_layers": 1, "algorithm": "grpo"}, "`critic_layers` is 1, but grpo has no critic"),
    ],
)
def test_settings_without_effect_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        config_for(**settings)


def test_value_model_of_another_depth_is_refused():
    actor = tiny_actor()
    critic = critic_from_actor(actor)
    with pytest.raises(ValueError, match="`critic_layers` is 1, but `value_model` has 2 blocks"):
        build_networks(actor, critic, config_for(critic_layers=1))
    assert build_networks(actor, critic, config_for(critic_layers=2))[0].critic is critic


def test_resume_from_a_critic_of_another_depth_is_one_sentence(make_trainer, tmp_path, tiny_actor):
    make_trainer(save_strategy="steps", save_steps=1, max_steps=1).train()
    trainer = make_trainer(critic_layers=1, max_steps=2)
    with pytest.raises(ValueError, match=r"of 2 blocks, but this run's is a 'llama' of 1 blocks.*`critic_layers`"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_shallow_critic_takes_the_step_of_its_own_blocks_only(make_trainer):
    trainer = make_trainer(critic_layers=1)
    trainer.train()
    assert len(trainer.model.critic.base_model.layers) == 1 and len(trainer.model.actor.base_model.layers) == 2
    trained = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(trained) == len(list(trainer.model.parameters()))
    assert torch.isfinite(
        torch.tensor([entry["value_loss"] for entry in trainer.state.log_history if "value_loss" in entry])
    ).all()
