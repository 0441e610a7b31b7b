"""What a critic of the actor's first blocks costs and explains: a critic's pass alone, over episodes played once.

`python benchmarks/depths.py [--model MODEL] [--depths N ...] [--episodes N] [--updates N] [--json]`. The actor
of `--model` plays the training split of its environment at temperature 1; half of the episodes train a critic of each
depth from the same actor and a head of zero, as the trainer would without moving the actor, and the other half judges
it. Depth 0 stands for all blocks.

- `pass_cpu_s`: a forward and a backward of the critic over the training half, and the optimizer's step.
- `kept_mib`: what the forward keeps for the backward, of the largest micro-batch; `state_mib`: weights, gradients and
  both moments of AdamW.
- `explained_variance`: of the discounted returns that followed, on the episodes that it was not trained on.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from harness import parser_for, run, spread

from turnppo_hf import TurnPPOAgent, TurnPPOConfig
from turnppo_hf.models.actor_critic import ActorCritic, critic_from_actor
from turnppo_hf.models.critic_layers import depth_of
from turnppo_hf.ppo.batch import TurnBatch, stack
from turnppo_hf.trainer.update import Totals, Update
from turnppo_hf.trajectory import StopReason, Trajectory

GAMMA = 0.99


def config_of(**settings: Any) -> TurnPPOConfig:
    """The trainer's defaults, and rows as many as fit."""
    sizes = {"generation_batch_size": 8, "max_tokens_per_micro_batch": 4096}
    return TurnPPOConfig("never-written", report_to="none", gamma=GAMMA, **sizes, **settings)


def play(agent: TurnPPOAgent, episodes: int) -> list[Trajectory]:
    """Play tasks of the training split."""
    name, factory = agent.environment(split="train")
    tasks = [{"seed": seed} for seed in range(episodes)]
    played = agent.play_tasks(factory, tasks, temperature=1.0, name=name)
    return [item for item in played if item.stop_reason is not StopReason.ERROR]


def explained_variance(networks: ActorCritic, batch: TurnBatch) -> float:
    """Of the returns after each turn, by the values before it."""
    credit, _ = Update(networks, config_of(lam=1.0)).critic_pass(batch, None, None)
    real = credit.mask.bool()
    values, returns = credit.values[real], credit.returns[real]
    return float(1 - (returns - values).var() / returns.var())


def kept_mib(networks: ActorCritic, batch: TurnBatch) -> float:
    """What a forward of the largest micro-batch keeps beside the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in networks.critic.parameters()}  # type: ignore[union-attr]
    kept: dict[int, int] = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    groups = batch.micro_batches(config_of().max_tokens_per_micro_batch)
    largest = max((batch.select(group) for group in groups), key=lambda part: part.num_positions)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        networks("critic", largest).sum()
    return sum(kept.values()) / 2**20


def measure_depth(
    agent: TurnPPOAgent, depth: int, halves: list[TurnBatch], updates: int, rate: float
) -> dict[str, Any]:
    """Train a critic of one depth."""
    train, held_out = halves
    networks = ActorCritic(agent.actor, critic_from_actor(agent.actor, layers=depth or None)).train()
    assert networks.critic is not None
    weights = list(networks.critic.parameters())
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=True)
    update, totals, seconds, curve = Update(networks, config_of()), Totals.of(train), [], []
    figures: dict[str, Any] = {"kept_mib": kept_mib(networks, train)}
    for number in range(1, updates + 1):
        start = time.process_time()
        update.critic_pass(train, None, totals)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
        if number % max(updates // 5, 1) == 0:
            curve.append(explained_variance(networks, held_out))
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return {
        "parameters": sum(weight.numel() for weight in weights),
        "pass_cpu_s": spread(seconds),
        **figures,
        "state_mib": 4 * size / 2**20,
        "explained_variance": curve[-1],
        "explained_variance_best": max(curve),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Play, then train a critic of each depth."""
    agent = TurnPPOAgent.from_pretrained(options.model, device="cpu")
    episodes, updates = (8, 2) if options.smoke else (options.episodes, options.updates)
    played = play(agent, episodes)
    halves = [stack(played[: episodes // 2]), stack(played[episodes // 2 :])]
    depths = {"all" if depth == 0 else str(depth): depth for depth in options.depths}
    figures = {"model": options.model, "blocks": depth_of(agent.actor.config), "episodes": len(played)}
    figures |= {"updates": updates, "learning_rate": options.rate}
    found = {name: measure_depth(agent, depth, halves, updates, options.rate) for name, depth in depths.items()}
    return {**figures, "depths": found}


if __name__ == "__main__":
    parser = parser_for(__doc__)
    parser.add_argument("--model", default="tiny", help="an agent with an environment (default: %(default)s)")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 0], help="blocks, 0 for all (%(default)s)")
    parser.add_argument("--episodes", type=int, default=128, help="half of them for training (%(default)s)")
    parser.add_argument("--updates", type=int, default=30, help="updates of each critic (%(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (%(default)s)")
    run("depths", parser, measure)
