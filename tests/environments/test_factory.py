"""What users pass as environments: played as it is, or refused with what to do."""

from __future__ import annotations

import warnings

import gymnasium
import pytest
from datasets import Dataset, IterableDataset

from tests.helpers.tiny import config_for
from turnppo_hf.environments import make_environment
from turnppo_hf.environments.factory import open_environments
from turnppo_hf.trainer.arguments import check_arguments

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
        (_Environment(), TypeError, "cannot be called"),
        (lambda: gymnasium.make("CartPole-v1"), TypeError, "observation space of 'CartPoleEnv' is Box"),
        ("CartPole-v1", TypeError, "observation space of 'CartPole-v1' is Box"),
    ],
)
def test_open_environments_refuses_what_cannot_be_played(factory, error, message):
    with pytest.raises(error, match=message):
        open_environments(factory)


def test_prompts_may_come_from_a_stream_that_does_not_know_its_columns():
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": "2 + 2?"}]))
    assert stream.column_names is None
    check_arguments(len, config_for(), stream, None, None, None, None)
    for dataset in (None, Dataset.from_list([{"question": "2 + 2?"}])):
        with pytest.raises(ValueError, match="has no column `prompt`"):
            check_arguments(len, config_for(), dataset, None, None, None, None)


def test_rules_that_the_context_leaves_out_are_warned_of():
    def once():
        return make_environment(SOKOBAN)

    with pytest.warns(UserWarning, match="`context` is 'last', but Sokoban writes its rules into the first"):
        open_environments({"quiet": _Environment, "sokoban": once}, context="last")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_environments(once)
        open_environments(lambda: make_environment(SOKOBAN, repeat_rules=True), context="window:2")
        open_environments(_Environment, context="last")


def test_trainer_warns_of_rules_that_its_context_leaves_out(make_trainer):
    with pytest.warns(UserWarning, match="writes its rules into the first observation alone"):
        make_trainer(environment_factory=SOKOBAN, context="last")
