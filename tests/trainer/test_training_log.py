"""What an entry of the training log has of the steps and batches since the last one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.helpers.tiny import config_for, make_trajectory, make_turn
from turnppo_hf.rollout.worker import RolloutTiming
from turnppo_hf.trainer.metrics import checked_names
from turnppo_hf.trainer.training_log import TrainingLog


def test_entry_has_the_mean_the_largest_the_sum_or_the_last():
    log = TrainingLog(config_for())
    for gap, rate in ((0.9, 0.1), (math.nan, 0.2), (0.1, 0.3)):
        figures = {"sampling/logprob_gap_max": gap, "off_policy/weight_max": gap, "entropy": gap, "of_the_users": gap}
        log.add_step(figures, {"actor": gap}, {"learning_rate": rate})
    log.add_step(None, {}, {"learning_rate": 0.4})
    log.add_step(None, {}, {"learning_rate": 0.5})
    entry = log.take()
    assert entry["sampling/logprob_gap_max"] == entry["off_policy/weight_max"] == 0.9
    assert entry["entropy"] == entry["of_the_users"] == entry["grad_norm/actor"] == pytest.approx(0.5)
    assert (entry["updates/skipped"], entry["learning_rate"]) == (2, 0.5)
    assert math.isnan(entry["loss"])
    assert log.take() == {}


def test_environments_are_told_apart_in_batches_that_hold_one_of_them():
    log = TrainingLog(config_for(), is_mixed=True)
    for names in ("ab", "a"):
        played = [make_trajectory([make_turn((1,), (2,), 1.0 if name == "b" else len(names))]) for name in names]
        played = [replace(item, environment=name) for item, name in zip(played, names, strict=True)]
        log.add_rollout(played, RolloutTiming(), 1.0, {})
    entry = log.take()
    assert (entry["reward/a"], entry["reward/b"]) == (1.5, 1.0)


@pytest.mark.parametrize(
    "name", ["reward", "loss", "num_tokens", "epoch", "value/turn_3", "stop/solved", "rewards/f/mean"]
)
def test_reward_function_that_logs_a_figure_of_the_run_is_refused(name):
    with pytest.raises(ValueError, match=f"logs '{name}'.* such as \"mine/{name}\""):
        TrainingLog(config_for()).add_rollout(
            [make_trajectory([make_turn((1,), (2,))])], RolloutTiming(), 1.0, {name: 1.0}
        )
    assert checked_names({"judged": 1.0, f"mine/{name}": 2.0}) == {"judged": 1.0, f"mine/{name}": 2.0}
