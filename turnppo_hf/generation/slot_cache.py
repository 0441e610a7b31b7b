"""A key-value cache of slots: one episode a slot, its tokens contiguous from column 0."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

_MIN_GROWTH = 64  # columns: short prompts grow as rarely as by doubling


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, `(slots, heads, columns, head size)`; padding writes into the last column."""

    def __init__(self, cursor: Cursor) -> None:
        super().__init__()
        self.cursor = cursor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take head number, head size, dtype and device from the first states."""
        slots, columns = self.cursor.slots, self.cursor.columns
        self.keys, self.values = (
            # under autocast, rotary embedding leaves keys in float32: half of the cache would be twice as large
            states.new_zeros(slots, states.shape[1], columns, states.shape[3], dtype=value_states.dtype)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write states `(b, heads, q, head size)` where the cursor points; return all that its rows may read."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, positions, width = self.cursor.rows, self.cursor.positions, self.cursor.width
        read = []
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[rows[:, None], :, positions] = states.transpose(1, 2).to(buffer.dtype)
            read.append(buffer[:, :, :width] if len(rows) == len(buffer) else buffer[rows, :, :width])
        return read[0], read[1]

    def grow(self) -> None:
        """Take the cursor's new number of columns and slots, keeping what is there."""
        if self.is_initialized:
            slots, _, columns, _ = self.keys.shape
            more = (0, 0, 0, self.cursor.columns - columns + 1, 0, 0, 0, self.cursor.slots - slots)
            self.keys, self.values = (
                torch.nn.functional.pad(buffer[:, :, :-1], more) for buffer in (self.keys, self.values)
            )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns read and their offset."""
        return self.cursor.width, 0

    def get_seq_length(self) -> int:
        """Return 0: positions are given explicitly, the model must not shift them."""
        return 0

    def get_max_length(self) -> int:
        """Return -1: it grows."""
        return -1


def cache_argument(model: PreTrainedModel) -> str:
    """
    Return the name under which a model's forward takes its cache.

    `"cache"` from transformers 5.24 on, `"past_key_values"` before and in classes of one's own that kept it; `"cache"`
    alone remains when transformers 5.24 is the oldest version supported.
    """
    # the class's, because mixed precision puts another forward on the instance
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "cache" if "cache" in signature(type(plain).forward).parameters else "past_key_values"


class Cursor:
    """Where the next forward writes and how far it reads; one for all layers."""

    def __init__(self, slots: int, columns: int) -> None:
        self.slots, self.columns = slots, columns
        self.rows = torch.empty(0, dtype=torch.long)  # (b,) slots of the forward's rows; all of them in order: no copy
        self.positions = torch.empty(0, 0, dtype=torch.long)  # (b, q) columns written
        self.width = 0  # columns read


class SlotCache(Cache):
    """
    The cache that a model's forward writes, as its argument [`cache_argument`], where `point` aims.

    Contiguous rows make a token's column its position, so a slot is cut back to a shared prefix by lowering its
    length, and neither ragged prompts nor other episodes leave gaps.

    Args:
        num_layers (`int`): Layers of the model.
        slots (`int`): Episodes held at a time, see `add_slots`.
    """

    def __init__(self, num_layers: int, slots: int) -> None:
        self.cursor = Cursor(slots, columns=1)
        super().__init__(layers=[SlotLayer(self.cursor) for _ in range(num_layers)])

    def add_slots(self, slots: int) -> None:
        """Hold that many episodes from now on, which is more than before."""
        self.cursor.slots = slots
        for layer in self.layers:
            layer.grow()

    def point(self, rows: torch.Tensor, positions: torch.Tensor, is_padding: torch.Tensor, width: int) -> None:
        """Aim the next forward at `rows` `(b,)` and `positions` `(b, q)`, reading the first `width` columns."""
        if width >= self.cursor.columns:
            # each growth copies everything, so there are few; doubling would hold up to twice what is read
            self.cursor.columns = width + 1 + max(width // 4, _MIN_GROWTH)
            for layer in self.layers:
                layer.grow()
        self.cursor.rows, self.cursor.width = rows, width
        self.cursor.positions = positions.masked_fill(is_padding, self.cursor.columns - 1)
