"""Rows, tables and the way from one to the other; bookkeeping is compared exactly."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny import draw_trajectories, make_trajectory, make_turn, prefix_values, stack_row_per_turn
from turnppo_hf.ppo.batch import check_turn_ids, stack
from turnppo_hf.trajectory import StopReason

seeds = st.integers(0, 10_000)


def assert_same(batch, expected):
    for item in fields(expected):
        torch.testing.assert_close(getattr(batch, item.name), getattr(expected, item.name), rtol=0, atol=0)


def test_stack_of_the_documented_example_is_one_row():
    # P P C C E C
    # 1 2 3 4 5 6
    first = make_turn((1, 2), (3, 4), reward=1.0, penalty=-0.25, logprobs=(-0.1, -0.2))
    batch = stack([make_trajectory([first, make_turn((1, 2, 3, 4, 5), (6,), logprobs=(-0.3,))])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch.completion_mask.tolist() == [[0, 0, 1, 1, 0, 1]]
    assert batch.turn_ids.tolist() == [[-1, -1, 0, 0, -1, 1]]
    assert batch.turn_positions.tolist() == [[1, 4]]
    assert batch.turn_lengths.tolist() == [[2, 1]]
    assert batch.turn_rewards.tolist() == [[0.75, 0.0]]
    assert batch.sampling_logprobs[0].tolist() == pytest.approx([0, 0, -0.1, -0.2, 0, -0.3])
    assert (batch.num_turns, batch.num_tokens, len(batch)) == (2, 3, 1)


def test_stack_of_a_rewritten_history_starts_a_row_and_samples_no_token_twice():
    # row 0: P P C C      row 1: P P E E C   (the thought 3 was dropped, 4 is context now)
    #        1 2 3 4             1 2 4 5 6
    batch = stack([make_trajectory([make_turn((1, 2), (3, 4)), make_turn((1, 2, 4, 5), (6,))])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 0], [1, 2, 4, 5, 6]]
    assert batch.turn_ids.tolist() == [[-1, -1, 0, 0, -1], [-1, -1, -1, -1, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.row_trajectories.tolist() == [0, 0]
    assert batch.turn_rows.tolist() == [[0, 1]]


def test_stack_of_turns_without_an_observation_between_keeps_both_states():
    # the second prompt adds nothing, so the state is what the first turn wrote: a row of its own
    batch = stack([make_trajectory([make_turn((1,), (2,)), make_turn((1, 2), (3,))])])
    assert batch.input_ids[batch.turn_rows[0], batch.turn_positions[0]].tolist() == [1, 2]
    assert batch.completion_mask.sum() == 2


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_stack_of_any_episodes_holds_every_turn_as_it_was_read_and_written(seed):
    trajectories = draw_trajectories(seed)
    batch = stack(trajectories)
    for index, trajectory in enumerate(trajectories):
        for number, turn in enumerate(trajectory.turns):
            row, end = int(batch.turn_rows[index, number]), int(batch.turn_positions[index, number]) + 1
            written = slice(end, end + len(turn.completion_ids))
            assert batch.row_trajectories[row] == index
            assert tuple(batch.input_ids[row, :end].tolist()) == turn.prompt_ids
            assert tuple(batch.input_ids[row, written].tolist()) == turn.completion_ids
            assert batch.turn_ids[row, written].unique().tolist() == [number]
            assert batch.sampling_logprobs[row, written].tolist() == pytest.approx(turn.sampling_logprobs)
    written = sum(len(turn.completion_ids) for trajectory in trajectories for turn in trajectory.turns)
    assert int(batch.completion_mask.sum()) == batch.num_tokens == written
    assert bool((batch.completion_mask <= batch.attention_mask).all())
    check_turn_ids(batch.turn_ids, batch.completion_mask)


def test_stack_of_an_append_only_episode_reads_every_token_once():
    (trajectory,) = draw_trajectories(3, count=1, rewritten=False, bootstrap="extends", num_turns=4)
    batch = stack([trajectory])
    assert batch.input_ids.shape == (1, len(trajectory.bootstrap_ids))


@pytest.mark.parametrize("bootstrap", ["extends", "breaks", "prefix"])
def test_stack_of_a_cut_episode_reads_the_state_after_it(bootstrap):
    trajectories = draw_trajectories(1, bootstrap=bootstrap)
    batch = stack(trajectories)
    assert batch.bootstrap_mask.tolist() == [1] * len(batch)
    for index, trajectory in enumerate(trajectories):
        row, end = int(batch.bootstrap_rows[index]), int(batch.bootstrap_positions[index]) + 1
        assert batch.row_trajectories[row] == index
        assert tuple(batch.input_ids[row, :end].tolist()) == trajectory.bootstrap_ids
    assert bool((batch.completion_mask.sum(1) == 0).any()) is (bootstrap != "extends")


@pytest.mark.parametrize(
    ("stop_reason", "bootstrap_ids", "override", "expected"),
    [
        (StopReason.TIME_LIMIT, (1, 2, 3), None, 1),
        (StopReason.TIME_LIMIT, (1, 2, 3), False, 0),
        (StopReason.TASK_BUDGET, (1, 2, 3), None, 0),
        (StopReason.TASK_BUDGET, (1, 2, 3), True, 1),
        (StopReason.TERMINATED, (1, 2, 3), True, 0),  # invariant 13: terminated wins over a state that is given
        (StopReason.SOLVED, (1, 2, 3), None, 0),
        (StopReason.CUT_RESPONSE, None, True, 0),
    ],
)
def test_stack_bootstraps_as_the_stop_reason_and_the_override_say(stop_reason, bootstrap_ids, override, expected):
    trajectory = make_trajectory([make_turn((1,), (2,))], stop_reason, bootstrap_ids)
    batch = stack([trajectory], bootstrap_truncated=override)
    assert batch.bootstrap_mask.tolist() == [expected]
    assert batch.at_bootstrap(torch.ones(batch.input_ids.shape)).tolist() == [float(expected)]


def test_stack_of_nothing_is_an_empty_batch():
    batch = stack([])
    assert (len(batch), batch.num_turns, batch.num_tokens) == (0, 0, 0)
    assert batch.micro_batches(100) == []
    assert batch.pack_tokens(torch.zeros(batch.input_ids.shape)).shape == (0, 1)
    assert len(batch.select([])) == 0


def test_invariant_19_stack_refuses_failed_episodes_and_dropping_them_changes_nothing():
    trajectories = draw_trajectories(5)
    failed = replace(trajectories[0], stop_reason=StopReason.ERROR)
    with pytest.raises(ValueError, match="Drop it before stacking"):
        stack([*trajectories, failed])
    kept = [item for item in (failed, *trajectories, failed) if item.stop_reason is not StopReason.ERROR]
    assert_same(stack(kept), stack(trajectories))


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (make_trajectory([]), "0 turns"),
        (make_trajectory([make_turn((), (1,))]), "0 prompt tokens"),
        (make_trajectory([make_turn((1,), ())]), "0 sampled tokens"),
        (make_trajectory([make_turn((1,), (2, 3), logprobs=(-1.0,))]), "1 log-probs"),
        (make_trajectory([make_turn((1,), (2,))], StopReason.TIME_LIMIT, ()), "without a token"),
    ],
)
def test_stack_of_a_broken_record_is_refused(trajectory, message):
    with pytest.raises(ValueError, match=message):
        stack([trajectory])


@settings(max_examples=60, deadline=None)
@given(seed=seeds, picked=st.lists(st.integers(0, 5), max_size=8))
def test_select_equals_stacking_these_trajectories(seed, picked):
    # picking one twice included: a table that points at the other copy's rows would show
    trajectories = draw_trajectories(seed)
    assert_same(stack(trajectories).select(picked), stack([trajectories[index] for index in picked]))


def test_select_of_a_selection_is_a_selection():
    batch = stack(draw_trajectories(8))
    assert_same(batch.select([4, 1, 3]).select([2, 0]), batch.select([3, 4]))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, max_tokens=st.integers(1, 200))
def test_micro_batches_hold_every_trajectory_once_and_stay_within_the_limit(seed, max_tokens):
    batch = stack(draw_trajectories(seed))
    groups = batch.micro_batches(max_tokens)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(batch)))
    for group in groups:
        assert len(group) == 1 or batch.select(group).input_ids.numel() <= max_tokens
    assert len(batch.micro_batches(10**9)) == 1


def test_rows_by_length_are_cut_only_where_that_saves_enough_and_leave_little_padding():
    rng = random.Random(0)
    lengths = [rng.randint(20, 600) for _ in range(64)]
    batch = stack([make_trajectory([make_turn(range(1, length), (1,))]) for length in lengths])
    groups = batch.rows_by_length()
    assert sorted(int(row) for rows, _ in groups for row in rows) == list(range(64))
    assert all(width == max(lengths[row] for row in rows) for rows, width in groups)
    assert 1 - sum(lengths) / batch.num_positions < 0.1 < 1 - sum(lengths) / batch.input_ids.numel()
    assert len(groups) < 16
    # no cut saves enough tokens here, so the rows stay as they are
    ((rows, width),) = batch.select(range(4)).rows_by_length()
    assert rows.tolist() == list(range(4)) and width == max(lengths[:4])
    assert stack([]).rows_by_length() == []


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_pack_tokens_and_back_loses_nothing_and_keeps_the_order_of_turns(seed):
    trajectories = draw_trajectories(seed)
    batch = stack(trajectories)
    packed = batch.pack_tokens(batch.sampling_logprobs)
    for row, trajectory in zip(packed, trajectories, strict=True):
        expected = [x for turn in trajectory.turns for x in turn.sampling_logprobs]
        assert row[: len(expected)].tolist() == pytest.approx(expected)
        assert not row[len(expected) :].any()
    torch.testing.assert_close(batch.unpack_tokens(packed), batch.sampling_logprobs, rtol=0, atol=0)
    assert not batch.unpack_tokens(torch.ones_like(packed))[batch.completion_mask == 0].any()


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_sum_per_turn_and_to_tokens_are_each_others_transpose(seed):
    batch = stack(draw_trajectories(seed))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch.input_ids.shape, generator=generator, dtype=torch.float64)
    turns = torch.randn(batch.turn_mask.shape, generator=generator, dtype=torch.float64)
    left = (batch.to_tokens(turns) * tokens).sum()
    right = (turns * batch.sum_per_turn(tokens)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-12, abs=1e-12)
    assert torch.equal(batch.sum_per_turn(batch.completion_mask), batch.turn_lengths)


def test_sum_per_turn_gives_no_gradient_outside_sampled_tokens():
    # invariant 20: observations and padding
    batch = stack(draw_trajectories(2))
    values = torch.randn(batch.input_ids.shape, requires_grad=True)
    batch.sum_per_turn(values).sum().backward()
    assert torch.equal(values.grad, batch.completion_mask.float())


def test_invariant_16_at_turns_and_at_bootstrap_read_value_positions_and_no_other():
    batch = stack(draw_trajectories(4, bootstrap="breaks"))
    values = torch.randn(batch.input_ids.shape, requires_grad=True)
    (batch.at_turns(values).sum() + batch.at_bootstrap(values).sum()).backward()
    expected = torch.zeros(batch.input_ids.shape)
    real = batch.turn_mask.bool()
    expected[batch.turn_rows[real], batch.turn_positions[real]] = 1
    expected[batch.bootstrap_rows, batch.bootstrap_positions] = 1
    assert torch.equal(values.grad, expected)
    assert not batch.at_turns(values)[~real].any()


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_invariant_17_both_layouts_read_the_same_states_and_tokens(seed):
    trajectories = draw_trajectories(seed)
    merged = stack(trajectories)
    with pytest.MonkeyPatch.context() as patch:
        split = stack_row_per_turn(patch, trajectories)
    assert len(split.input_ids) >= split.num_turns
    for read in ("at_turns", "at_bootstrap"):
        expected = getattr(merged, read)(prefix_values(merged))
        torch.testing.assert_close(getattr(split, read)(prefix_values(split)), expected, rtol=0, atol=0)
    packed = split.pack_tokens(split.input_ids)
    assert torch.equal(packed, merged.pack_tokens(merged.input_ids))


def test_check_turn_ids_accepts_turns_in_order_with_unused_numbers():
    # invariant 12: a gap in the numbers is not an error
    turn_ids = torch.tensor([[-1, 0, 0, -1, 2, 2], [-1, 3, 4, -1, -1, -1]])
    check_turn_ids(turn_ids, (turn_ids >= 0).long())


@pytest.mark.parametrize(
    ("turn_ids", "completion_mask", "message"),
    [
        ([-1, 0, -1, -1], [0, 1, 1, 0], "negative on a sampled token"),
        ([-1, 0, -7, -1], [0, 1, 1, 0], "negative on a sampled token"),
        ([0, 0, 1, -1], [0, 1, 1, 0], "did not sample"),
        ([-1, 1, 0, -1], [0, 1, 1, 0], "backwards"),
        ([1, -1, 0, -1], [1, 0, 1, 0], "backwards"),
        ([0, -1, 0, -1], [1, 0, 1, 0], "split"),
        ([0, 1, -1, 1], [1, 1, 0, 1], "split"),  # the first half of turn 1 follows turn 0 without a gap
    ],
)
def test_invariant_32_check_turn_ids_refuses_what_cannot_be_told_apart(turn_ids, completion_mask, message):
    with pytest.raises(ValueError, match=message):
        check_turn_ids(torch.tensor([turn_ids]), torch.tensor([completion_mask]))
