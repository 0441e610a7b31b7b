"""Datasets that fill rollout batches, and those that cannot."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from tests.helpers.tiny import config_for
from turnppo_hf.trainer.tasks import check_tasks


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
        (IterableDataset.from_generator(lambda: iter([{"seed": 1}])), "has no length, `max_steps` is -1"),
        ([{"seed": 1}], "is a list without a length"),
        (
            DatasetDict({"test": Dataset.from_dict({"seed": range(8)})}),
            r"is a DatasetDict with the splits test.*Pass one of them, such as dataset\['test'\]",
        ),
    ],
)
def test_check_tasks_refuses_a_dataset_that_cannot_fill_batches(dataset, message):
    with pytest.raises(ValueError, match=message):
        check_tasks(dataset, config_for(), ["x", "y"])


def stream_of(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


def shares(rows, ranks, count=8, **fields):
    """The first `count` rows that each rank plays of a stream."""
    given = []
    for rank in range(ranks):
        args = config_for(max_steps=4, **fields)
        # a configuration takes its rank from the launch
        args.distributed_state = SimpleNamespace(num_processes=ranks, process_index=rank)
        given.append([row["seed"] for row in islice(check_tasks(stream_of(rows), args, ["x"]), count)])
    return given


def test_stream_gives_every_rank_as_many_rows_of_each_batch():
    rows = [{"seed": number} for number in range(11)]
    first, second = shares(rows, 2, num_generations=2, num_iterations=1)
    assert first == [0, 0, 1, 1, 4, 4, 5, 5]
    assert second == [2, 2, 3, 3, 6, 6, 7, 7]
    # it begins again as often as a run needs it, so that a resumed one may skip more than one pass
    assert shares(rows, 1, 20, num_iterations=2) == [[*range(8), *range(8), *range(4)]]


def test_stream_that_fills_no_batch_and_an_unknown_environment_in_it_are_refused():
    with pytest.raises(ValueError, match="ended after 7 rows, but a rollout batch takes 8"):
        shares([{"seed": number} for number in range(7)], 1)
    with pytest.raises(ValueError, match="names 'z', but"):
        shares([{"seed": 0, "environment": "z"}], 1)
    with pytest.raises(ValueError, match="`oversampling_factor` 1"):
        shares([], 1, oversampling_factor=1.5)


@pytest.mark.slow
def test_tasks_of_a_run_that_is_extended_are_new(make_trainer):
    played = []

    def train(resume, **settings):
        trainer = make_trainer(use_cpu=True, save_strategy="steps", save_steps=1, **settings)
        collect = trainer.collector.collect

        def note(rows, number):
            played.append([row["seed"] for row in rows])
            return collect(rows, number)

        trainer.collector.collect = note
        trainer.train(resume_from_checkpoint=resume)

    train(None, max_steps=2)
    train(True, max_steps=4)
    assert sorted(seed for batch in played for seed in batch) == list(range(4 * 8))


def test_more_seeds_than_memory_holds_are_refused():
    with pytest.raises(ValueError, match=r"`max_steps` is 1000000000, which takes .* tasks.*pass a dataset"):
        check_tasks(None, config_for(max_steps=10**9), ["x"])
