"""Results are ranked within one protocol only, by success with its interval."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.panel_results import results
from turnppo_hf.evaluation.outcome import summarize_outcomes
from turnppo_hf.evaluation.panels.leaderboard import Entry, make_board
from turnppo_hf.evaluation.panels.results import PanelResults

HUGE = 10**400  # JSON has it, floats do not


def entry(made: PanelResults, file: str = "results.json") -> Entry:
    return Entry.from_text(json.dumps(made.to_dict()), file)


def test_best_success_is_first_whatever_the_order_of_files() -> None:
    entries = [entry(results(f"m{share}", share)) for share in (0.2, 0.9, 0.5, 0.875)]
    board = make_board(entries)
    (table,) = board["tables"]
    ranked = [(row["rank"], row["model"]) for row in table["rows"]]
    assert ranked == [(1, "m0.9"), (2, "m0.875"), (3, "m0.5"), (4, "m0.2"), (None, "random")]
    assert [row["tied"] for row in table["rows"]] == [False, True, False, False, False]
    assert (table["tasks"], board["problems"]) == (40, [])
    for seed in range(5):
        assert make_board(random.Random(seed).sample(entries, 4)) == board


def test_different_protocols_are_never_in_one_table() -> None:
    made = [results("a", 0.5), results("b", 0.6), results("c", 0.9, checksum="cd34" * 16)]
    made.append(results("d", 0.9, deviations={"temperature": 1.0}))
    tables = make_board([entry(item) for item in made])["tables"]
    assert [row["model"] for row in tables[0]["rows"] if row["rank"]] == ["b", "a"]
    assert len({table["checksum"] for table in tables}) == len(tables) == 3
    assert sorted(len(table["rows"]) for table in tables) == [2, 2, 3]
    assert [table["deviations"] for table in tables if table["deviations"]] == [{"temperature": 1.0}]


def test_result_with_failed_episodes_is_shown_and_not_ranked() -> None:
    board = make_board([entry(results("whole", 0.5)), entry(results("lucky", 1.0, failed=30))])
    rows = board["tables"][0]["rows"]
    assert [(row["model"], row["rank"], row["failed"]) for row in rows] == [
        ("whole", 1, 0),
        ("lucky", None, 30),
        ("random", None, 0),
    ]


def test_result_of_other_tasks_under_the_same_checksum_is_refused_by_file_and_field() -> None:
    few = results("few", 1.0, tasks=5)
    board = make_board([entry(results("a", 0.5)), entry(results("b", 0.5)), entry(few, "few/results.json")])
    (problem,) = board["problems"]
    assert problem.startswith("few/results.json: `outcomes` holds 5 tasks that are not the 40")
    assert [row["model"] for row in board["tables"][0]["rows"]] == ["a", "b", "random"]


def test_result_cut_to_its_solved_tasks_does_not_lead() -> None:
    whole = results("whole", 0.5)
    solved = tuple(outcome for outcome in whole.outcomes if outcome.success)
    cut = replace(whole, model="cut", outcomes=solved, summary=summarize_outcomes(solved))
    with pytest.raises(ValueError, match=r"cut\.json: `outcomes` is '20 outcomes', .* 40 tasks of reference\.random"):
        entry(cut, "cut.json")
    bare = entry(replace(cut, reference={}), "cut.json")
    board = make_board([bare, bare, bare, entry(whole)])
    assert [row["model"] for row in board["tables"][0]["rows"]] == ["whole", "random"]
    assert len(board["problems"]) == 3 and board["problems"][0].startswith("cut.json: `outcomes` holds 20 tasks")
    padded = [*whole.outcomes, replace(whole.outcomes[0], task_id="t-40")]
    padded = replace(cut, reference={}, outcomes=tuple(padded), summary=summarize_outcomes(padded))
    assert make_board([entry(padded), entry(whole)])["tables"][0]["rows"][0]["model"] == "whole"
    few = results("few", 1.0, tasks=5, deviations={"episodes": 6})
    with pytest.raises(ValueError, match=r"`outcomes` is '5 outcomes', .* deviations\.episodes, 6"):
        entry(few)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("outcomes", 1, "total_reward"), 1e308),
        (("outcomes", 1, "total_reward"), -HUGE),
        (("outcomes", 1, "turns"), HUGE),
        (("summary", "mean_return"), HUGE),
        (("reference", "random", "mean_return"), HUGE),
        (("reference", "random", "success_low"), 5),
        (("player", "batch_size"), HUGE),
        (("player", "context"), "\ud800"),
        (("player", "\ud800"), 1),
        (("model",), "\ud800 model"),
    ],
    ids=lambda part: f"{part!a:.50}",
)
def test_value_that_no_page_could_show_is_refused(path: tuple[Any, ...], value: Any) -> None:
    content = results("a", 0.5).to_dict()
    part: Any = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(ValueError, match=r"^odd\.json: `") as refused:
        Entry.from_text(json.dumps(content), "odd.json")
    assert str(refused.value).startswith(f"odd.json: `{path[0]}") and len(str(refused.value)) < 300
    str(refused.value).encode()


def test_nothing_is_an_empty_board() -> None:
    assert make_board([], ["x: y"]) == {"tables": [], "problems": ["x: y"]}


def test_published_results_can_be_read_and_are_ranked() -> None:
    files = sorted((Path(__file__).parents[3] / "spaces_demo" / "results").glob("*.json"))
    board = make_board([Entry.from_text(file.read_text(encoding="utf-8"), file.name) for file in files])
    assert files and board["problems"] == []
    assert board["tables"][0]["rows"][0]["model"] == "tiny-trained"
