"""The classes that fill the gaps of transformers' token classifiers: found by its one line, however it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForTokenClassification,
    BertForTokenClassification,
    LlamaForTokenClassification,
    MllamaForCausalLM,
    Olmo2Config,
    ViTConfig,
)

from tests.helpers.families import FAMILIES, family_actor
from tests.helpers.tiny import VOCABULARY, config_for, tiny_actor
from tests.trainer.test_turn_ppo_trainer import moved, weights
from turnppo_hf import TurnPPOAgent
from turnppo_hf.models.actor_critic import critic_from_actor
from turnppo_hf.models.registration import register_token_classifiers
from turnppo_hf.models.token_classifier import token_classifier
from turnppo_hf.trainer.networks import build_networks

IDS = torch.arange(3, 15)[None]
LOAD = """
import sys, turnppo_hf
from transformers import AutoModelForTokenClassification
critic = AutoModelForTokenClassification.from_pretrained(sys.argv[1])
print(type(critic).__name__, critic.config.num_hidden_layers)
"""
# control: transformers itself has no such class, and is in memory already
ALONE = """
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, Olmo2Config
assert Olmo2Config not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
"""


def values(critic):
    with torch.no_grad():
        return critic.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_critic_of_each_family_is_saved_and_loaded_by_the_one_line_of_transformers(name, tmp_path):
    critic = critic_from_actor(family_actor(name))
    torch.nn.init.normal_(critic.score.weight)
    critic.save_pretrained(tmp_path)
    loaded, found = AutoModelForTokenClassification.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert type(loaded) is type(critic)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert torch.equal(values(loaded), values(critic))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert "auto_map" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_critic_of_each_family_reads_what_the_actor_reads(name):
    actor = family_actor(name).eval()
    critic = critic_from_actor(actor).eval()
    with torch.no_grad():
        mine, expected = (
            network(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states[-1]
            for network in (critic, actor)
        )
    assert torch.equal(mine, expected)
    assert not values(critic).any()


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", ALONE])
def test_one_line_loads_a_critic_in_a_process_that_only_imported_the_package(tmp_path, before):
    critic_from_actor(family_actor("olmo2")).save_pretrained(tmp_path)
    command = [sys.executable, "-c", before + LOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["Olmo2ForTokenClassification", "4"], done.stderr


def test_import_of_the_package_loads_no_framework():
    code = "import sys, turnppo_hf; print([name for name in ('torch', 'transformers', 'trl') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_classes_of_transformers_stay_and_other_models_get_none():
    register_token_classifiers()  # again
    assert AutoModelForTokenClassification.from_config(tiny_actor().config).__class__ is LlamaForTokenClassification
    bert = AutoConfig.for_model(
        "bert", hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16
    )
    assert isinstance(AutoModelForTokenClassification.from_config(bert), BertForTokenClassification)
    assert ViTConfig not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForTokenClassification.from_config(ViTConfig())


def test_a_class_that_somebody_registers_goes_first():
    theirs = token_classifier(MODEL_FOR_CAUSAL_LM_MAPPING[Olmo2Config])
    before = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[Olmo2Config]
    AutoModelForTokenClassification.register(Olmo2Config, theirs, exist_ok=True)
    try:
        assert MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[Olmo2Config] is theirs
    finally:
        AutoModelForTokenClassification.register(Olmo2Config, before, exist_ok=True)


def test_every_causal_model_of_transformers_has_a_class():
    missing = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING if kind not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING]
    assert missing == [] and len(MODEL_FOR_CAUSAL_LM_MAPPING) > 150


def test_classifier_takes_labels_masks_and_embeddings_as_those_of_transformers():
    critic = critic_from_actor(family_actor("olmo2")).eval()
    torch.nn.init.normal_(critic.score.weight)
    mask = torch.ones_like(IDS)
    embedded = critic.get_input_embeddings()(IDS)
    assert torch.equal(critic(inputs_embeds=embedded, attention_mask=mask).logits, values(critic))
    critic.config.num_labels = critic.num_labels = 1
    assert critic(input_ids=IDS, labels=torch.zeros_like(IDS)).loss.item() == 0.0  # one class is always right
    assert torch.equal(critic(input_ids=IDS, return_dict=False)[0], values(critic))


def test_actor_of_a_class_that_its_configuration_does_not_lead_to_is_refused_with_ways_that_work():
    # the text model of Mllama, which no table of transformers knows by its own configuration
    config = AutoConfig.for_model("mllama_text_model", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64)
    config.num_hidden_layers, config.cross_attention_layers, config.pad_token_id = 2, [], 0
    config.num_attention_heads, config.num_key_value_heads = 4, 2
    actor = MllamaForCausalLM(config)
    with pytest.raises(ValueError, match=r"No critic can be built on 'mllama_text_model'.*`value_model`.*grpo"):
        critic_from_actor(actor)
    # both ways that the message names
    networks, _ = build_networks(actor, None, config_for("grpo"))
    assert networks.critic is None
    networks, _ = build_networks(actor, critic_from_actor(tiny_actor()), config_for())
    assert networks.critic is not None


SETTINGS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


def actor_for(name, tokenizer):
    actor = family_actor(
        name,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        initializer_range=0.02,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    actor.generation_config.pad_token_id = tokenizer.pad_token_id
    return actor


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_family_trains_and_a_resumed_run_equals_the_one_that_went_on(
    make_trainer, tmp_path, tiny_tokenizer, name, layers
):
    whole = make_trainer(model=actor_for(name, tiny_tokenizer), critic_layers=layers, **SETTINGS)
    start = weights(whole.model.critic)
    whole.train()
    assert moved(start, whole.model.critic)
    final = {name: weights(network) for name, network in whole.model.networks.items()}
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "checkpoint-2" / "critic")
    assert not moved(final["critic"], loaded)
    resumed = make_trainer(model=actor_for(name, tiny_tokenizer), critic_layers=layers, **SETTINGS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for network in final:
        assert not moved(final[network], resumed.model.networks[network])


@pytest.mark.slow
@pytest.mark.parametrize("layers", [None, 2])
def test_agent_of_a_family_without_a_class_in_transformers_plays_values_and_is_saved_again(
    make_trainer, tmp_path, tiny_tokenizer, layers
):
    actor = actor_for("olmo2", tiny_tokenizer)
    sizes = {"max_turns": 2, "max_steps": 1, "generation_batch_size": 2}
    trainer = make_trainer("turnppo_hf/Sokoban-v0", model=actor, critic_layers=layers, **sizes)
    trainer.train()
    trainer.save_model()
    agent = TurnPPOAgent.from_pretrained(tmp_path / "run")
    trajectory = agent.play(seed=1)
    assert len(agent.values(trajectory)) == len(trajectory.turns)
    agent.save_pretrained(tmp_path / "again")
    again = TurnPPOAgent.from_pretrained(tmp_path / "again")
    assert again.values(trajectory) == agent.values(trajectory)
    assert again.critic.config.num_hidden_layers == (layers or 4)
    assert "olmo2" in (tmp_path / "again" / "config.json").read_text()
