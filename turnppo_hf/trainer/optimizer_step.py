"""A rollout batch in, the gradients and figures of one optimizer step out, be it used once or for several updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate.utils import gather_object

from turnppo_hf.ppo.batch import TurnBatch
from turnppo_hf.ppo.credit import Credit, credit_statistics, shared_states, whiten_credit
from turnppo_hf.trainer.distributed import Sharding
from turnppo_hf.trainer.metrics import credit_metrics, ratio_metrics, sampling_metrics, update_metrics
from turnppo_hf.trainer.rollout_batch import RolloutBatch
from turnppo_hf.trainer.step_guard import Findings
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trainer.update import ActorFigures, Totals, Update


@dataclass(frozen=True)
class StepFigures:
    """What a step computed, over all ranks."""

    num_tokens: float  # sampled tokens of the step
    sums: Mapping[str, float]  # of both passes, see [`~turnppo_hf.trainer.update.ActorFigures`]
    # of the rollout batch, in its first update; empty in later ones, before which the policy has moved
    credit: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sampling_gaps: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (tokens,), nats
    log_ratios: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (decisions,), nats, a sample
    findings: Findings = field(default_factory=Findings)  # what is not finite of this rank's rollout batch

    @property
    def losses(self) -> dict[str, float]:
        """The losses of the networks that the step trains."""
        return {name.replace("_", " "): self.sums[name] for name in ("policy_loss", "value_loss") if name in self.sums}

    @property
    def loss(self) -> float:
        """The policy loss plus the value loss."""
        return sum(self.losses.values())

    def metrics(self, *, with_critic: bool) -> dict[str, float]:
        """Return what is logged of the step; `with_critic` where its values are a critic's."""
        of_batch = credit_metrics(self.credit, with_critic=with_critic) if self.credit else {}
        of_update = update_metrics(self.sums, self.num_tokens) | ratio_metrics(self.log_ratios)
        return {**of_batch, **sampling_metrics(self.sampling_gaps), **of_update}


def update_once(update: Update, rollout: RolloutBatch, sharding: Sharding, *, critic_only: bool) -> StepFigures:
    """
    Make the only update of a rollout batch: each network reads it once, and its values and log-probs are the old ones.

    Args:
        update (`Update`): The passes of both networks.
        rollout (`RolloutBatch`): Its credit is set.
        sharding (`Sharding`): Adds over the ranks.
        critic_only (`bool`): Whether the actor's pass is left out.
    """
    update.check_samples(rollout.batch)
    totals, with_critic = Totals.of(rollout.batch, sharding.sum), update.config.uses_critic
    if update.is_off_policy:
        rollout.batch = update.score_logprobs(rollout.batch)
    if with_critic:
        credit, sums = update.critic_pass(rollout.batch, None, totals)
    else:
        credit, sums = update.credit_without_critic(rollout.batch), {}
    rollout.credit, statistics = _whiten(update, rollout.batch, credit)
    actor = ActorFigures() if critic_only else update.actor_pass(rollout.batch, rollout.credit, totals)
    figures = _sum_over_ranks(sums | actor.sums, sharding)
    gaps, log_ratios = _gather(actor.sampling_gaps), _gather(actor.log_ratios)
    return StepFigures(totals.num_tokens, figures, statistics, gaps, log_ratios, update.findings)


def update_again(
    update: Update,
    rollout: RolloutBatch,
    minibatch: torch.Tensor,
    sharding: Sharding,
    *,
    rescores_logprobs: bool,
    critic_only: bool,
) -> StepFigures:
    """
    Make one of several updates of a rollout batch; the first scores it with the weights before all of them.

    Args:
        update (`Update`): The passes of both networks.
        rollout (`RolloutBatch`): Its credit, `old_logprobs` and findings are set by the first update.
        minibatch (`torch.Tensor`): Its trajectories in this update.
        sharding (`Sharding`): Adds over the ranks.
        rescores_logprobs (`bool`): Whether the old log-probs are computed anew, or those at sampling are exact.
        critic_only (`bool`): Whether the actor's pass is left out.
    """
    is_first = rollout.credit is None
    statistics: dict[str, torch.Tensor] = {}
    if rollout.credit is None:
        credit = score(update, rollout, rescores_logprobs)
        rollout.credit, statistics = _whiten(update, rollout.batch, credit)
        # whitening spreads one such number over the batch, so none of its updates can use it
        rollout.findings, update.findings = update.findings, Findings()
    batch, credit = rollout.batch.select(minibatch), rollout.credit.select(minibatch)
    totals = Totals.of(batch, sharding.sum)
    sums = update.critic_pass(batch, credit, totals)[1] if update.config.uses_critic else {}
    actor = ActorFigures() if critic_only else update.actor_pass(batch, credit, totals)
    figures = _sum_over_ranks(sums | actor.sums, sharding)
    sampling_gaps = _gather(actor.sampling_gaps) if is_first else torch.zeros(0)
    findings = rollout.findings | update.findings.of(minibatch)
    return StepFigures(totals.num_tokens, figures, statistics, sampling_gaps, _gather(actor.log_ratios), findings)


def score(update: Update, rollout: RolloutBatch, rescores_logprobs: bool) -> Credit:
    """Read values and log-probs before the first of several updates; return the credit, and set `old_logprobs`."""
    update.check_samples(rollout.batch)
    if rescores_logprobs or update.is_off_policy:
        rollout.batch = update.score_logprobs(rollout.batch)
    if update.config.uses_critic:
        credit, _ = update.critic_pass(rollout.batch, None, None)
    else:
        credit = update.credit_without_critic(rollout.batch)
    return credit


def pick_minibatch(num_trajectories: int, args: TurnPPOConfig, batch_number: int, update_number: int) -> torch.Tensor:
    """
    Pick the trajectories of one of several updates; the order is another one in every pass, the same after a resume.

    Args:
        num_trajectories (`int`): Of this rank's rollout batch.
        args ([`TurnPPOConfig`]): The run's seed, and into how many minibatches a pass is cut.
        batch_number (`int`), update_number (`int`): The rollout batch, and its update from 0.

    Returns:
        `torch.Tensor`: indices.
    """
    iteration, part = divmod(update_number, args.num_minibatches)
    seed = (args.seed, 2, batch_number, iteration, args.process_index)
    order = np.random.default_rng(seed).permutation(num_trajectories)
    return torch.from_numpy(np.array_split(order, args.num_minibatches)[part])


def _sum_over_ranks(sums: Mapping[str, torch.Tensor], sharding: Sharding) -> dict[str, float]:
    """Add the sums of all ranks, of which some may lack names that others have."""
    names = sorted({name for part in gather_object([list(sums)]) for name in part})
    mine = [sums[name].cpu().double() if name in sums else torch.zeros((), dtype=torch.float64) for name in names]
    total = sharding.sum(torch.stack(mine)) if mine else torch.zeros(0)
    return dict(zip(names, total.tolist(), strict=True))


def _whiten(update: Update, batch: TurnBatch, credit: Credit) -> tuple[Credit, dict[str, torch.Tensor]]:
    """Whiten with the statistics of all ranks; return these as well."""
    over = str(update.config.whiten_advantages)
    mine = credit_statistics(batch, credit, over=over)
    if update.algorithm.credits_states:
        mine["shared_states"] = shared_states(batch)
    if update.is_off_policy:
        mine["turn_weights"] = update.turn_weights(batch)[batch.turn_mask.bool()].cpu()
    parts = gather_object([mine])
    statistics = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    reference = statistics["sample"].to(credit.advantages.device)
    return whiten_credit(batch, credit, over=over, reference=reference), statistics


def _gather(mine: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(0), *gather_object([mine.cpu()])])
