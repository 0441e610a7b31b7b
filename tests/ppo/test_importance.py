"""Truncated importance weights: by hand, in the loss of a step, and what is logged of the mismatch."""

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers.steps import run_given
from tests.helpers.tiny import config_for, draw_trajectories
from tests.trainer.test_turn_ppo_trainer import train_logs
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.losses import importance_weights
from turnppo_hf.trainer.metrics import ratio_metrics, sampling_metrics

ON_NAME = "vllm_importance_sampling_correction"
ON = {ON_NAME: True, "num_iterations": 1, "entropy_coef": 0.0}


def test_weights_by_hand():
    gaps = torch.tensor([0.0, math.log(2), math.log(5), -math.log(4), 1000.0], requires_grad=True)
    weights = importance_weights(gaps, clip_max=3.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, 3.0, 0.25, 3.0]))
    assert not weights.requires_grad


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("level", "mode"), [("turn", "turn_truncate"), ("token", "turn_truncate"), ("token", "token_truncate")]
)
def test_step_weighs_each_term_by_trainer_over_sampler(level, mode, once):
    batch = stack(draw_trajectories(3))
    settings = {"importance_sampling_level": level, **ON, "num_iterations": 1 if once else 2}
    gaps = 0.8 * torch.randn(batch.input_ids.shape) * batch.completion_mask
    logprobs = batch.sampling_logprobs + gaps
    batch = type(batch)(**{**vars(batch), "old_logprobs": logprobs})  # as recomputed before the first update
    values = torch.randn(batch.input_ids.shape)
    plain = run_given(config_for(**{**settings, ON_NAME: False}), batch, logprobs, values)
    weighed = run_given(
        config_for(**settings, vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=1.5),
        batch, logprobs, values,
    )  # fmt: skip
    if mode == "token_truncate":
        factors = gaps.exp().clamp(max=1.5)
    else:
        factors = batch.to_tokens(batch.sum_per_turn(gaps).exp().clamp(max=1.5))
    assert (factors[batch.completion_mask.bool()] == 1.5).any() and (factors[batch.completion_mask.bool()] < 1).any()
    torch.testing.assert_close(weighed[2], plain[2] * factors, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weighed[3], plain[3])  # the critic's loss is not weighed
    assert not torch.allclose(weighed[2], plain[2], atol=1e-3)  # control


def test_step_without_mismatch_is_the_plain_one():
    batch = stack(draw_trajectories(3))
    values = torch.randn(batch.input_ids.shape)
    plain, weighed = (run_given(config_for(**{**ON, ON_NAME: on}), batch, values=values) for on in (False, True))
    torch.testing.assert_close(weighed[2], plain[2], atol=0, rtol=0)


def test_mismatch_by_hand():
    logged = sampling_metrics(torch.tensor([0.0, 0.05, -0.2, 0.3]))
    assert logged == pytest.approx(
        {
            "sampling/logprob_gap_mean": 0.1375,
            "sampling/logprob_gap_max": 0.3,
            "sampling/ratio_outside_share": 0.5,  # e^-0.2 = 0.82 and e^0.3 = 1.35
        }
    )
    assert sampling_metrics(torch.zeros(0)) == {}


def test_tails_of_the_ratios_by_hand():
    ratios = torch.linspace(-1.0, 1.0, 201).flip(0)
    assert ratio_metrics(ratios) == pytest.approx({"log_ratio/p01": -0.98, "log_ratio/p99": 0.98}, abs=1e-6)
    broken = torch.cat([ratios, torch.tensor([float("nan"), float("inf")])])  # its step is skipped, and still logged
    assert ratio_metrics(broken) == ratio_metrics(ratios)
    assert ratio_metrics(torch.zeros(0)) == ratio_metrics(broken[-2:]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("minibatches", [1, 2])
def test_mismatch_is_logged_once_a_batch_also_where_it_is_nothing(make_trainer, minibatches):
    trainer = make_trainer(num_minibatches=minibatches, max_steps=2 * minibatches)
    trainer.train()
    logged = [entry.get("sampling/logprob_gap_max") for entry in train_logs(trainer)]
    assert [value is not None for value in logged] == [number % minibatches == 0 for number in range(2 * minibatches)]
    assert max(value for value in logged if value is not None) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("minibatches", [1, 2])
def test_sampler_that_reports_other_logprobs_is_seen_and_is_no_ratio(make_trainer, minibatches):
    def shifted(trajectory):
        return replace(
            trajectory,
            turns=tuple(
                replace(turn, sampling_logprobs=tuple(x - math.log(1.5) for x in turn.sampling_logprobs))
                for turn in trajectory.turns
            ),
        )

    trainer = make_trainer(num_minibatches=minibatches, max_steps=minibatches, **{ON_NAME: True})
    collect = trainer._play_rollout_batch
    trainer._play_rollout_batch = lambda rows, number: [shifted(item) for item in collect(rows, number)]
    trainer.train()
    first = train_logs(trainer)[0]
    assert first["sampling/logprob_gap_mean"] == pytest.approx(math.log(1.5), abs=1e-4)
    assert first["sampling/ratio_outside_share"] == 1.0
    assert abs(first["log_ratio/mean"]) < 1e-5  # old log-probs are the trainer's own
