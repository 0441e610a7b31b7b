"""Tiny networks built in code and made-up episodes, with plain functions that say what a batch of them must give."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from turnppo_hf.models.actor_critic import ActorCritic, critic_from_actor
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.ppo.batch import TurnBatch, stack
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

VOCABULARY = 64


def tiny_actor(model_type="llama", seed=0, **overrides):
    """A causal language model of two layers, 32 wide, float32; wide weights, so that its choices differ."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(model_type, **{**sizes, **overrides})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def tiny_actor_critic(model_type="llama", seed=0):
    """Actor and critic; the critic's head is not zero, so that values differ."""
    actor = tiny_actor(model_type, seed)
    critic = critic_from_actor(actor)
    torch.nn.init.normal_(critic.score.weight, std=0.3)
    return ActorCritic(actor, critic)


def config_for(algorithm="turn_ppo", **fields):
    """A configuration that uses a batch twice, so that the ratio is not one."""
    defaults = {"output_dir": "never-written", "use_cpu": True, "report_to": "none", "num_iterations": 2}
    group = 1 if ALGORITHMS[algorithm].has_critic else 2
    sizes = {"num_generations": group, "generation_batch_size": 8}
    return TurnPPOConfig(**{**defaults, **sizes, "algorithm": algorithm, **fields})


def make_turn(prompt_ids, completion_ids, reward=0.0, penalty=0.0, logprobs=None, state=None):
    logprobs = tuple(-0.5 for _ in completion_ids) if logprobs is None else tuple(logprobs)
    texts = {"observation": "", "completion": "", "action": "", "finish_reason": "stop"}
    return Turn(
        tuple(prompt_ids), tuple(completion_ids), logprobs, reward=reward, penalty=penalty, state=state, **texts
    )


def make_trajectory(turns, stop_reason=StopReason.TERMINATED, bootstrap_ids=None, group=0):
    return Trajectory({}, "made-up", 0, tuple(turns), stop_reason, bootstrap_ids, group=group)


def draw_trajectory(rng, *, num_turns=None, length=None, rewritten=False, stop_reason=None, bootstrap=None, group=0):
    """
    An episode with random ids, rewards and log-probs.

    `rewritten` breaks the history before some turns; `bootstrap` is "extends", "breaks" or "prefix" for a state after
    a cut that continues the last row, rewrites it, or stops inside of it.
    """
    num_turns = num_turns or rng.randint(1, 4)
    prompt, turns = _ids(rng, rng.randint(1, 5)), []
    for number in range(num_turns):
        completion = _ids(rng, length or rng.randint(1, 4))
        logprobs = [rng.uniform(-3, 0) for _ in completion]
        state = f"state {prompt[-1] % 3}"  # few, so that some turns of a group share one and some do not
        turns.append(make_turn(prompt, completion, rng.uniform(-1, 2), rng.choice([0.0, -0.1]), logprobs, state))
        history = prompt + completion
        breaks = rewritten and (number == 0 or rng.random() < 0.5)
        prompt = prompt + _ids(rng, 2) if breaks else history + _ids(rng, rng.randint(1, 3))
    stop_reason = stop_reason or (StopReason.TIME_LIMIT if bootstrap else StopReason.TERMINATED)
    after = {None: None, "extends": history + _ids(rng, 2), "breaks": _ids(rng, 3), "prefix": history[:-1]}
    return make_trajectory(turns, stop_reason, after[bootstrap] and tuple(after[bootstrap]), group)


def draw_trajectories(seed, count=6, **fields):
    """Episodes of every kind, two per group."""
    rng = random.Random(seed)
    return [
        draw_trajectory(
            rng,
            **{
                "rewritten": rng.random() < 0.5,
                "bootstrap": rng.choice([None, None, "extends", "breaks", "prefix"]),
                "group": number // 2,
                **fields,
            },
        )
        for number in range(count)
    ]


def turn_logprobs(actor, turn, temperature=1.0):
    """Log-probs of one turn's sampled tokens from a forward over that turn alone."""
    ids = torch.tensor([turn.prompt_ids + turn.completion_ids])
    logits = actor(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(turn.completion_ids)[:, None])[:, 0]


def state_values(critic, ids, start):
    """V of the states that end with `ids[start]`, `ids[start + 1]`, ... from a forward over these ids alone."""
    return critic(input_ids=torch.tensor([ids])).logits[0, start:, 0]


@torch.no_grad()
def sampled_near(actor, trajectories, seed=0, spread=0.1):
    """The same episodes as if sampled by a policy close to `actor`, so that some ratios are clipped and some not."""
    rng = random.Random(seed)

    def resampled(turn):
        logprobs = turn_logprobs(actor, turn).tolist()
        return replace(turn, sampling_logprobs=tuple(x + rng.gauss(0, spread) for x in logprobs))

    return [replace(item, turns=tuple(map(resampled, item.turns))) for item in trajectories]


def stack_row_per_turn(monkeypatch, trajectories):
    """Lay out one row per turn, as a template that rewrites the history at every turn would."""
    with monkeypatch.context() as patch:
        patch.setattr("turnppo_hf.ppo.batch._Row.holds_prefix_of", lambda *_: False)
        return stack(trajectories)


def prefix_values(batch: TurnBatch):
    """A made-up V of every state, (R, T), that depends on all its tokens, on their places and on nothing else."""
    places = torch.arange(1, batch.input_ids.shape[1] + 1, dtype=torch.float64)
    return torch.sin((batch.input_ids * places.sqrt()).cumsum(1)).float()


def _ids(rng, count):
    return tuple(rng.randint(1, VOCABULARY - 1) for _ in range(count))
