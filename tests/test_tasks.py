"""Datasets that fill rollout batches, and those that cannot."""

from __future__ import annotations

import pytest
from datasets import Dataset, IterableDataset

from tests.tiny import config_for
from turnppo_hf.tasks import check_tasks


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
