"""Results of a study become tables with the right figures, a verdict, and pages that need no other file."""

import re
from dataclasses import replace
from html import escape

import pytest

from tests.evaluation.study.test_plan import write
from turnppo_hf.evaluation.calibration import CriticJudgement, Group
from turnppo_hf.evaluation.example import Example
from turnppo_hf.evaluation.results import LearningPoint
from turnppo_hf.evaluation.study.pages import write_html, write_markdown
from turnppo_hf.evaluation.study.plan import hash_of
from turnppo_hf.evaluation.study.report import (
    Bold,
    Picture,
    Section,
    Table,
    cells_of,
    cells_table,
    claims_table,
    examples_table,
    levels_of,
    study_sections,
)
from turnppo_hf.evaluation.study.result import StudyResult, read_results
from turnppo_hf.evaluation.study.study_file import read_study
from turnppo_hf.evaluation.summary import Summary

ENDS = {"turn": 0.75, "tuned": 0.5}


def summary(success):
    return Summary(100, 0, int(100 * success), success, 0.0, 1.0, success, 0.1, 0.0, 4.0, 0.0, {"solved": 1})


def result(method, moves, seed, end):
    points = [LearningPoint(step, 100, rate, 0.0, 1.0, rate, 0.1) for step, rate in ((0, 0.25), (4, end))]
    return StudyResult(
        study="trial",
        block="main",
        cell={"moves": moves, "method": method},
        seed=seed,
        settings_hash=hash_of({}),
        settings={},
        wall_s=90.0,
        cpu_s=60.0,
        episodes_per_step=16.0,
        cut_share=0.0,
        before=summary(0.25),
        after=summary(end),
        curve=tuple(points),
        log={
            "step": [2, 4],
            "num_tokens": [100, 200],
            "explained_variance": [0.1, 0.3],
            "entropy": [None, 0.5],
            "time/rollout_s": [1.0, 1.0],
            "time/update_s": [2.0, 2.0],
        },
    )


def result_of(run, end):
    made = result("turn", "1", run.seed, end)
    of = {"block": run.block, "cell": dict(run.cell), "settings": dict(run.settings)}
    return replace(made, **of, settings_hash=run.settings_hash)


@pytest.fixture
def study(tmp_path):
    file = write(tmp_path, {"blocks": {"main": {"seeds": [1, 2, 3, 4, 5, 6]}}})
    return read_study(file)


@pytest.fixture
def results():
    return [result(method, "1", seed, end + 0.01 * seed) for seed in range(1, 7) for method, end in ENDS.items()]


def test_table_of_cells_holds_means_over_seeds(study, results):
    worse = replace(results[0], after=summary(0.1))
    main = study.block("main")
    cells = cells_of(main, [worse, *results[1:], result("turn", "1", 99, 0.0)])  # a seed that was not asked for
    table = cells_table(main, cells)
    assert table.header[:5] == ("moves", "method", "seeds", "start", "end (bootstrap interval)")
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["seeds"] == "6 of 6" and row["start"] == "0.250" and row["below start"] == "1 of 6"
    ends = [0.1, 0.77, 0.78, 0.79, 0.8, 0.81]
    assert row["end (bootstrap interval)"].bold == f"{sum(ends) / 6:.3f}"
    assert row["each seed"] == "0.10 0.77 0.78 0.79 0.80 0.81"
    assert row["explained variance"] == "0.200" and row["entropy"] == "0.500" and row["turns"] == "-"
    assert row["CPU min"] == "1.0"


def test_examples_stand_with_the_critics_values(study, results):
    of_critic = Example("solved", 0.75, 3, "A key.\nA door.", ("left", "right"), (0.5, 0.25))
    without = Example("task_budget", 0.0, 1, "A | door.", ("left",))
    shown = replace(results[2], examples=(of_critic, without))  # the first seed is of a version without them
    cells = cells_of(study.block("main"), [*results[:2], shown, *results[3:]])
    table = examples_table(study.block("main"), cells)
    assert table.rows == (
        ("1", "turn", "2", "solved after 3", "0.75", "A key. / A door.", "left (0.50), right (0.25), ..."),
        ("1", "turn", "2", "task_budget after 1", "0.00", "A | door.", "left"),
    )


def test_texts_of_others_are_no_markup_on_a_page(tmp_path):
    text = "a|b `c` *d* <b>e</b> [f](g) & \\ **h** _i_ j_k ![l](m)"
    table = Table((text, "mean"), ((text, Bold(text, f" {text}")),))
    section = Section(text, (text,), (table,), (Picture("a.png", text, b""),), prose="*Written* by the author.")
    page = write_markdown(text, [section], tmp_path / "page.md", "command").read_text()
    shown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table").render(page)
    cell = escape(text, quote=False)
    assert re.findall(r"<h\d>(.*?)</h\d>", shown) == [cell, cell]
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", shown) == [cell, "mean", cell, f"<strong>{cell}</strong> {cell}"]
    assert f"<p>{cell}</p>" in shown and "<p><em>Written</em> by the author.</p>" in shown
    assert f'alt="{cell}"' in shown and "j_k" in page
    page = write_html("Trial", [section], tmp_path / "page.html", "command").read_text()
    assert f"<td><strong>{escape(text)}</strong> {escape(text)}</td>" in page


def test_critic_that_discounts_tokens_is_in_no_calibration(study, results):
    groups = (Group(0.1, 0.2, 0.0),)
    judged = replace(results[0], critic=CriticJudgement(9, 0.5, 1.0, groups))
    for settings, shown in (({}, groups), ({"token_gamma": 1.0}, groups), ({"token_gamma": 0.99}, ())):
        assert replace(judged, settings={"algorithm": "token_ppo", **settings}).calibration == shown
    assert judged.calibration == groups and results[0].calibration == ()


def test_claims_are_judged_by_pairs_of_seeds(study, results):
    (row,) = claims_table(study.blocks, results).rows
    assert row[2:] == ("6 of 6", "+0.250 (+0.250 to +0.250)", "0.031", Bold("holds"))
    (row,) = claims_table(study.blocks, results[:-1]).rows  # one run is missing
    assert row[2] == "5 of 6" and row[-1] == Bold("not decided")
    (row,) = claims_table(study.blocks, []).rows
    assert row[2:] == ("0 of 6", "-", "-", Bold("not decided"))


@pytest.mark.slow
def test_pages_hold_every_table_and_picture(study, results, tmp_path):
    sections = study_sections(study.blocks, results, study.protocol, every_scale=True)
    page = write_html("Trial", sections, tmp_path / "page.html", "turnppo report").read_text()
    assert page.count("<img") == page.count("data:image/png;base64,") == 3  # one for each scale
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)
    groups = tuple(Group(0.1 * number, 0.2 * number, float("nan")) for number in range(3))
    judged = [replace(run, critic=CriticJudgement(9, 0.5, 0.99, groups)) for run in results]
    more = [*judged[:3], *(replace(run, advantages_by_turn=(0.3, 0.2, 0.1)) for run in judged[3:])]
    (section,) = (item for item in study_sections(study.blocks, more) if item.title == "Main")
    assert [picture.name for picture in section.pictures] == [
        f"main_1_{what}.png" for what in ("episodes", "calibration", "advantage-by-turn")
    ]
    assert len({picture.png for picture in section.pictures}) == 3
    assert "<strong>holds</strong>" in page and "No run of it is finished." in page
    target = write_markdown(
        "Trial", study_sections(study.blocks, results, study.protocol), tmp_path / "docs" / "page.md", "turnppo report"
    )
    text = target.read_text()
    pictures = re.findall(r"!\[[^\]]+\]\((.+?)\)", text)
    assert pictures and all((target.parent / name).stat().st_size > 1000 for name in pictures)
    assert "**holds**" in text and "Written before the runs." in text


def test_runs_with_cut_episodes_are_named(study, results):
    cut = replace(results[0], cut_share=0.02)
    titles = [section.title for section in study_sections(study.blocks, [cut, *results[1:]], study.protocol)]
    assert "Runs with cut episodes" in titles
    assert "Runs with cut episodes" not in [
        section.title for section in study_sections(study.blocks, results, study.protocol)
    ]


def test_result_file_is_read_back_and_a_damaged_one_is_named(results, tmp_path):
    results[0].save(tmp_path / "main" / "1" / "turn" / "seed_1.json")
    assert list(read_results(tmp_path).values()) == [results[0]]
    (tmp_path / "seed_2.json").write_text('{"study": 3}')
    with pytest.raises(ValueError, match=r"seed_2.json is no result of a study .*Remove the file"):
        read_results(tmp_path)


def test_runs_from_unlike_starts_are_not_compared_and_are_named(study, results):
    def starting(run, digest, rate):
        return replace(run, settings={"model": "start"}, start_digest=digest, before=summary(rate))

    of = {"turn": ("a", 0.25), "tuned": ("b", 0.25)}
    unlike = [starting(run, *of[run.cell["method"]]) for run in results]
    (row, *_) = claims_table(study.blocks, unlike).rows
    assert row[2] == "0 of 6" and row[-1] == Bold("not decided")
    titles = {section.title: section for section in study_sections(study.blocks, unlike, "Protocol.")}
    assert titles["Runs from unlike starts"].paragraphs[0].endswith("start (6 runs from 0.250, 6 runs from 0.250).")
    # a result of before digests were kept is known by what it scored first
    for rate, pairs in ((0.25, "6 of 6"), (0.5, "0 of 6")):
        of["tuned"] = ("", rate)
        (row, *_) = claims_table(study.blocks, [starting(run, *of[run.cell["method"]]) for run in results]).rows
        assert row[2] == pairs
    assert "Runs from unlike starts" not in {item.title for item in study_sections(study.blocks, results, "Protocol.")}


def test_fall_from_the_best_score_is_compared(tmp_path):
    claim = {"claim": "Tuned falls", "axis": "method", "better": "tuned", "than": "turn", "measure": "fall"}
    study = read_study(write(tmp_path, {"blocks": {"main": {"claims": [{**claim, "at": {"moves": 1}}]}}}))

    def ran(method, seed, *scores):
        return replace(
            result(method, "1", seed, scores[-1]),
            curve=tuple(LearningPoint(step, 100, rate, 0.0, 1.0, rate, 0.1) for step, rate in enumerate(scores)),
        )

    results = [ran("tuned", 1, 0.25, 0.75, 0.5), ran("turn", 1, 0.25, 0.5, 0.375)]  # falls of 0.25 and 0.125
    results += [ran("tuned", 2, 0.25, 0.125), ran("turn", 2, 0.25, 0.5)]  # of 0.125 and 0
    (row,) = claims_table(study.blocks, results).rows
    assert row[1] == "main: tuned against turn, moves 1, fall from the best score"
    assert row[2:4] == ("2 of 6", "+0.125")  # two pairs give no interval
    assert replace(results[0], curve=()).fall is None
    rewards = [replace(point, mean_return=10 * (point.success_rate or 0.0)) for point in results[0].curve]
    mixed = replace(results[0], curve=(replace(rewards[0], success_rate=None), *rewards[1:]))
    assert mixed.curve_scores == [2.5, 7.5, 5.0] and mixed.fall == 2.5  # success is not known throughout


def test_lead_is_compared_with_the_lead_elsewhere(tmp_path):
    claim = {"claim": "The lead grows", "axis": "method", "better": "turn", "than": "tuned"}
    claim |= {"at": {"moves": "1"}, "more_than_at": {"moves": "2"}}
    seeds = [1, 2, 3, 4, 5, 6]
    study = read_study(write(tmp_path, {"blocks": {"main": {"seeds": seeds, "claims": [claim]}}}))
    leads = {"1": 0.25, "2": -0.125}
    results = [
        result(method, moves, seed, 0.5 + 0.01 * seed + (lead if method == "turn" else 0.0))
        for seed in seeds
        for moves, lead in leads.items()
        for method in ENDS
    ]
    (row,) = claims_table(study.blocks, results).rows
    assert row[1] == "main: turn against tuned, moves 1 more than moves 2"
    assert row[2:] == ("6 of 6", "+0.375 (+0.375 to +0.375)", "0.031", Bold("holds"))
    (row,) = claims_table(study.blocks, results[:-1]).rows  # one run of the other lead is missing
    assert row[2] == "5 of 6" and row[-1] == Bold("not decided")


def test_levels_of_blocks_that_are_alike_stand_together_in_rising_order(tmp_path):
    method = {"turn": {"algorithm": "turn_ppo"}, "tuned": {"algorithm": "token_ppo"}}
    axes = {number: {"environment_kwargs": {"moves": number}} for number in (1, 2, 10, 20)}

    def block(*moves, **settings):
        chosen = {"moves": {number: axes[number] for number in moves}, "method": method}
        return {"question": "And longer?", "axes": chosen, "seeds": [1, 2], "settings": settings}

    blocks = {"one": block(10), "more": block(2, 1), "other": block(1, 20, max_steps=9)}
    study = read_study(write(tmp_path, {"blocks": blocks}))
    of = {"10": "one", "2": "more", "1": "more"}
    results = [replace(result("tuned", moves, 1, 0.5), block=name) for moves, name in of.items()]
    results += [replace(result("turn", moves, seed, 0.9), block=of[moves]) for moves in ("10", "2") for seed in (1, 2)]
    results += [replace(result("turn", moves, 1, 0.1), block="other") for moves in ("20", "1")]
    together, apart = levels_of(study.blocks, results)
    assert (together.axis, together.last, together.blocks) == ("moves", "method", ["one", "more"])
    assert together.values == ["1", "2", "10"]  # though the first line lacks one
    assert {line: {value: len(runs) for value, runs in at.items()} for line, at in together.lines.items()} == {
        "turn": {"10": 2, "2": 2},
        "tuned": {"10": 1, "2": 1, "1": 1},
    }
    assert (apart.blocks, apart.values, list(apart.lines)) == (["other"], ["1", "20"], ["turn"])
    assert levels_of(study.blocks, results[:1]) == []  # one value is no curve


@pytest.mark.slow
def test_page_has_the_scores_by_level(study, results):
    more = [result(method, "2", 1, end) for method, end in ENDS.items()]
    section = next(
        s for s in study_sections(study.blocks, [*results, *more]) if s.title == "Final score by moves: main"
    )
    assert section.tables[0].header == ("moves", "turn", "tuned")
    assert section.tables[0].rows[1] == (
        "2",
        Bold("0.750", ", n = 1"),
        Bold("0.500", ", n = 1"),
    )
    assert [picture.name for picture in section.pictures] == ["main_levels.png"]
