"""Rows of a batch in, one row without padding out: what a network takes then, and whether it computes the same."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from turnppo_hf.models.adapters import unadapted
from turnppo_hf.models.token_classifier import head_of
from turnppo_hf.ppo.batch import TurnBatch

logger = logging.getLogger(__name__)

_LEAST_SHARE = 1 / 8  # of the positions, from which on one row takes less time than rows cut by length
_LEAST_SAVED = 512  # tokens: what more calls of attention cost in a small batch
_SHORT_ROWS = (2, 5, 31, 70, 70, 71)  # tokens of the rows measured, beside one as long as those that are trained on
_USUAL_LENGTH = 512  # of that one, at least, where the network has as many positions
_TOLERANCE = 1e-4  # of the hidden states' own size, in float32: rounding is far below, another mask far above

_MEASURED: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()  # most tokens of a row, and what came
_PLAIN, _OF_ROWS = "sdpa", "sdpa_of_packed_rows"  # transformers' attention, and the name of `_attend` there


class PackedRows:
    """
    The rows of a batch one after the other, without padding, longest first.

    Every layer but attention computes each token by itself. Attention takes the rows apart again: those of the same
    length are a table without padding, and need no mask.

    Args:
        attention_mask (`torch.Tensor` of shape `(R, T)`): 1 = real token, `L` in all; padding on the right.
    """

    def __init__(self, attention_mask: torch.Tensor) -> None:
        lengths, order = attention_mask.sum(1).sort(descending=True, stable=True)
        columns = torch.arange(attention_mask.shape[1], device=order.device).expand_as(attention_mask)
        real = attention_mask[order].bool()
        self.shape = attention_mask.shape
        self.positions = columns[real]  # (L,) each token's place in its row
        self.source = (order[:, None] * self.shape[1] + columns)[real]  # (L,) and in the batch
        tokens, rows = (table.tolist() for table in lengths.unique_consecutive(return_counts=True))
        self.tables = list(zip(rows, tokens, strict=True))

    def take(self, table: torch.Tensor) -> torch.Tensor:
        """Read a table `(R, T)` as one row, `(1, L)`."""
        return table.flatten()[self.source][None]

    def give(self, row: torch.Tensor) -> torch.Tensor:
        """Undo `take`, for `(..., 1, L)`: `(..., R, T)`, 0 where no token is; differentiable."""
        flat = row.new_zeros(*row.shape[:-2], self.shape.numel())
        return flat.index_copy(-1, self.source, row[..., 0, :]).unflatten(-1, self.shape)

    @contextmanager
    def inputs_of(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Let a network attend within rows, and give the inputs that it takes beside the tokens, in this context."""
        # of four dimensions, so that no model makes a mask; of a shape that attention refuses which does not know rows
        mask = torch.ones(1, 1, 0, 0, dtype=torch.bool, device=self.source.device)
        configs = _configs_of(model)
        for config in configs:
            config._attn_implementation = _OF_ROWS
        try:
            yield {"position_ids": self.positions[None], "attention_mask": mask, "packed_rows": self}
        finally:
            for config in configs:
                config._attn_implementation = _PLAIN


def _configs_of(model: nn.Module) -> list[Any]:
    """Return the configurations in which layers look up how to attend, where that is transformers' `sdpa`."""
    found = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    return [
        config
        for config in found.values()
        if getattr(config, "_attn_implementation", None) == _PLAIN and not config.sub_configs
    ]


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed_rows: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers does with `sdpa`; given packed rows, each row by itself."""
    plain = AttentionInterface()[_PLAIN]
    if packed_rows is None:
        return plain(module, query, key, value, attention_mask, **kwargs)
    sizes = [rows * tokens for rows, tokens in packed_rows.tables]
    # (1, heads, L, size) to parts of (L, heads, size)
    parts = [states[0].transpose(0, 1).split(sizes) for states in (query, key, value)]
    outputs = []
    for shape, *states in zip(packed_rows.tables, *parts, strict=True):
        tables = [part.unflatten(0, shape).transpose(1, 2) for part in states]
        outputs.append(plain(module, *tables, None, **kwargs)[0].flatten(0, 1))
    return torch.cat(outputs)[None], None


AttentionInterface.register(_OF_ROWS, _attend)
AttentionMaskInterface.register(_OF_ROWS, lambda *args, **kwargs: AttentionMaskInterface()[_PLAIN](*args, **kwargs))


def runs_packed(model: nn.Module, batch: TurnBatch) -> bool:
    """
    Whether a batch runs as one row: where that leaves out enough padding, and the network computes the same.

    The second is measured, once for a network, and again where longer rows come. Recurrent layers, rows beyond a
    window, positions that are not `position_ids` and attention other than `sdpa` keep padded rows. So do networks that
    compute activations again after the forward, draw random numbers (dropout), are cut over ranks or round to fewer
    bits than float32, and accelerators, which wait for launches (docs/gpu.md): taking rows apart needs more of them.

    Args:
        model (`nn.Module`): A causal language model or a token classifier of transformers.
        batch (`TurnBatch`): Its rows.
    """
    # before anything is counted: on an accelerator each count waits for it
    if batch.attention_mask.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    lengths, positions = batch.attention_mask.sum(1), batch.num_positions
    if positions - int(lengths.sum()) < max(_LEAST_SAVED, _LEAST_SHARE * positions) or is_shared_out(model):
        return False
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return False
    longest, places = int(lengths.max()), _places(model)
    measured, same = _MEASURED.get(model, (0, True))
    if same and measured < longest <= places:
        measured = min(max(1 << (longest - 1).bit_length(), _USUAL_LENGTH), places)
        same = _computes_the_same(model, measured)
        _MEASURED[model] = measured, same
    return same and longest <= places


def _places(model: nn.Module) -> int:
    """Return the positions that a network was made for, beyond which rotations may depend on the longest row."""
    found = [getattr(config, "max_position_embeddings", None) for config in _configs_of(model)]
    return min((places for places in found if isinstance(places, int) and places > 0), default=sys.maxsize)


def is_shared_out(model: nn.Module) -> bool:
    """Whether its weights are cut over ranks, so that every rank must call it equally often."""
    return any(hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id") for parameter in model.parameters())


@torch.no_grad()
def _computes_the_same(model: nn.Module, longest: int) -> bool:
    """Compare what the head gets of random rows, up to this length, packed and each by itself, in training mode."""
    dtypes = {weight.dtype for weight in model.parameters()}
    draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    if not _configs_of(model) or draws or not dtypes <= {torch.float32, torch.float64}:
        return False
    lengths = torch.tensor([*(min(length, longest) for length in _SHORT_ROWS), longest])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[union-attr,operator]
    ids = torch.randint(vocabulary, mask.shape, generator=torch.Generator().manual_seed(0))
    modes = {module: module.training for module in model.modules()}
    rows = PackedRows(mask)
    try:
        with torch.random.fork_rng(devices=[]):
            model.train()
            alone = [
                _last_hidden(model, input_ids=row[None, :length]) for row, length in zip(ids, lengths, strict=True)
            ]
            with rows.inputs_of(model) as inputs:
                packed = _last_hidden(model, input_ids=rows.take(ids), **inputs)
        found = rows.give(packed.permute(2, 0, 1)).permute(1, 2, 0)[mask.bool()]  # (L, H)
        expected = torch.cat([hidden[0] for hidden in alone])
        gap = float((found - expected).abs().max() / expected.square().mean().sqrt())
    except Exception as error:  # whatever an architecture raises that takes no such positions, mask or arguments
        logger.info("Rows stay padded: %s", next(iter(str(error).splitlines()), type(error).__name__))
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not gap <= _TOLERANCE:
        logger.info("Rows stay padded: in one row the hidden states are %.2g of their size apart.", gap)
    return gap <= _TOLERANCE


def _last_hidden(model: nn.Module, **inputs: Any) -> torch.Tensor:
    """Return what the head gets, which itself runs at the first token only."""
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        seen.append(args[0])
        return (args[0][:, :1],)

    hook = head_of(unadapted(model)).register_forward_pre_hook(keep)
    try:
        model(use_cache=False, **inputs)
    finally:
        hook.remove()
    return seen[0]
