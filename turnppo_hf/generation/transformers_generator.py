"""Batched sampling with the training weights; the key-value cache of an episode is kept from turn to turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from turnppo_hf.generation.base import Completion, end_of_turn_ids
from turnppo_hf.generation.slot_cache import SlotCache, cache_argument
from turnppo_hf.trajectory import GenerationError

# not cuDNN's: it builds a plan for every new shape, 90 ms on an H100 (torch 2.11), and every token is a new shape
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_PREFILL_TOKENS = 16384  # padded tokens of one prefill forward: bounds the activations


@dataclass
class _Request:
    """A prompt in flight: what is sampled so far."""

    episode: int
    prompt_ids: list[int]
    max_new_tokens: int
    uniforms: np.ndarray  # one draw per token, so that the response does not depend on who else is in the batch
    completion_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class TransformersGenerator:
    """
    A [`~turnppo_hf.generation.base.Generator`] on `model.forward`.

    Every token of an episode is processed once: the cache of a turn is kept for the next one as far as the prompts
    agree, so a template that rewrites history costs only what it rewrote.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Decoder-only causal language model with attention layers. Whether this sampler is exact for it,
            [`~turnppo_hf.generation.sampler_check.check_sampler`] measures.
        eos_token_ids (`Sequence[int]`):
            Tokens that end a turn.
        pad_token_id (`int`):
            Fills ragged batches; it is never attended.
        temperature (`float`, *optional*, defaults to `1.0`):
            0 picks the likeliest token; its log-probs are then those at temperature 1.
        top_p (`float`, *optional*, defaults to `1.0`), top_k (`int`, *optional*, defaults to `0`),
        min_p (`float`, *optional*):
            They change what is drawn, not what is scored: log-probs are those of the full scaled distribution.
        max_parallel_episodes (`int`, *optional*, defaults to `256`):
            Episodes in the cache at a time; further ones queue.
        autocast (`Callable`, *optional*):
            Makes the context of a call's forwards, the trainer's mixed precision: one for all of them, so that weights
            are cast once a call and not once a token.

    Raises:
        `ValueError`: the model has an implementation of attention that takes no dense mask.
    """

    continuous = False  # a prompt alone would be prefilled alone
    max_context: int | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float | None = None,
        max_parallel_episodes: int = 256,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        config = model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        # models of one kind of layer (Mistral, Phi-3) name none, and slide everywhere where they have a window
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
        attention = getattr(config, "_attn_implementation", "sdpa")
        if attention not in ("sdpa", "eager"):
            raise ValueError(
                f"The model uses {attention!r} attention, which does not take the mask that keeps episodes of "
                "different "
                'lengths side by side. Load it with attn_implementation="sdpa".'
            )
        self.model = model
        self.eos_token_ids = frozenset(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.temperature = temperature
        self.max_parallel_episodes = max_parallel_episodes
        self.autocast = autocast
        self.exact = rounds_as(model, autocast) == torch.float32
        self.tokens_processed = 0  # real tokens that went through the model, for the accounting of reuse
        self._warpers: list[Any] = [TopKLogitsWarper(top_k)] if top_k else []
        self._warpers += [TopPLogitsWarper(top_p)] if top_p < 1.0 else []
        self._warpers += [MinPLogitsWarper(min_p)] if min_p else []
        self._window = window if "sliding_attention" in kinds else None
        self._mask_per_kind = getattr(config, "layer_types", None) is not None
        self._num_layers = config.num_hidden_layers
        self._cache_argument = cache_argument(model)
        # a router's loss, which a configuration may ask for in every forward, takes a mask of another shape
        routed = getattr(model.config, "output_router_logits", False)
        self._options = {"output_router_logits": False} if routed else {}
        self._num_embeddings = getattr(model.get_input_embeddings(), "num_embeddings", None)
        self.reset()

    @classmethod
    def for_chat(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0, **kwargs: Any
    ) -> TransformersGenerator:
        """Take the tokens that end a turn from the tokenizer and from the model's generation settings."""
        ends = end_of_turn_ids(model, tokenizer)
        pad = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return cls(model, eos_token_ids=ends, pad_token_id=pad, temperature=temperature, **kwargs)

    def sync(self) -> None:
        """Drop what was computed with other weights; see [`~turnppo_hf.generation.base.Generator.sync`]."""
        self.reset()

    def reset(self) -> None:
        """Drop the cache and every request."""
        self._cache: SlotCache | None = None
        self._slots: dict[int, int] = {}  # episode -> slot
        self._free: list[int] = []
        self._cached: dict[int, list[int]] = {}  # episode -> the ids whose keys and values its slot holds
        self._queue: list[_Request] = []
        self._running: list[_Request] = []

    def submit(self, episode: int, prompt_ids: Sequence[int], *, max_new_tokens: int, seed: int) -> None:
        """
        Queue a prompt; see [`~turnppo_hf.generation.base.Generator.submit`].

        Raises:
            [`~turnppo_hf.trajectory.GenerationError`]: a token of it has no row in the model's embedding.
        """
        largest = max(prompt_ids, default=0)
        if self._num_embeddings is not None and largest >= self._num_embeddings:
            raise GenerationError(
                f"A prompt holds the token {largest}, and the model's embedding has {self._num_embeddings} rows, so "
                "the tokenizer has tokens that the model does not know. After adding tokens, call "
                "`model.resize_token_embeddings(len(tokenizer))`, or take the model's own tokenizer."
            )
        uniforms = np.random.default_rng(seed).random(max_new_tokens)
        self._queue.append(_Request(episode, list(prompt_ids), max_new_tokens, uniforms))

    def release(self, episode: int) -> None:
        """Drop the request of an episode that is over, where it has one, and free its slot."""
        self._queue = [request for request in self._queue if request.episode != episode]
        self._running = [request for request in self._running if request.episode != episode]
        if episode in self._slots:
            self._free.append(self._slots.pop(episode))
            del self._cached[episode]

    @torch.no_grad()
    def take_completions(self, wake: threading.Event | None = None) -> list[Completion]:
        """
        Generate until half of the requests in flight are complete and return these, whatever `wake` says.

        Returning at the first one would prefill each next turn alone; waiting for all would wait for the longest.
        """
        was_training = self.model.training
        self.model.eval()  # dropout off; and transformers refuses a cache beside activation checkpointing in training
        try:
            with self.autocast(), _casts_kept(self.model), sdpa_kernel(_ATTENTION):
                self._admit()
                target = (len(self._running) + 1) // 2
                done = self._take_finished()
                while len(done) < target:
                    self._decode()
                    done += self._take_finished()
        finally:
            self.model.train(was_training)
        return done

    def _admit(self) -> None:
        """Give queued requests a slot and prefill what their slots do not hold yet, in groups of similar length."""
        known = len(self._slots) + len(self._free)
        wanted = len(self._slots.keys() | {request.episode for request in self._queue})
        if known < (slots := min(self.max_parallel_episodes, wanted)):
            self._free += range(known, slots)
            if self._cache is None:
                self._cache = SlotCache(self._num_layers, slots)
            else:
                self._cache.add_slots(slots)
        admitted: list[_Request] = []
        waiting: list[_Request] = []
        for request in self._queue:
            if request.episode not in self._slots and self._free:
                self._slots[request.episode] = self._free.pop(0)
                self._cached[request.episode] = []
            (admitted if request.episode in self._slots else waiting).append(request)
        self._queue = waiting
        for request in admitted:
            held = self._cached[request.episode]
            # the last prompt token is always fed: its logits give the first sampled token
            del held[_common_prefix(held, request.prompt_ids[:-1]) :]
        admitted.sort(key=lambda request: len(request.prompt_ids) - len(self._cached[request.episode]))
        while admitted:
            group: list[_Request] = []
            longest = 0
            while admitted and (not group or longest * (len(group) + 1) <= _PREFILL_TOKENS):
                group.append(admitted.pop(0))
                longest = len(group[-1].prompt_ids) - len(self._cached[group[-1].episode])
            self._extend(group, [request.prompt_ids[len(self._cached[request.episode]) :] for request in group])
            self._running += group

    def _decode(self) -> None:
        """Feed the last sampled token of every running request and sample the next."""
        self._extend(self._running, [request.completion_ids[-1:] for request in self._running])

    def _extend(self, requests: list[_Request], new_ids: list[list[int]]) -> None:
        """One forward: append `new_ids` to the requests' slots and sample one token for each."""
        assert self._cache is not None
        slots = self._cache.cursor.slots
        rows = [self._slots[request.episode] for request in requests]
        # reading all slots in place costs idle rows, picking some copies their cache: the first wins from half on
        picked = rows if 2 * len(rows) < slots else list(range(slots))
        line_of = {slot: line for line, slot in enumerate(picked)}
        length = max(len(ids) for ids in new_ids)
        ids = np.full((len(picked), length), self.pad_token_id, dtype=np.int64)
        positions = np.zeros((len(picked), length), dtype=np.int64)
        is_padding = np.ones((len(picked), length), dtype=bool)
        for request, row, fresh in zip(requests, rows, new_ids, strict=True):
            held, line = self._cached[request.episode], line_of[row]
            span = slice(
                length - len(fresh), length
            )  # left-padded, so that the last column is everybody's newest token
            ids[line, span], is_padding[line, span] = fresh, False
            positions[line, span] = np.arange(len(held), len(held) + len(fresh))
            held += fresh
            self.tokens_processed += len(fresh)
        logits = self._forward(picked, ids, positions, is_padding)
        self._sample(requests, logits[[line_of[row] for row in rows]])

    def _forward(
        self, picked: list[int], ids: np.ndarray, positions: np.ndarray, is_padding: np.ndarray
    ) -> torch.Tensor:
        """Return the logits of each line's last column, `(lines, V)` float32."""
        assert self._cache is not None
        device = self.model.device
        position_ids = torch.from_numpy(positions).to(device)
        width = int(positions.max()) + 1
        self._cache.point(
            torch.tensor(picked, device=device), position_ids, torch.from_numpy(is_padding).to(device), width
        )
        columns = torch.arange(width, device=device)
        distance = position_ids[:, None, :, None] - columns  # (lines, 1, q, width)
        full = self._additive(distance >= 0)
        mask: torch.Tensor | dict[str, torch.Tensor] = full
        if self._window is not None:
            sliding = self._additive((distance >= 0) & (distance < self._window))
            mask = {"full_attention": full, "sliding_attention": sliding} if self._mask_per_kind else sliding
        output = self.model(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: self._cache},
            **self._options,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1].float()

    def _additive(self, allowed: torch.Tensor) -> torch.Tensor:
        # in the dtype of the scores: a mask of another one would be cast in every layer
        kind = allowed.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.model.dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )

    def _sample(self, requests: list[_Request], logits: torch.Tensor) -> None:
        logprobs = torch.log_softmax(logits / (self.temperature or 1.0), dim=-1)  # (b, V)
        if self.temperature == 0.0:
            tokens = logits.argmax(dim=-1)
        else:
            scores = logprobs
            for warper in self._warpers:
                scores = warper(None, scores)
            draws = [request.uniforms[len(request.completion_ids)] for request in requests]
            tokens = _inverse_cdf(scores, torch.tensor(draws, dtype=torch.float64))
        chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
        for request, token, logprob in zip(requests, tokens.tolist(), chosen.tolist(), strict=True):
            request.completion_ids.append(token)
            request.logprobs.append(logprob)

    def _take_finished(self) -> list[Completion]:
        done, running = [], []
        for request in self._running:
            stopped = request.completion_ids[-1] in self.eos_token_ids
            if stopped or len(request.completion_ids) == request.max_new_tokens:
                ids, logprobs = tuple(request.completion_ids), tuple(request.logprobs)
                done.append(Completion(request.episode, ids, logprobs, "stop" if stopped else "length"))
            else:
                running.append(request)
        self._running = running
        return done


@contextmanager
def _casts_kept(model: torch.nn.Module) -> Iterator[None]:
    """
    Let autocast keep the weights that it cast until its context ends.

    It keeps those of leaves that require a gradient only (`cached_cast` of torch, tried with 2.11 to 2.13); the frozen
    weights beneath adapters and those of a gathered copy would be cast anew for every token. Without gradients being
    recorded the flag has no other effect.
    """
    weights = model.parameters() if torch.is_autocast_enabled(next(model.parameters()).device.type) else ()
    frozen = [weight for weight in weights if not weight.requires_grad and weight.is_floating_point()]
    try:  # around the loop as well: Ctrl-C may come anywhere
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def rounds_as(model: PreTrainedModel, autocast: Callable[[], AbstractContextManager[Any]]) -> torch.dtype:
    """Return the dtype whose rounding a forward has; TF32 has float16's, and a quantized base computes in a half."""
    if getattr(model, "is_quantized", False) or (autocast is not nullcontext and model.dtype == torch.float32):
        return torch.bfloat16
    if model.dtype == torch.float32 and model.device.type == "cuda":
        return torch.float16 if torch.backends.cuda.matmul.fp32_precision == "tf32" else torch.float32
    return model.dtype


def _common_prefix(left: list[int], right: list[int]) -> int:
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(index for index in range(length) if left[index] != right[index])


def _inverse_cdf(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw one token per row from unnormalised log-probs `(b, V)` with one uniform each `(b,)`."""
    precise = torch.float32 if scores.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    cumulative = scores.to(precise).exp().cumsum(dim=-1)
    targets = uniforms.to(scores.device, precise)[:, None] * cumulative[:, -1:]
    # `right=True` steps over tokens of probability zero; the clamp guards the last bit of rounding
    tokens = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    return tokens.clamp(max=scores.shape[-1] - 1)
