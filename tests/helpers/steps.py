"""One optimizer step as the trainer makes it, in one process: on one rank or several, cut or whole, or broken."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch

from tests.helpers.tiny import draw_trajectories, sampled_near, tiny_actor_critic
from turnppo_hf.ppo.credit import whiten_credit, whitening_sample
from turnppo_hf.trainer.update import Totals, Update

ALGORITHMS = ("turn_ppo", "token_ppo", "grpo", "rloo", "gigpo")


@dataclass
class Step:
    """What one optimizer step computed."""

    credit: object
    sums: dict
    gradients: dict


@cache
def model():
    return tiny_actor_critic()


@cache
def played(seed, **fields):
    """Episodes of every kind, sampled by a policy close to the actor; two per group."""
    return tuple(sampled_near(model().actor, draw_trajectories(seed, **fields), seed))


def run_step(config, batch, *, groups=None, ranks=None, local_whitening=False, local_totals=False, **options):
    """
    One step as the trainer makes it, on one rank or on simulated ones.

    `ranks` are lists of trajectories, empty ones included; `groups` cuts each rank into given micro-batches. The two
    flags break the step as a careless implementation would.
    """
    model().zero_grad(set_to_none=True)
    over = config.whiten_advantages
    shards = [batch.select(rank) for rank in ranks] if ranks else [batch]
    totals = Totals.of(batch)
    parts, sums = [], {}
    with pytest.MonkeyPatch.context() as patch:
        if groups is not None:
            patch.setattr(type(batch), "micro_batches", lambda *_: [torch.tensor(group) for group in groups])
        step = Update(model(), config, **options)
        for shard in shards:
            mine = Totals.of(shard) if local_totals else totals
            if not len(shard):
                parts.append(None)
            elif config.uses_critic:
                credit, critic_sums = step.critic_pass(shard, None, mine)
                parts.append(credit)
                add(sums, critic_sums)
            else:
                parts.append(step.credit_without_critic(shard))
        pairs = [(shard, credit) for shard, credit in zip(shards, parts, strict=True) if credit is not None]
        sample = torch.cat([whitening_sample(shard, credit, over=over) for shard, credit in pairs])
        credits = []
        for shard, credit in pairs:
            reference = None if local_whitening else sample
            credits.append(whiten_credit(shard, credit, over=over, reference=reference))
            mine = Totals.of(shard) if local_totals else totals
            add(sums, step.actor_pass(shard, credits[-1], mine).sums)
    return Step(credits[0], sums, gradients_of(model()))


def add(sums, more):
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value.double()


def gradients_of(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def difference(mine, expected):
    """Largest distance between two steps' gradients of a network, relative to the gradient's norm."""
    assert mine.keys() == expected.keys()
    worst = 0.0
    for network in ("actor.", "critic."):
        names = [name for name in expected if name.startswith(network)]
        if names:
            norm = torch.stack([expected[name].norm() for name in names]).norm()
            gap = torch.stack([(mine[name] - expected[name]).norm() for name in names]).norm()
            assert norm > 1e-4
            worst = max(worst, (gap / norm).item())
    return worst


def assert_same_step(mine, expected, tolerance=2e-6):
    # 2e-6: sums of some hundred float32 terms in another order; the bound of the specification is 1e-6 per sum
    assert difference(mine.gradients, expected.gradients) < tolerance
    for name in ("policy_loss", "value_loss", "clipped", "decisions", "entropy", "approx_kl"):
        if name in expected.sums:
            assert mine.sums[name].item() == pytest.approx(expected.sums[name].item(), rel=1e-5, abs=1e-6), name


class GivenOutputs(torch.nn.Module):
    """Answers with given tensors instead of networks, so that their gradients can be read."""

    def __init__(self, values, logprobs):
        super().__init__()
        self.values, self.logprobs = values, logprobs

    def forward(self, mode, batch, temperature=1.0, *, entropy_gradient=False):
        return self.values if mode == "critic" else (self.logprobs, torch.zeros_like(self.logprobs))


def run_given(config, batch, logprobs=None, values=None):
    """A step on given outputs of the networks: their gradients are exactly what the losses ask for."""
    values = torch.randn(batch.input_ids.shape) if values is None else values
    values = values.detach().requires_grad_()
    logprobs = (batch.old_logprobs if logprobs is None else logprobs).detach().requires_grad_()
    totals, step = Totals.of(batch), Update(GivenOutputs(values, logprobs), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(batch), "select", lambda self, _: self)
        patch.setattr(type(batch), "micro_batches", lambda self, _: [torch.arange(len(self))])
        if config.uses_critic:
            credit, _ = step.critic_pass(batch, None, totals)
        else:
            credit = step.credit_without_critic(batch)
        credit = whiten_credit(batch, credit, over=config.whiten_advantages)
        sums = step.actor_pass(batch, credit, totals).sums
    return credit, sums, logprobs.grad, values.grad
