"""A batch in, gradients out: the passes of critic and actor, cut into micro-batches that change nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from turnppo_hf.models.actor_critic import positions_of, sampled_logprobs
from turnppo_hf.models.adapters import as_reference, is_adapted
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.ppo.batch import TurnBatch, stack
from turnppo_hf.ppo.credit import Credit, VTrace, critic_credit, decision_values, group_credit, response_credit
from turnppo_hf.ppo.losses import (
    clip_fraction,
    clipped_policy_loss,
    importance_weights,
    kl_divergence,
    loss_weights,
    value_loss,
)
from turnppo_hf.trainer.step_guard import Findings, finite_rows
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

Sums = dict[str, torch.Tensor]
MAX_RATIOS = 4096  # that a rank keeps of an update, for their quantiles


@dataclass(frozen=True)
class Totals:
    """What the optimizer step's losses are divided by: counts over all ranks and micro-batches."""

    num_trajectories: float
    num_turns: float
    num_tokens: float

    @classmethod
    def of(cls, batch: TurnBatch, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda counts: counts) -> Totals:
        """Count a batch; `reduce` adds the counts of all ranks."""
        counts = torch.tensor([len(batch), batch.num_turns, batch.num_tokens], dtype=torch.float64)
        # an empty step divides zero by one, not by zero
        return cls(*reduce(counts).clamp(min=1.0).tolist())


@dataclass(frozen=True)
class ActorFigures:
    """What the actor's pass over a batch computed on this rank; empty where there was none."""

    # to be added over ranks: `policy_loss`, `clipped`, `decisions`, `approx_kl`, `entropy`, `ref_kl`, the first two
    # moments of the log-ratio, and the `row_tokens` and `positions` computed
    sums: Sums = field(default_factory=dict)
    # log-prob of each sampled token in this pass minus that at sampling, nats, (tokens,)
    sampling_gaps: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    # of decisions in this pass to those before the update, nats: all, or every k-th so that they are at most
    # `MAX_RATIOS`; none where a batch is used once and all of them are 0
    log_ratios: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


class Update:
    """
    The two passes of an optimizer step.

    Args:
        model (`nn.Module`):
            An [`~turnppo_hf.models.actor_critic.ActorCritic`], wrapped or not; called as `model(mode, batch, ...)`.
        config ([`TurnPPOConfig`]):
            The algorithm and its coefficients.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Frozen model of the KL term, or the actor itself where its adapter can be switched off.
        backward (`Callable`, *optional*):
            Called with each micro-batch's loss; the accelerator's in training.
        autocast (`Callable`, *optional*):
            Makes the context of each forward.
        largest (`Callable`, *optional*):
            Returns the largest of all ranks' numbers, where each forward and backward of a rank waits for the others'.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TurnPPOConfig,
        *,
        ref_model: PreTrainedModel | None = None,
        backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        largest: Callable[[int], int] = lambda number: number,
    ) -> None:
        self.model = model
        self.config = config
        self.algorithm = ALGORITHMS[config.algorithm]
        self.is_off_policy = config.off_policy_credit != "none"
        self.ref_model = ref_model
        self.backward = backward
        self.autocast = autocast
        self.largest = largest
        self.findings = Findings()  # of the passes made, by index into the batch of each

    def credit_without_critic(self, batch: TurnBatch) -> Credit:
        """Compute the credit of group baselines, which takes no pass at all."""
        batch, config = self._with_finite_rewards(batch), self.config
        credit = group_credit(
            batch,
            baseline=self.algorithm.baseline,
            scale_rewards=config.scale_rewards,
            state_omega=config.gigpo_omega if self.algorithm.credits_states else 0.0,
            state_gamma=config.gigpo_gamma,
        )
        return self._with_finite_credit(credit)

    def check_samples(self, batch: TurnBatch) -> None:
        """Note the trajectories whose log-probs at sampling are not finite."""
        self._check_rows("log-probs at sampling", batch, batch.sampling_logprobs)

    def critic_pass(self, batch: TurnBatch, credit: Credit | None, totals: Totals | None) -> tuple[Credit, Sums]:
        """
        Run the critic over a batch.

        Args:
            batch (`TurnBatch`): Whole trajectories.
            credit (`Credit`, *optional*): The credit from the values before the update. `None` takes this forward's
                own values as the old ones, so that a batch that is used once is read once.
            totals (`Totals`, *optional*): With them the value loss is differentiated; without them the pass only
                scores.

        Returns:
            `tuple[Credit, dict]`: the credit of the batch, and the sum `value_loss` over this rank.
        """
        parts: list[tuple[torch.Tensor, Credit]] = []
        sums: Sums = defaultdict(lambda: torch.zeros((), device=batch.turn_mask.device))
        groups, missing = self._micro_batches(batch)
        for group in groups:
            part = batch.select(group)
            with torch.set_grad_enabled(totals is not None), self.autocast():
                values = self.model("critic", part)
            decisions = decision_values(part, values, self.algorithm.decision)
            self.findings.check("values", finite_rows(decisions), group)
            mine = self._credit(part, values, decisions, group) if credit is None else credit.select(group)
            if totals is not None:
                loss = value_loss(
                    decisions,
                    mine.values,
                    mine.returns,
                    mine.mask,
                    cliprange_value=self.config.cliprange_value,
                    denominator=totals.num_turns if mine.per == "turn" else totals.num_tokens,
                )
                if mine.within is not None:
                    loss = loss + self._value_loss_within(part, values, mine.within, totals)
                self.backward(loss)
                sums["value_loss"] += loss.detach()
            parts.append((group, mine))
        self._keep_up("critic", batch, missing, differentiate=totals is not None)
        if not parts:  # a rank without episodes has a credit all the same: empty tables
            values = torch.zeros_like(batch.sampling_logprobs)
            decisions = decision_values(batch, values, self.algorithm.decision)
            return self._credit(batch, values, decisions, torch.arange(0)), sums
        return Credit.merge(parts, len(batch)), sums

    def _value_loss_within(
        self, part: TurnBatch, values: torch.Tensor, within: Credit, totals: Totals
    ) -> torch.Tensor:
        """Compute the value loss at the tokens of each response after the first, whose state is the turn's own."""
        is_later = part.pack_tokens(part.completion_mask * ~part.first_tokens())
        return value_loss(
            decision_values(part, values, "token"),
            within.values,
            within.returns,
            is_later,
            cliprange_value=self.config.cliprange_value,
            denominator=max(totals.num_tokens - totals.num_turns, 1.0),
        )

    def actor_pass(self, batch: TurnBatch, credit: Credit, totals: Totals) -> ActorFigures:
        """
        Differentiate the policy loss of a batch.

        Args:
            batch (`TurnBatch`): Whole trajectories; its `old_logprobs` are used where the batch is used more than
                once.
            credit (`Credit`): Its credit; the table `whitened` enters the loss.
            totals (`Totals`): The step's denominators.

        Returns:
            [`ActorFigures`]: of this rank.
        """
        sums: Sums = defaultdict(lambda: torch.zeros((), device=batch.turn_mask.device))
        none = batch.sampling_logprobs.new_zeros(0)
        gaps, log_ratios = [none], [none]
        groups, missing = self._micro_batches(batch)
        for group in groups:
            part = batch.select(group)
            loss, logprobs, log_ratio = self._policy_loss(part, credit.select(group), totals, sums)
            self._check_rows("log-probs", part, logprobs.detach(), group)
            self.backward(loss)
            gaps.append((logprobs.detach() - part.sampling_logprobs)[part.completion_mask.bool()])
            if self.config.updates_per_batch > 1:
                log_ratios.append(log_ratio)
            sums["row_tokens"] += part.attention_mask.sum()
            with self.autocast():
                sums["positions"] += positions_of(self.model, part)
        self._keep_up("actor", batch, missing)
        ratios = torch.cat(log_ratios)
        return ActorFigures(sums, torch.cat(gaps), ratios[:: max(1, math.ceil(len(ratios) / MAX_RATIOS))])

    def idle(self, *names: str, device: torch.device, differentiate: bool = True) -> None:
        """Run networks over one made-up turn and add a gradient of zero, in the order of a micro-batch."""
        batch = _made_up_batch().to(device)
        loss = torch.zeros((), device=device)
        with torch.set_grad_enabled(differentiate), self.autocast():
            for name in names:
                output = self.model(name, batch)
                loss = loss + (output[0] if name == "actor" else output).sum() * 0.0
                if name == "actor" and self.ref_model is not None and differentiate:
                    self._ref_logprobs(batch)
        if differentiate:
            self.backward(loss)

    def _micro_batches(self, batch: TurnBatch) -> tuple[list[torch.Tensor], int]:
        """Cut a batch; return as well how many passes more the rank with the most micro-batches makes."""
        groups = batch.micro_batches(self.config.max_tokens_per_micro_batch)
        return groups, self.largest(len(groups)) - len(groups)

    def _keep_up(self, name: str, batch: TurnBatch, missing: int, *, differentiate: bool = True) -> None:
        """Make the passes that other ranks wait for."""
        for _ in range(missing):
            self.idle(name, device=batch.turn_mask.device, differentiate=differentiate)

    @torch.no_grad()
    def score_logprobs(self, batch: TurnBatch) -> TurnBatch:
        """Recompute `old_logprobs` with the current weights."""
        old = torch.zeros_like(batch.old_logprobs)
        groups, missing = self._micro_batches(batch)
        for group in groups:
            part = batch.select(group)
            with self.autocast():
                logprobs, _ = self.model("actor", part, self.config.temperature)
            self._check_rows("log-probs", part, logprobs, group)
            old[batch.rows_of(group), : logprobs.shape[1]] = logprobs
        self._keep_up("actor", batch, missing, differentiate=False)
        return replace(batch, old_logprobs=old)

    def _policy_loss(
        self, part: TurnBatch, credit: Credit, totals: Totals, sums: Sums
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss of a micro-batch, its log-probs and its decisions' log-ratios; add to `sums`."""
        config = self.config
        with self.autocast():
            logprobs, entropies = self.model(
                "actor", part, config.temperature, entropy_gradient=config.entropy_coef > 0.0
            )
        once = config.updates_per_batch == 1
        old_logprobs = logprobs.detach() if once else part.old_logprobs
        level = str(config.importance_sampling_level)
        weights = loss_weights(
            part.turn_lengths,
            part.turn_mask,
            loss_aggregation=config.loss_aggregation,
            importance_sampling_level=level,
            num_trajectories=totals.num_trajectories,
            num_turns=totals.num_turns,
            num_tokens=totals.num_tokens,
        )
        log_ratio = (logprobs - old_logprobs) * part.completion_mask
        if level == "token":
            mask, weights = part.completion_mask, part.to_tokens(weights)
            spread = part.to_tokens if credit.per == "turn" else part.unpack_tokens
            ratio, advantages = log_ratio, spread(credit.whitened)
            if credit.within is not None:
                advantages = advantages + config.token_advantage_coef * part.unpack_tokens(credit.within.whitened)
        else:
            mask, advantages = part.turn_mask, credit.whitened
            ratio = part.sum_per_turn(log_ratio)
            if level == "turn_geometric":
                ratio = ratio / part.turn_lengths.clamp(min=1)
        if config.vllm_importance_sampling_correction and not self.is_off_policy:  # V-trace has weighed each turn
            weights = weights * self._correction(part, old_logprobs)
        high = config.epsilon if config.epsilon_high is None else config.epsilon_high
        clip = {"epsilon": config.epsilon, "epsilon_high": high}
        loss = clipped_policy_loss(ratio, advantages, weights, mask, **clip)
        sums["policy_loss"] += loss.detach()
        entropy = (entropies * part.completion_mask).sum()
        if config.entropy_coef > 0.0:
            loss = loss - config.entropy_coef * entropy / totals.num_tokens
        if self.ref_model is not None:
            ref_logprobs = self._ref_logprobs(part)
            kl = (kl_divergence(logprobs, ref_logprobs, estimator=config.kl_estimator) * part.completion_mask).sum()
            sums["ref_kl"] += kl.detach()
            loss = loss + config.beta * kl / totals.num_tokens
        with torch.no_grad():
            real = ratio[mask.bool()]
            sums["entropy"] += entropy
            sums["decisions"] += mask.sum()
            sums["clipped"] += clip_fraction(ratio, mask, **clip) * mask.sum()
            sums["log_ratio"] += real.sum()
            sums["log_ratio_squared"] += real.square().sum()
            # of old from new, the estimator that is never negative: r - 1 - log r with r = new / old
            sums["approx_kl"] += kl_divergence(old_logprobs, logprobs, estimator="k3")[
                part.completion_mask.bool()
            ].sum()
        return loss, logprobs, real

    @torch.no_grad()
    def _ref_logprobs(self, part: TurnBatch) -> torch.Tensor:
        with self.autocast(), as_reference(self.ref_model) as model:
            if is_adapted(model):  # the actor itself, of which an own forward would not gather what the pair holds
                return self.model("actor", part, self.config.temperature)[0]
            return sampled_logprobs(model, part, self.config.temperature)[0]

    def _correction(self, part: TurnBatch, old_logprobs: torch.Tensor) -> torch.Tensor:
        """Weigh what was sampled by other weights, or by an engine that rounds: shaped as the loss's terms."""
        config = self.config
        gaps = (old_logprobs - part.sampling_logprobs) * part.completion_mask
        clip_max = config.vllm_importance_sampling_clip_max
        if config.vllm_importance_sampling_mode == "token_truncate":
            return importance_weights(gaps, clip_max=clip_max)
        factors = importance_weights(part.sum_per_turn(gaps), clip_max=clip_max)
        return part.to_tokens(factors) if config.importance_sampling_level == "token" else factors

    def _credit(self, part: TurnBatch, values: torch.Tensor, decisions: torch.Tensor, group: torch.Tensor) -> Credit:
        """Compute credit from the critic's values at every token, and from these where decisions are made."""
        config, decision = self.config, self.algorithm.decision
        gamma, lam = (getattr(config, name) for name in self.algorithm.discounts)
        bootstraps = part.at_bootstrap(values)
        self.findings.check("values", bootstraps.isfinite(), group)
        part = self._with_finite_rewards(part, group)
        vtrace = None
        if self.is_off_policy:
            vtrace = VTrace(self.turn_weights(part), config.vtrace_rho_max, config.vtrace_c_max)
        credit = critic_credit(
            part,
            _finite(decisions),
            _finite(bootstraps),
            decision=decision,
            gamma=gamma,
            lam=lam,
            vtrace=vtrace,
        )
        if config.token_advantage_coef > 0.0:
            tokens, (gamma, lam) = decision_values(part, values, "token"), (config.token_gamma, config.token_lam)
            within = response_credit(part, _finite(tokens), credit.returns, gamma=gamma, lam=lam)
            credit = replace(credit, within=within)
        return self._with_finite_credit(credit, group)

    def turn_weights(self, batch: TurnBatch) -> torch.Tensor:
        """Return how much likelier each turn is by `old_logprobs` than it was at sampling, `(B, N)`."""
        gaps = batch.sum_per_turn((batch.old_logprobs - batch.sampling_logprobs) * batch.completion_mask)
        if self.config.importance_sampling_level == "turn_geometric":
            gaps = gaps / batch.turn_lengths.clamp(min=1)
        return importance_weights(gaps, clip_max=math.inf)

    # a step whose numbers are not finite is skipped by all ranks together; until then each rank makes the passes that
    # the others wait for, with zeros in place of such numbers

    def _with_finite_rewards(self, part: TurnBatch, group: torch.Tensor | None = None) -> TurnBatch:
        self.findings.check("rewards", finite_rows(part.turn_rewards), group)
        return replace(part, turn_rewards=_finite(part.turn_rewards))

    def _with_finite_credit(self, credit: Credit, group: torch.Tensor | None = None) -> Credit:
        for name in ("returns", "advantages"):  # squares, because the value loss and the whitening square them
            self.findings.check(f"squared {name}", finite_rows(getattr(credit, name).square()), group)
        tables: dict[str, Any] = {name: _finite(getattr(credit, name)) for name in Credit.TABLES}
        within = None if credit.within is None else self._with_finite_credit(credit.within, group)
        return replace(credit, **tables, within=within)

    def _check_rows(self, name: str, batch: TurnBatch, table: torch.Tensor, group: torch.Tensor | None = None) -> None:
        """Note the trajectories whose sampled tokens have numbers, `(R, T)`, that are not finite."""
        finite = torch.ones(len(batch), dtype=torch.bool, device=table.device)
        broken = ~table.isfinite() & batch.completion_mask.bool()
        finite[batch.row_trajectories[broken.any(1)]] = False
        self.findings.check(name, finite, group)


def _finite(table: torch.Tensor) -> torch.Tensor:
    return table.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _made_up_batch() -> TurnBatch:
    """One turn of one token after a prompt of one."""
    turn = Turn((0,), (0,), (0.0,), "", "", "", reward=0.0, penalty=0.0, finish_reason="stop")
    return stack([Trajectory({}, "", 0, (turn,), StopReason.TERMINATED)])
