"""What users pass in: taken as it is, or refused with what to do."""

from __future__ import annotations

import gymnasium
import pytest
import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import AutoModelForTokenClassification

from tests.tiny import VOCABULARY, config_for, draw_trajectories, tiny_actor
from turnppo_hf.actor_critic import critic_from_actor, sampled_logprobs
from turnppo_hf.batch import stack
from turnppo_hf.loading import check_tasks, load_actor, load_critic, open_environments, refuse_unsupported

SOKOBAN = "turnppo_hf/Sokoban-v0"


class _Environment(gymnasium.Env):
    """Never played; counts how often it is built."""

    built = 0

    def __init__(self):
        type(self).built += 1

    def reset(self, *, seed=None, options=None):
        return "", {}

    def step(self, action):
        return "", 0.0, True, False, {}


def test_refuse_unsupported_names_the_argument_that_is_set():
    refuse_unsupported(reward_funcs=None, tools=None)
    with pytest.raises(ValueError, match="`tools` is not supported"):
        refuse_unsupported(reward_funcs=None, tools=[])


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


def test_load_critic_copies_the_actor_by_default():
    actor = tiny_actor().to(torch.bfloat16)
    critic = load_critic(None, actor)
    assert critic.dtype == torch.bfloat16
    assert not critic.score.weight.any()


def test_load_critic_loads_a_path_in_the_actors_dtype(tmp_path):
    saved = critic_from_actor(tiny_actor())
    nn.init.normal_(saved.score.weight)
    saved.save_pretrained(tmp_path)
    critic = load_critic(str(tmp_path), tiny_actor().to(torch.bfloat16))
    assert critic.dtype == torch.bfloat16
    assert torch.equal(critic.score.weight, saved.score.weight.bfloat16())


def test_load_critic_takes_a_loaded_model_and_switches_its_dropout_off():
    actor = tiny_actor(attention_dropout=0.5)
    config = tiny_actor(attention_dropout=0.5).config
    config.num_labels = 1
    given = AutoModelForTokenClassification.from_config(config)
    critic = load_critic(given, actor)
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
        load_critic(critic, tiny_actor())


def test_open_environments_builds_one_of_each_name_and_keeps_it():
    _Environment.built = 0
    pool, names, record = open_environments({"first": _Environment, "second": SOKOBAN})
    assert names == ["first", "second"]
    assert record == {"environment": None, "environment_kwargs": {}, "environment_name": "first"}
    assert _Environment.built == 1
    pool.take("first")
    assert _Environment.built == 1
    pool.close()


def test_open_environments_records_the_id_of_a_registered_environment():
    pool, names, record = open_environments(SOKOBAN)
    assert names == [SOKOBAN]
    assert record["environment"] == SOKOBAN
    pool.close()


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (None, ValueError, "`environment_factory` is missing"),
        ({}, ValueError, "`environment_factory` is missing"),
        ("turnppo_hf/Sokobann-v0", ValueError, "Sokoban"),
        (lambda: object(), TypeError, "no reset"),
    ],
)
def test_open_environments_refuses_what_cannot_be_played(factory, error, message):
    with pytest.raises(error, match=message):
        open_environments(factory)


def test_check_tasks_without_a_dataset_makes_one_from_seeds_for_every_batch():
    # 5 steps at 2 updates per batch are 3 batches, of 8 tasks each
    tasks = check_tasks(None, config_for(max_steps=5), ["x"])
    assert tasks["seed"] == list(range(24))
    with pytest.raises(ValueError, match="the run has no end"):
        check_tasks(None, config_for(), ["x"])


def test_check_tasks_takes_a_dataset_that_fills_a_batch():
    dataset = Dataset.from_dict({"seed": range(8), "environment": ["x", "y"] * 4})
    assert check_tasks(dataset, config_for(), ["x", "y"]) is dataset
    # rows without a name are played in the default environment
    partly = Dataset.from_dict({"seed": range(8), "environment": ["x", None] * 4})
    assert check_tasks(partly, config_for(), ["x", "y"]) is partly


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset.from_dict({"seed": []}), "has 0 rows"),
        (Dataset.from_dict({"seed": range(7)}), "has 7 rows, but a rollout batch takes 8 distinct tasks"),
        (Dataset.from_dict({"seed": range(8), "environment": ["x", "z"] * 4}), "names 'z', but"),
        (Dataset.from_dict({"seed": range(8), "environment": ["z", None] * 4}), "names 'z', but"),
        (IterableDataset.from_generator(lambda: iter([{"seed": 1}])), "without a length"),
    ],
)
def test_check_tasks_refuses_a_dataset_that_cannot_fill_batches(dataset, message):
    with pytest.raises(ValueError, match=message):
        check_tasks(dataset, config_for(), ["x", "y"])
