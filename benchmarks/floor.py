"""The least that a step of turn-level PPO costs: straight-line code with nothing in it that could be left out.

Actor and critic are the models that the trainer takes. Responses are sampled together, their keys and values stay from
turn to turn; each network makes one forward and one backward; the head runs at sampled tokens; log-probs and values of
the training forwards are the old ones; AdamW is fused. All episodes have the same lengths, so that nothing is padded
and no mask is made.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, CacheLayerMixin
from workload import Script, Workload, system_prompt

from turnppo_hf.generation.slot_cache import cache_argument


class _Layer(CacheLayerMixin):
    """Keys and values of all episodes in one buffer that never grows."""

    is_sliding = False

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.length = columns, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads, _, size = key_states.shape
        self.keys, self.values = key_states.new_empty(2, batch, heads, self.columns, size)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.columns


class Floor:
    """A step at a time; `step` returns its CPU seconds by phase."""

    def __init__(
        self,
        actor: PreTrainedModel,
        critic: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        workload: Workload,
        learning_rate: float = 1e-6,
        critic_learning_rate: float = 1e-5,
    ) -> None:
        self.actor, self.critic, self.tokenizer, self.workload = actor, critic, tokenizer, workload
        self.environments = [Script(workload) for _ in range(workload.episodes)]
        self.opening = tokenizer.apply_chat_template(system_prompt(workload), tokenize=False)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(actor.parameters()), "lr": learning_rate},
                {"params": list(critic.parameters()), "lr": critic_learning_rate},
            ],
            weight_decay=0.0,
            fused=True,
        )

    def step(self, number: int) -> dict[str, float]:
        """Play the episodes of step `number` and train on them."""
        start = time.process_time()
        ids, rewards = self.rollout(number)
        middle = time.process_time()
        self.update(ids, rewards)
        return {"rollout": middle - start, "scoring": 0.0, "update": time.process_time() - middle}

    @torch.no_grad()
    def rollout(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids `(B, T)` and rewards `(B, N)`."""
        work, device = self.workload, self.actor.device
        texts = [
            f"{self.opening} <|user|> {world.reset(seed=number * work.episodes + index)[0]} <|end|> <|assistant|>"
            for index, world in enumerate(self.environments)
        ]
        cache = Cache(layers=[_Layer(work.episode_tokens) for _ in range(work.layers)])
        argument = cache_argument(self.actor)
        pieces, rewards = [], []
        token = torch.empty(len(texts), 0, dtype=torch.long, device=device)
        for _ in range(work.turns):
            prompt = self._encode(texts)
            pieces.append(prompt)
            fed = torch.cat([token, prompt], dim=1)  # the last sampled token has not been read yet
            for _ in range(work.action_tokens):
                logits = self.actor(input_ids=fed, logits_to_keep=1, **{argument: cache}).logits[:, -1]
                fed = token = torch.multinomial(torch.softmax(logits, dim=-1), 1)
                pieces.append(token)
            actions = self.tokenizer.batch_decode(torch.cat(pieces[-work.action_tokens :], dim=1))
            replies = [world.step(action) for world, action in zip(self.environments, actions, strict=True)]
            rewards.append([reply[1] for reply in replies])
            texts = [f"<|end|> <|user|> {reply[0]} <|end|> <|assistant|>" for reply in replies]
        return torch.cat(pieces, dim=1), torch.tensor(rewards, device=device).T

    def update(self, ids: torch.Tensor, rewards: torch.Tensor, gamma: float = 0.99, lam: float = 0.9) -> None:
        """One forward and backward of each network, one optimizer step."""
        work = self.workload
        per_turn = work.observation_tokens + work.action_tokens
        states = work.first_prompt - 1 + per_turn * torch.arange(work.turns, device=ids.device)
        # the positions that predict a sampled token: each state and all but the last token of its response
        predicting = (states[:, None] + torch.arange(work.action_tokens, device=ids.device)).reshape(-1)
        values = self.critic(input_ids=ids, use_cache=False).logits[:, states, 0]
        old = values.detach()
        deltas = rewards + gamma * torch.nn.functional.pad(old[:, 1:], (0, 1)) - old
        advantages, carry = torch.empty_like(deltas), torch.zeros_like(deltas[:, 0])
        for turn in reversed(range(work.turns)):
            carry = advantages[:, turn] = deltas[:, turn] + gamma * lam * carry
        (0.5 * (values - (advantages + old)).square().mean()).backward()
        hidden = self.actor.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.actor.lm_head(hidden[:, predicting]).flatten(0, 1)
        chosen = ids[:, predicting + 1].flatten()
        logprobs = -torch.nn.functional.cross_entropy(logits, chosen, reduction="none")
        log_ratio = (logprobs - logprobs.detach()).view(len(ids), work.turns, work.action_tokens).sum(-1)
        white = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = log_ratio.exp()
        surrogate = torch.minimum(ratio * white, ratio.clamp(0.8, 1.2) * white)
        (-surrogate.sum() / chosen.numel()).backward()
        for network in (self.critic, self.actor):
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _encode(self, texts: list[str]) -> torch.Tensor:
        ids = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return torch.tensor(ids, device=self.actor.device)
