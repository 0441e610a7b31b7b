"""What is reported at a run's end, from log entries written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from turnppo_hf.evaluation.outcome import Summary, wilson_interval
from turnppo_hf.trainer.run_end import Score, describe_end, describe_learning, find_faults, scores_of

GOOD = {
    "loss": 0.1,
    "reward": 1.0,
    "success": 0.5,
    "explained_variance": 0.4,
    "turns/invalid_share": 0.01,
    "completions/clipped_ratio": 0.0,
    "episodes/failed": 0.0,
    "updates/skipped": 0.0,
    "stop/turn_limit": 0.0,
    "stop/token_limit": 0.0,
    "stop/task_budget": 0.5,
}


def entries(*changes: dict[str, float]) -> list[dict[str, Any]]:
    return [{**GOOD, "step": number + 1, **change} for number, change in enumerate(changes)]


def test_good_run_has_no_faults() -> None:
    assert find_faults(entries({}, {}), [], has_critic=True) == []
    [unknown] = find_faults([], [], has_critic=True)
    assert unknown.startswith("The log has no entry of a step") and "`logging_steps`" in unknown


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"explained_variance": -0.2}, "`explained_variance` is -0.2"),
        ({"turns/invalid_share": 0.3}, "`turns/invalid_share` is 30%"),
        ({"completions/clipped_ratio": 0.2}, "`max_turn_length`"),
        ({"stop/turn_limit": 0.04, "stop/token_limit": 0.04}, "8% of the last episodes were cut by the run's own"),
        ({"reward_std": 0.0}, "`reward_std` is 0 in the last entries"),
        ({"stop/time_limit": 0.08}, "8% of the last episodes were cut by the environment"),
        ({"episodes/failed": 0.5}, "up to 0.5 a rollout batch"),
        ({"updates/skipped": 1.0}, "2 optimizer steps were skipped"),
    ],
)
def test_each_fault_is_found_alone(change: dict[str, float], words: str) -> None:
    [fault] = find_faults(entries(change, change), [], has_critic=True)
    assert words in fault


def test_an_early_fault_that_is_over_is_left_out_but_lost_steps_and_episodes_are_counted() -> None:
    early = {"explained_variance": -9.0, "turns/invalid_share": 1.0, "updates/skipped": 3.0, "episodes/failed": 2.0}
    faults = find_faults(entries(early, *[{}] * 5), [], has_critic=True)
    assert len(faults) == 2 and "up to 2 a rollout" in faults[0] and "3 optimizer steps" in faults[1]


def test_penalties_that_differ_teach_where_rewards_are_equal() -> None:
    equal = {"reward_std": 0.0}
    assert find_faults(entries(*[{**equal, "penalty_std": 0.1}] * 2), [], has_critic=True) == []
    assert len(find_faults(entries(*[{**equal, "penalty_std": 0.0}] * 2), [], has_critic=True)) == 1


def test_what_is_not_finite_or_absent_is_no_fault() -> None:
    assert find_faults([{"loss": 1.0, "step": 1, "explained_variance": math.nan}], [], has_critic=True) == []
    assert find_faults(entries({"explained_variance": -1.0}), [], has_critic=False) == []


def test_signs_of_collapse_come_first_and_are_not_repeated() -> None:
    signs = ["`explained_variance` is below 0 for 20 log entries ... (step 40)"]
    assert find_faults(entries({"explained_variance": -1.0}), signs, has_critic=True) == signs


def score(low: float, high: float) -> Score:
    return Score("success", (low + high) / 2, low, high, 50)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (score(0.1, 0.3), score(0.4, 0.6), "yes"),
        (score(0.1, 0.3), score(0.3, 0.6), "not shown"),
        (score(0.4, 0.6), score(0.1, 0.3), "no, it is worse"),
        (Score("return", 1.0, math.nan, math.nan, 1), Score("return", 2.0, math.nan, math.nan, 1), "not shown"),
    ],
)
def test_learning_is_claimed_where_intervals_are_apart(before: Score, after: Score, verdict: str) -> None:
    assert f": {verdict}" in describe_learning("evaluation", before, after)


def scored(history: list[dict[str, Any]], eval_episodes: int = 4) -> tuple[str, Score, Score] | None:
    return scores_of(history, eval_episodes=eval_episodes, batch_episodes=8, updates_per_batch=2)


def test_scores_are_those_of_evaluations_where_there_are_two() -> None:
    evaluations = [
        {"step": 2, "eval_reward": 1.0, "eval_success": 0.25, "eval_episodes/failed": 0.0},
        {"step": 4, "eval_reward": 2.0, "eval_success": 1.0, "eval_episodes/failed": 1.0},
    ]
    found = scored([*entries({}, {}), *evaluations])
    assert found == (
        "evaluation",
        Score("success", 0.25, *wilson_interval(1, 4), 4),
        Score("success", 1.0, *wilson_interval(3, 3), 3),
    )


def test_scores_are_of_training_episodes_otherwise_as_many_as_an_entry_has() -> None:
    history = [{**GOOD, "step": 4}, {**GOOD, "step": 10, "success": 0.75}, {"step": 10, "eval_reward": 1.0}]
    # 8 episodes for every two steps: 16 until step 4, 24 from there to step 10
    found = scored(history)
    assert found is not None and found[0] == "training"
    assert (found[1].episodes, found[2].episodes) == (16, 24)
    assert found[2] == Score("success", 0.75, *wilson_interval(18, 24), 24)


def test_return_is_compared_where_nothing_is_ever_solved() -> None:
    spread = {"success": 0.0, "reward_std": 2.0}
    found = scored([{**entry, "step": 2 * entry["step"]} for entry in entries(spread, spread)])
    assert found is not None and found[1].name == "return"
    # standard error 2 / sqrt(7), times 1.96
    assert found[1].high - found[1].value == pytest.approx(1.959964 * 2 / math.sqrt(7))


def test_one_entry_is_no_comparison() -> None:
    assert scored(entries({})) is None and scored([]) is None


def test_held_out_score_is_the_success_or_else_the_return() -> None:
    numbers = {"mean_return": 2.0, "return_error": 0.5, "mean_penalty": 0.0, "mean_turns": 1.0, "invalid_turns": 0.0}
    reasons: dict[str, Any] = {"failed": 0, "stop_reasons": {}}
    solved = Summary(episodes=4, solved=1, success_rate=0.25, success_low=0.05, success_high=0.7, **numbers, **reasons)
    assert Score.of_summary(solved) == Score("success", 0.25, 0.05, 0.7, 4)
    unknown = Summary(
        episodes=4, solved=None, success_rate=None, success_low=None, success_high=None, **numbers, **reasons
    )
    assert Score.of_summary(unknown).name == "return"
    assert Score.of_summary(unknown).low == pytest.approx(2.0 - 1.959964 * 0.5)


def test_end_has_three_parts() -> None:
    text = describe_end("success: yes", ["this", "that"], "turnppo play x")
    assert text.splitlines() == [
        "Did it learn? success: yes.",
        "What looks wrong:",
        "  - this",
        "  - that",
        "Next: turnppo play x",
    ]
    assert describe_end(None, [], "go").splitlines()[1] == "Nothing looks wrong in the log."


def test_step_that_is_too_large_is_named_first_and_once_is_no_step() -> None:
    large, broken = {"clip_fraction": 0.5}, {"turns/invalid_share": 1.0}
    found = find_faults(entries(large, large, large, *[broken] * 6), [], has_critic=True)
    assert "`clip_fraction` is above 30% in 3 entries" in found[0] and "invalid_share" in found[1]
    assert "clip_fraction" not in " ".join(find_faults(entries(large, large, broken), [], has_critic=True))
