"""Trajectories in, one `TurnBatch` out: rows of tokens, tables of turns, and the way from one to the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import torch

from turnppo_hf.trajectory import StopReason, Trajectory

# see `TurnBatch.rows_by_length`; on an H100 a forward of a few long rows waits for the processor (docs/gpu.md)
_MIN_SAVED_TOKENS, _MIN_SAVED_TOKENS_OF_ACCELERATORS = 512, 4096


@dataclass(frozen=True)
class TurnBatch:
    """
    `B` trajectories of up to `N` turns, laid out in `R` rows of up to `T` tokens.

    Consecutive turns share a row as long as each prompt extends what was read and written before; a trajectory whose
    template rewrites history has several rows. Credit lives in the `(B, N)` tables and never sees rows.

    Example: a trajectory with P0=(1, 2), C0=(3, 4), P1=(1, 2, 3, 4, 5), C1=(6,) is one row

        input_ids        1  2  3  4  5  6
        completion_mask  0  0  1  1  0  1
        turn_ids        -1 -1  0  0 -1  1      turn_positions = (1, 4)
    """

    input_ids: torch.Tensor  # (R, T) padded on the right with 0
    attention_mask: torch.Tensor  # (R, T) 1 = real token
    completion_mask: torch.Tensor  # (R, T) 1 = sampled by the actor
    turn_ids: torch.Tensor  # (R, T) turn within its trajectory, -1 where `completion_mask` is 0
    sampling_logprobs: torch.Tensor  # (R, T) nats, 0 where `completion_mask` is 0
    old_logprobs: torch.Tensor  # (R, T) before the update: the sampling ones until they are recomputed
    row_trajectories: torch.Tensor  # (R,) trajectory of a row, ascending; its rows follow each other in turn order
    turn_mask: torch.Tensor  # (B, N) 1 = real turn
    turn_rewards: torch.Tensor  # (B, N) reward + penalty
    turn_lengths: torch.Tensor  # (B, N) sampled tokens
    turn_rows: torch.Tensor  # (B, N) row of the turn's state; 0 where `turn_mask` is 0
    turn_positions: torch.Tensor  # (B, N) last prompt token in that row: the state before the action
    turn_states: torch.Tensor  # (B, N) turns that began in the same state share a number; 0 where `turn_mask` is 0
    bootstrap_mask: torch.Tensor  # (B,) 1 = the state after the last turn has a value
    bootstrap_rows: torch.Tensor  # (B,) row of that state; 0 where `bootstrap_mask` is 0
    bootstrap_positions: torch.Tensor  # (B,) its last token
    groups: torch.Tensor  # (B,) episodes of the same task share a number

    def __len__(self) -> int:
        return len(self.turn_mask)

    @property
    def num_turns(self) -> int:
        """Real turns."""
        return int(self.turn_mask.sum())

    @property
    def num_tokens(self) -> int:
        """Sampled tokens."""
        return int(self.turn_lengths.sum())

    @property
    def num_positions(self) -> int:
        """Real and padding tokens that a forward computes, rows of similar length together."""
        return sum(len(rows) * width for rows, width in self.rows_by_length())

    def to(self, device: torch.device) -> TurnBatch:
        """Move every tensor."""
        return TurnBatch(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})

    def sum_per_turn(self, values: torch.Tensor) -> torch.Tensor:
        """Add per-token `values` `(R, T)` over each turn's sampled tokens: `(B, N)`, differentiable."""
        flat = values.new_zeros(self.turn_mask.numel())
        return flat.index_add(0, self._turn_of_token(), values[self.completion_mask.bool()]).view(self.turn_mask.shape)

    def to_tokens(self, turn_values: torch.Tensor) -> torch.Tensor:
        """Give each sampled token its turn's value: `(B, N)` -> `(R, T)`, 0 elsewhere."""
        tokens = turn_values.new_zeros(self.input_ids.shape)
        tokens[self.completion_mask.bool()] = turn_values.reshape(-1)[self._turn_of_token()]
        return tokens

    def at_turns(self, values: torch.Tensor) -> torch.Tensor:
        """Read per-token `values` `(R, T)` where turns start: `(B, N)`, 0 where there is no turn."""
        return values[self.turn_rows, self.turn_positions] * self.turn_mask

    def at_bootstrap(self, values: torch.Tensor) -> torch.Tensor:
        """Read per-token `values` `(R, T)` at the states after the last turns: `(B,)`, 0 where there is none."""
        return values[self.bootstrap_rows, self.bootstrap_positions] * self.bootstrap_mask

    def pack_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """Line up each trajectory's sampled tokens, observations left out: `(R, T)` -> `(B, M)`, differentiable."""
        trajectory, place, width = self._packing()
        packed = values.new_zeros(len(self), width)
        return packed.index_put((trajectory, place), values[self.completion_mask.bool()])

    def unpack_tokens(self, packed: torch.Tensor) -> torch.Tensor:
        """Undo `pack_tokens`: `(B, M)` -> `(R, T)`, 0 where nothing was sampled."""
        trajectory, place, _ = self._packing()
        values = packed.new_zeros(self.input_ids.shape)
        values[self.completion_mask.bool()] = packed[trajectory, place]
        return values

    def first_tokens(self) -> torch.Tensor:
        """Mark the first sampled token of each turn, `(R, T)`."""
        before = torch.nn.functional.pad(self.turn_ids[:, :-1], (1, 0), value=-1)
        return (self.turn_ids >= 0) & (self.turn_ids != before)

    def select(self, trajectories: Sequence[int] | torch.Tensor) -> TurnBatch:
        """Take some trajectories, in that order, with their rows, cut to the width they need."""
        picked = torch.as_tensor(trajectories, dtype=torch.long, device=self.turn_mask.device)
        rows = self.rows_of(picked)
        first, counts = (table[picked] for table in self._row_spans())
        shift = counts.cumsum(0) - counts - first  # from a trajectory's rows here to its rows there
        width = int(self.attention_mask[rows].sum(1).max()) if len(rows) else 1
        turns = max(int(self.turn_mask[picked].sum(1).max()), 1) if len(picked) else 1
        cut = {}
        for item in fields(self):
            tensor = getattr(self, item.name)
            if item.name in (
                "input_ids",
                "attention_mask",
                "completion_mask",
                "turn_ids",
                "sampling_logprobs",
                "old_logprobs",
            ):
                cut[item.name] = tensor[rows, :width]
            elif item.name != "row_trajectories":
                tensor = tensor[picked]
                cut[item.name] = tensor[:, :turns] if tensor.dim() == 2 else tensor
        cut["row_trajectories"] = torch.repeat_interleave(counts)
        cut["turn_rows"] = (cut["turn_rows"] + shift[:, None]) * cut["turn_mask"]
        cut["bootstrap_rows"] = (cut["bootstrap_rows"] + shift) * cut["bootstrap_mask"]
        return TurnBatch(**cut)

    def rows_of(self, trajectories: torch.Tensor) -> torch.Tensor:
        """Find the rows of some trajectories, in that order."""
        first, counts = (table[trajectories] for table in self._row_spans())
        owner = torch.repeat_interleave(counts)
        shift = counts.cumsum(0) - counts - first
        return torch.arange(len(owner), device=owner.device) - shift[owner]

    def micro_batches(self, max_tokens: int) -> list[torch.Tensor]:
        """
        Cut into groups of whole trajectories of similar length, each within `max_tokens` padded tokens.

        A trajectory that is longer on its own is a group of its own. The cut never changes a gradient: every weight
        and denominator belongs to the optimizer step.
        """
        lengths = self.attention_mask.sum(1)
        longest = lengths.new_zeros(len(self)).scatter_reduce(0, self.row_trajectories, lengths, "amax")
        order = longest.argsort(descending=True, stable=True)
        num_rows = self._row_spans()[1][order]
        groups: list[list[int]] = []
        width = rows_in_group = 0
        # the first of a group is its longest, so it fixes the width
        for trajectory, length, rows in zip(order.tolist(), longest[order].tolist(), num_rows.tolist(), strict=True):
            if groups and width * (rows_in_group + rows) <= max_tokens:
                groups[-1].append(trajectory)
                rows_in_group += rows
            else:
                groups.append([trajectory])
                width, rows_in_group = length, rows
        return [torch.tensor(group, device=self.turn_mask.device) for group in groups]

    def rows_by_length(self) -> list[tuple[torch.Tensor, int]]:
        """
        Cut the rows into groups of similar length, each with its longest row's length, longest first.

        A cut is made where it saves at least 512 tokens of padding, what a further forward costs on a small network,
        or 4096 on an accelerator; without one, all rows are in their own order.
        """
        lengths, order = self.attention_mask.sum(1).sort(descending=True, stable=True)
        on_cpu = lengths.device.type == "cpu"
        groups = _cut_by_length(
            lengths.cpu().numpy(), _MIN_SAVED_TOKENS if on_cpu else _MIN_SAVED_TOKENS_OF_ACCELERATORS
        )
        if len(groups) < 2:
            order = torch.arange(len(order), device=order.device)
        return [(order[start:stop], int(lengths[start])) for start, stop in groups]

    def _row_spans(self) -> tuple[torch.Tensor, torch.Tensor]:
        """First row and number of rows of each trajectory."""
        counts = torch.bincount(self.row_trajectories, minlength=len(self))
        return counts.cumsum(0) - counts, counts

    def _turn_of_token(self) -> torch.Tensor:
        """Flat index into `(B, N)` of each sampled token, in row order."""
        index = self.row_trajectories[:, None] * self.turn_mask.shape[1] + self.turn_ids
        return index[self.completion_mask.bool()]

    def _packing(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Trajectory and place of each sampled token, in row order, and the width that holds them."""
        trajectory = self.row_trajectories[:, None].expand_as(self.input_ids)[self.completion_mask.bool()]
        counts = self.turn_lengths.sum(1)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(trajectory), device=trajectory.device) - starts[trajectory]
        return trajectory, place, max(int(counts.max()), 1) if len(counts) else 1


def _cut_by_length(lengths: np.ndarray[Any, Any], least: int, first: int = 0) -> list[tuple[int, int]]:
    """Cut descending lengths where most padding is saved, and each of the two parts again: spans."""
    saved = (len(lengths) - np.arange(len(lengths))) * (lengths[:1] - lengths)
    if not len(lengths) or saved.max() < least:
        return [(first, first + len(lengths))] if len(lengths) else []
    cut = int(saved.argmax())
    return _cut_by_length(lengths[:cut], least, first) + _cut_by_length(lengths[cut:], least, first + cut)


@dataclass
class _Row:
    """A row under construction."""

    trajectory: int
    ids: list[int]
    turn_ids: list[int]
    logprobs: list[float]

    def extend(self, ids: Sequence[int], turn: int = -1, logprobs: Sequence[float] = ()) -> None:
        self.ids += ids
        self.turn_ids += [turn] * len(ids)
        self.logprobs += logprobs or [0.0] * len(ids)

    def holds_prefix_of(self, ids: Sequence[int]) -> bool:
        return len(ids) > len(self.ids) and list(ids[: len(self.ids)]) == self.ids


def stack(trajectories: Sequence[Trajectory], *, bootstrap_truncated: bool | None = None) -> TurnBatch:
    """
    Lay trajectories out as a batch.

    Args:
        trajectories (`Sequence[Trajectory]`):
            At least one turn each, none that ended with `StopReason.ERROR`.
        bootstrap_truncated (`bool`, *optional*):
            Overrides the stop reason's own answer to whether the state after a cut has a value. Where no such state
            was recorded the value is 0 either way.

    Raises:
        `ValueError`: a failed episode, a turn without sampled tokens, log-probs that do not match them, or an empty
        state after a cut.
    """
    rows: list[_Row] = []
    num_turns = max((len(trajectory.turns) for trajectory in trajectories), default=1)
    shape = (len(trajectories), max(num_turns, 1))
    table = {
        name: torch.zeros(shape, dtype=torch.float32 if name == "turn_rewards" else torch.long)
        for name in ("turn_mask", "turn_rewards", "turn_lengths", "turn_rows", "turn_positions", "turn_states")
    }
    vector = {
        name: torch.zeros(len(trajectories), dtype=torch.long)
        for name in ("bootstrap_mask", "bootstrap_rows", "bootstrap_positions", "groups")
    }
    for index, trajectory in enumerate(trajectories):
        _check(index, trajectory)
        vector["groups"][index] = trajectory.group
        row = None
        for number, turn in enumerate(trajectory.turns):
            row = _row_for(rows, row, index, turn.prompt_ids)
            table["turn_mask"][index, number] = 1
            table["turn_rewards"][index, number] = turn.reward + turn.penalty
            table["turn_lengths"][index, number] = len(turn.completion_ids)
            table["turn_rows"][index, number] = len(rows) - 1
            table["turn_positions"][index, number] = len(row.ids) - 1
            state = turn.observation if turn.state is None else turn.state
            table["turn_states"][index, number] = _number_of(state)
            row.extend(turn.completion_ids, number, turn.sampling_logprobs)
        if trajectory.is_bootstrapped(bootstrap_truncated):
            assert trajectory.bootstrap_ids is not None
            row = _row_for(rows, row, index, trajectory.bootstrap_ids)
            vector["bootstrap_mask"][index] = 1
            vector["bootstrap_rows"][index] = len(rows) - 1
            vector["bootstrap_positions"][index] = len(row.ids) - 1
    return TurnBatch(**_pad(rows), **table, **vector)


def _number_of(state: str) -> int:
    """64 bits of a state's text: the same in every batch, on every rank and after a resume."""
    digest = hashlib.blake2b(state.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _row_for(rows: list[_Row], row: _Row | None, trajectory: int, prompt_ids: Sequence[int]) -> _Row:
    """Continue the row where the prompt extends it, else start one."""
    if row is None or not row.holds_prefix_of(prompt_ids):
        row = _Row(trajectory, [], [], [])
        rows.append(row)
    row.extend(prompt_ids[len(row.ids) :])
    return row


def _pad(rows: Sequence[_Row]) -> dict[str, torch.Tensor]:
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
    width = int(lengths.max(initial=0)) or 1
    real = np.arange(width) < lengths[:, None]
    padded = {}
    # all rows at once: an assignment for each of thousands of short rows takes longer than all else here
    for name, attribute, blank, dtype in (
        ("input_ids", "ids", 0, np.int64),
        ("turn_ids", "turn_ids", -1, np.int64),
        ("sampling_logprobs", "logprobs", 0, np.float32),
    ):
        table = np.full((len(rows), width), blank, dtype=dtype)
        table[real] = np.fromiter(chain.from_iterable(getattr(row, attribute) for row in rows), dtype)
        padded[name] = torch.from_numpy(table)
    padded["attention_mask"] = torch.from_numpy(real.astype(np.int64))
    padded["old_logprobs"] = padded["sampling_logprobs"].clone()
    padded["completion_mask"] = (padded["turn_ids"] >= 0).long()
    padded["row_trajectories"] = torch.tensor([row.trajectory for row in rows], dtype=torch.long)
    return padded


def _check(index: int, trajectory: Trajectory) -> None:
    if trajectory.stop_reason is StopReason.ERROR or not trajectory.turns:
        raise ValueError(
            f"Trajectory {index} has the stop reason {trajectory.stop_reason.value} and {len(trajectory.turns)} "
            "turns. A failed or empty episode carries no information about the policy. Drop it before stacking."
        )
    if trajectory.bootstrap_ids is not None and not trajectory.bootstrap_ids:
        raise ValueError(
            f"Trajectory {index} has `bootstrap_ids` without a token. No state is empty, so there is nothing to take "
            "a value of. Record what the model would have read next, or None."
        )
    for number, turn in enumerate(trajectory.turns):
        if not turn.prompt_ids or not turn.completion_ids or len(turn.completion_ids) != len(turn.sampling_logprobs):
            raise ValueError(
                f"Turn {number} of trajectory {index} has {len(turn.prompt_ids)} prompt tokens, "
                f"{len(turn.completion_ids)} sampled tokens and {len(turn.sampling_logprobs)} log-probs. Each turn "
                "needs a prompt, at least one sampled token and a log-prob for each. Record them as the generator "
                "returned them."
            )


def check_turn_ids(turn_ids: torch.Tensor, completion_mask: torch.Tensor) -> None:
    """
    Check the turn ids of rows that were read from elsewhere.

    Args:
        turn_ids (`torch.Tensor` of shape `(R, T)`): Turn of each sampled token, -1 elsewhere.
        completion_mask (`torch.Tensor` of shape `(R, T)`): 1 = sampled by the actor.

    Raises:
        `ValueError`: an id is missing on a sampled token, stands on another, runs backwards, or a turn is split.
    """
    sampled = completion_mask.bool()
    if bool((turn_ids[sampled] < 0).any()):
        raise ValueError(
            "`turn_ids` is negative on a sampled token, so its turn is unknown. Number every sampled token."
        )
    if bool((turn_ids[~sampled] >= 0).any()):
        raise ValueError("`turn_ids` numbers a token that the actor did not sample. Use -1 outside `completion_mask`.")
    for row, mask in zip(turn_ids, sampled, strict=True):
        ids = row[mask]
        if bool((ids.diff() < 0).any()):
            raise ValueError(
                f"`turn_ids` runs backwards ({ids.tolist()}): a turn would be credited with rewards from before it. "
                "Lay turns out in the order they were played."
            )
        positions = mask.nonzero()[:, 0]
        if bool(((ids.diff() == 0) & (positions.diff() > 1)).any()):
            raise ValueError(
                f"A turn of `turn_ids` is split by tokens that were not sampled ({row.tolist()}), so its response is "
                "not contiguous. Give every response its own number."
            )
