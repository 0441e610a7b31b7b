"""Tasks drawn by what the critic makes of them: weights, a floor, one draw for all ranks, and resumed runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from tests.helpers.tiny import make_trajectory, make_turn
from turnppo_hf.trainer.task_values import TaskValues, judge

TASKS = Dataset.from_dict({"seed": range(10)})


def drawn(table, batch_number, count=4):
    return [row["seed"] for row in table.draw(batch_number, count)]


def valued(values, returns=None):
    """A table of ten tasks, of which the first ones have values."""
    table = TaskValues(TASKS, seed=0)
    table.values[: len(values)] = values
    table.returns[: len(values)] = values if returns is None else returns
    return table


def test_tasks_are_drawn_alike_until_something_is_known():
    for table in (valued([]), valued([1.0, 1.0, 1.0])):
        assert table.weights.tolist() == [1.0] * 10 and table.decided_share == 0.0


def test_weight_by_hand_of_lost_open_and_won_tasks():
    table = valued([-5.0, 0.0, 2.5, 5.0, 10.0, 20.0], returns=[0.0, 0.0, 10.0, 10.0, 10.0, 0.0])
    # between the returns 0 and 10 the places are 0, 0, 1/4, 1/2, 1, 1
    assert table.weights == pytest.approx([0.1, 0.1, 0.1 + 0.9 * 0.75, 1.0, 0.1, 0.1, 1.0, 1.0, 1.0, 1.0])
    assert table.decided_share == 0.4


def test_floor_keeps_all_tasks_alive_and_open_ones_are_played_more():
    table = valued([0.0] * 5 + [5.0] * 5, returns=[0.0, 10.0] * 5)
    counts = Counter(seed for batch in range(400) for seed in drawn(table, batch, count=2))
    lost, still_open = [counts[seed] for seed in range(5)], [counts[seed] for seed in range(5, 10)]
    assert min(lost) > 0 and min(still_open) > 3 * max(lost)


def test_draw_has_different_tasks_and_depends_on_batch_and_values_only():
    first, second = valued([1.0, 2.0, 3.0]), valued([1.0, 2.0, 3.0])
    drawn(first, 3)  # an earlier draw leaves no trace, as in a run that was resumed
    assert [drawn(first, batch) for batch in range(5)] == [drawn(second, batch) for batch in range(5)]
    assert all(len(set(drawn(first, batch))) == 4 for batch in range(20))
    assert drawn(first, 0) != drawn(first, 1)


def test_values_and_returns_of_first_states_reach_the_task_that_was_played():
    table = TaskValues(TASKS, seed=0)
    rows = table.draw(0, 3)
    turns = [make_turn((1,), (2,)), make_turn((1, 2, 3), (4,))]
    episodes = [make_trajectory(turns).__class__(**{**vars(make_trajectory(turns)), "task": row}) for row in rows]
    values = torch.tensor([[1.0, 9.0], [2.0, 9.0], [3.0, 9.0]])
    table.add(judge(episodes, values, values * 10))
    for row, value in zip(rows, (1.0, 2.0, 3.0), strict=True):
        assert (table.values[row["seed"]], table.returns[row["seed"]]) == (value, value * 10)
    assert np.isnan(table.values).sum() == 7
    table.add([("no such task", 1.0, 1.0)])
    assert np.isnan(table.values).sum() == 7


def test_saved_values_are_read_and_those_of_other_tasks_refused(tmp_path):
    table = valued([1.0, 2.0])
    table.save(tmp_path)
    read = TaskValues(TASKS, seed=0)
    read.load(tmp_path)
    assert np.array_equal(read.values, table.values, equal_nan=True)
    with pytest.raises(ValueError, match="values of 10 tasks, but `train_dataset` has 3 rows"):
        TaskValues(TASKS.select(range(3)), seed=0).load(tmp_path)
    TaskValues(TASKS, seed=0).load(tmp_path / "elsewhere")


FIELDS = {"task_sampling": "value", "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}


@pytest.mark.slow
def test_resumed_run_draws_the_tasks_of_the_one_that_was_not_stopped(make_trainer, tmp_path):
    tasks = Dataset.from_dict({"seed": range(16)})
    whole = make_trainer(train_dataset=tasks, **FIELDS)
    whole.train()
    expected = {name: parameter.detach().clone() for name, parameter in whole.model.named_parameters()}
    assert np.isfinite(whole._task_values.values).sum() >= 8
    assert "tasks/decided_share" in whole.state.log_history[0]
    resumed = make_trainer(train_dataset=tasks, **FIELDS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert all(torch.equal(expected[name], parameter) for name, parameter in resumed.model.named_parameters())
    assert np.array_equal(resumed._task_values.values, whole._task_values.values, equal_nan=True)


def test_stream_of_tasks_is_refused(make_trainer):
    stream = IterableDataset.from_generator(lambda: iter([{"seed": 1}]))
    with pytest.raises(ValueError, match="`train_dataset` is a stream"):
        make_trainer(train_dataset=stream, **FIELDS)
