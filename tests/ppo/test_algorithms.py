"""docs/algorithms.md is the table of algorithms, with what each needs."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "algorithms.md").read_text(encoding="utf-8")


def rows(page, header):
    """Cells of the table whose header begins with these cells."""
    table = page.split(f"| {' | '.join(header)} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in table]


def test_page_has_a_row_for_each_algorithm_with_what_it_needs_and_a_source():
    table = rows(PAGE, ["`algorithm`", "groups", "critic", "states"])
    assert [row[0].strip("`") for row in table] == list(ALGORITHMS)
    for name, groups, critic, states, *texts in table:
        algorithm = ALGORITHMS[name.strip("`")]
        needs = (algorithm.num_generations > 1, algorithm.has_critic, algorithm.credits_states)
        assert (groups, critic, states) == tuple("yes" if need else "no" for need in needs), name
        assert len(texts) == 3 and all(texts) and "https://arxiv.org/abs/" in texts[-1]


def test_page_names_fields_and_the_algorithms_that_take_them():
    names = {item.name for item in fields(TurnPPOConfig)}
    for field, takes, *_ in rows(PAGE, ["field", "to"]):
        name, _, value = field.strip("`").partition(": ")
        assert name in names
        values = {name: value or 1}
        taken = re.findall(r"`(\w+)`", takes)
        assert taken
        for algorithm in ALGORITHMS:
            settings = {"use_cpu": True, "algorithm": algorithm, "generation_batch_size": 8, **values}
            try:
                TurnPPOConfig("unused", **settings)
            except ValueError as error:
                assert algorithm not in taken and name in str(error)
            else:
                assert algorithm in taken


def test_measured_table_is_that_of_the_runs():
    kept = json.loads((DOCS / "task_choice.json").read_text(encoding="utf-8"))["runs"]
    table = rows(PAGE, ["fields", "success on held-out levels", "groups replaced", "CPU s"])
    names = [re.search(r"`(filter_groups|task_sampling): (\w+)`", row[0]).groups() for row in table]
    assert {" ".join(name) for name in names} == {run["name"] for run in kept}
    for name, (_, success, replaced, seconds) in zip(names, table, strict=True):
        runs = [run for run in kept if run["name"] == " ".join(name)]
        assert success == ", ".join(f"{run['held_out_success']:.2f}" for run in runs)
        assert seconds == ", ".join(f"{run['cpu_s']:.0f}" for run in runs)
        assert replaced in ("-", ", ".join(f"{run['replaced_groups']:.0f}" for run in runs))
