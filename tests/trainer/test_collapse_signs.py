"""Signs of collapse: each alone from made-up log entries, none in a healthy run, and what kept runs show."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from turnppo_hf.trainer.collapse_signs import History, find_signs

DOCS = Path(__file__).parents[2] / "docs"
HEALTHY = {
    "entropy": 1.0,
    "success": 0.5,
    "reward": 0.4,
    "reward_std": 0.5,
    "log_ratio/std": 0.1,
    "turns/invalid_share": 0.05,
    "explained_variance": 0.3,
    "grad_norm/actor": 1.0,
}
SIGNS = {  # the metric, what the last five entries have in place of the healthy number, and words of the sentence
    "entropy": (0.01, r"`entropy` is 0.01 nats, 1.0% of the start's, at a success of 50%.*Raise `entropy_coef`"),
    "log_ratio/std": (1.5, r"`log_ratio/std` is 1.5, 8 times the clip range.*Lower `learning_rate`"),
    "reward_std": (0.0, r"`reward_std` is 0 for 5 log entries, at a reward of 0.4.*Check the reward"),
    "turns/invalid_share": (0.8, r"`turns/invalid_share` is 80% after 5% at the start.*raise `beta`"),
    "grad_norm/actor": (20.0, r"`grad_norm/actor` is 20, 20 times what it was.*Lower `learning_rate`"),
}
NEARLY = {
    "entropy": 0.03,
    "log_ratio/std": 0.9,
    "reward_std": 0.01,
    "turns/invalid_share": 0.49,
    "grad_norm/actor": 9.0,
}


def entries_of(changes, healthy=10, sick=5):
    return [dict(HEALTHY) for _ in range(healthy)] + [{**HEALTHY, **changes} for _ in range(sick)]


def signs_of(entries, clip_range=0.2, every=1):
    """Signs after the last entry; entries are `every` steps apart."""
    history = History()
    for number, entry in enumerate(entries, start=1):
        history.add(entry, number * every)
    return find_signs(history, clip_range=clip_range)


@pytest.mark.parametrize("name", SIGNS)
def test_each_sign_is_found_alone_with_its_figure_its_advice_and_the_step_before_it(name):
    value, words = SIGNS[name]
    found = signs_of(entries_of({name: value}), every=4)
    assert list(found) == [name] and found[name].good_step == 40
    assert re.search(words, found[name].sentence) and "\n" not in found[name].sentence


@pytest.mark.parametrize("name", SIGNS)
def test_less_of_it_a_single_batch_and_a_short_run_are_no_sign(name):
    value, _ = SIGNS[name]
    assert signs_of(entries_of({name: NEARLY[name]})) == {}
    assert signs_of(entries_of({name: value}, sick=1)) == {}
    assert signs_of(entries_of({name: value}, healthy=4)) == {}
    assert signs_of(entries_of({name: value}) + entries_of({}, sick=0)) == {}  # it was so, and is over


def test_critic_that_is_worse_than_a_constant_for_long_is_found():
    bad = {"explained_variance": -0.5}
    assert signs_of(entries_of(bad, sick=19)) == {}
    assert signs_of([*entries_of(bad, sick=10), HEALTHY, *entries_of(bad, healthy=0, sick=15)]) == {}
    [sign] = signs_of(entries_of(bad, sick=20)).values()
    assert sign.good_step == 10
    assert re.search(
        "`explained_variance` is below 0 for 20 log entries, now -0.5.*`critic_warmup_steps`", sign.sentence
    )


def test_policy_that_masters_the_task_may_be_certain():
    changes = {"entropy": 0.001, "success": 0.98, "reward_std": 0.0}
    assert signs_of(entries_of(changes)) == {}
    assert set(signs_of(entries_of({**changes, "success": 0.5}))) == {"entropy", "reward_std"}


def test_numbers_that_are_missing_or_not_finite_raise_no_sign():
    assert signs_of([{}] * 30) == {}
    assert signs_of([{name: HEALTHY[name] for name in ("entropy", "grad_norm/actor")}] * 30) == {}
    assert signs_of([{**HEALTHY, "explained_variance": math.nan, "grad_norm/actor": math.inf}] * 30) == {}


def test_metrics_of_rollouts_are_read_where_only_some_entries_have_them():
    of_updates = {"entropy": 1.0, "grad_norm/actor": 1.0}
    entries = [part for entry in entries_of({"reward_std": 0.0}) for part in (entry, of_updates, of_updates)]
    [(name, sign)] = signs_of(entries).items()
    assert (name, sign.good_step) == ("reward_std", 28)  # the tenth of every third


def test_history_that_goes_back_forgets_what_was_bad_and_keeps_the_start():
    history = History()
    sick = entries_of({"entropy": 0.01})
    for step, entry in enumerate(sick, start=1):
        history.add(entry, step)
    history.go_back(10, now=15)
    assert find_signs(history, clip_range=0.2) == {}
    for step in range(16, 21):
        history.add(sick[-1], step)
    [sign] = find_signs(history, clip_range=0.2).values()
    assert "1.0% of the start's" in sign.sentence
    assert sign.good_step == 15  # what was saved when the run went back is as good as what it went back to


def test_start_is_remembered_in_a_long_run():
    drift = [{**HEALTHY, "entropy": max(0.03, 1.0 - step / 200)} for step in range(300)]
    assert signs_of(drift) == {}
    assert list(signs_of([*drift, *entries_of({"entropy": 0.019}, healthy=0)])) == ["entropy"]


def test_kept_runs_are_told_apart_as_the_page_has_it():
    kept = json.loads((DOCS / "collapse.json").read_text())
    counts = dict.fromkeys(("tp", "fp", "fn", "tn"), 0)
    for number, run in enumerate(kept["runs"]):
        entries = run["entries"]
        found = any(signs_of(entries[:count]) for count in range(1, len(entries) + 1))
        collapsed = sum(entry["success"] for entry in entries[-10:]) / 10 < 0.5 * kept["typical_success"]
        assert collapsed is run["collapsed"]
        if number % 2:
            counts[("t" if found == collapsed else "f") + "np"[found]] += 1
    assert counts == kept["halves"]["held_out"] == {"tp": 8, "fp": 0, "fn": 0, "tn": 4}
    collapsed = [run for run in kept["runs"] if run["collapsed"]]
    assert (len(kept["runs"]), len(collapsed)) == (24, 15)
    assert {run["cause"] for run in collapsed} == {"", "learning rate", "entropy", "reward", "format"}
    assert sum(run["cause"] == "" for run in collapsed) == 3
    assert all("reward_std" in run["signs"] for run in collapsed)
    page = " ".join((DOCS / "collapse.md").read_text(encoding="utf-8").split())
    assert "Of 24 tiny runs 15 ended" in page and "three that were meant to be healthy" in page
    assert "all 8 collapsed ones were reported and none of the 4 others: precision 1.0, recall 1.0" in page
