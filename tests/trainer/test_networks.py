"""What users pass in: taken as it is, or refused with what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForTokenClassification

from tests.helpers.tiny import VOCABULARY, config_for, draw_trajectories, tiny_actor
from turnppo_hf.models.actor_critic import critic_from_actor, sampled_logprobs
from turnppo_hf.ppo.batch import stack
from turnppo_hf.trainer.networks import build_networks, load_actor, load_critic


def test_load_actor_takes_a_loaded_model_as_it_is():
    actor = tiny_actor()
    assert load_actor(actor, config_for()) is actor


def test_load_actor_loads_a_path_with_the_given_arguments(tmp_path):
    original = tiny_actor()
    original.save_pretrained(tmp_path)
    actor = load_actor(str(tmp_path), config_for())
    assert actor.dtype == torch.float32
    assert torch.equal(actor.lm_head.weight, original.lm_head.weight)
    config = config_for(model_init_kwargs={"dtype": "bfloat16", "attn_implementation": "eager"})
    actor = load_actor(str(tmp_path), config)
    assert actor.dtype == torch.bfloat16
    assert actor.config._attn_implementation == "eager"


@pytest.mark.parametrize("disable_dropout", [True, False])
def test_load_actor_switches_every_kind_of_dropout_off_where_asked(disable_dropout):
    actor = load_actor(tiny_actor(attention_dropout=0.5), config_for(disable_dropout=disable_dropout)).train()
    batch = stack(draw_trajectories(0))
    with torch.no_grad():
        same = torch.equal(sampled_logprobs(actor, batch)[0], sampled_logprobs(actor, batch)[0])
    assert same is disable_dropout  # else the ratio is not 1 before the first update
    assert actor.config.attention_dropout == 0.5  # what is saved is the model's own


def test_load_actor_refuses_what_is_no_causal_language_model():
    critic = critic_from_actor(tiny_actor())
    for model in (critic, critic.base_model, nn.Linear(2, 2), None):
        with pytest.raises(TypeError, match="causal language model"):
            load_actor(model, config_for())


def test_load_actor_refuses_arguments_for_a_model_that_is_loaded_already():
    with pytest.raises(ValueError, match="would have no effect"):
        load_actor(tiny_actor(), config_for(model_init_kwargs={"dtype": "bfloat16"}))


def test_critic_of_an_algorithm_without_one_is_refused():
    with pytest.raises(ValueError, match="`value_model` is set, but grpo has no critic"):
        build_networks("tiny", "no/such/critic", config_for("grpo"))


def test_load_critic_copies_the_actor_by_default():
    actor = tiny_actor().to(torch.bfloat16)
    critic = load_critic(None, actor, config_for())
    assert critic.dtype == torch.bfloat16
    assert not critic.score.weight.any()


def test_load_critic_loads_a_path_in_the_actors_dtype(tmp_path):
    saved = critic_from_actor(tiny_actor())
    nn.init.normal_(saved.score.weight)
    saved.save_pretrained(tmp_path)
    critic = load_critic(str(tmp_path), tiny_actor().to(torch.bfloat16), config_for())
    assert critic.dtype == torch.bfloat16
    assert torch.equal(critic.score.weight, saved.score.weight.bfloat16())


def test_load_critic_takes_a_loaded_model_and_switches_its_dropout_off():
    actor = tiny_actor(attention_dropout=0.5)
    config = tiny_actor(attention_dropout=0.5).config
    config.num_labels = 1
    given = AutoModelForTokenClassification.from_config(config)
    critic = load_critic(given, actor, config_for())
    assert critic is given
    critic.train()
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(critic(input_ids=ids).logits, critic(input_ids=ids).logits)


@pytest.mark.parametrize(("labels", "vocabulary"), [(2, VOCABULARY), (1, VOCABULARY + 1)])
def test_load_critic_refuses_another_number_of_labels_or_another_vocabulary(labels, vocabulary):
    config = tiny_actor(vocab_size=vocabulary).config
    config.num_labels = labels
    critic = AutoModelForTokenClassification.from_config(config)
    with pytest.raises(ValueError, match=f"{labels} labels and a vocabulary of {vocabulary}"):
        load_critic(critic, tiny_actor(), config_for())


def test_name_of_a_packaged_model_is_taken_as_on_the_command_line():
    assert load_actor("tiny", config_for()).name_or_path.endswith("sokoban_tiny")
