"""What is silently lost, merged or never judged in a study's file is refused, with its place."""

import math
import warnings
from datetime import date

import pytest

from tests.evaluation.study.test_plan import STUDY, write
from turnppo_hf.evaluation.study.plan import StudyError
from turnppo_hf.evaluation.study.study_file import read_study

CLAIM = STUDY["blocks"]["main"]["claims"][0]
TUNED = {"best_of": "tuning", "at": {"method": "token"}}


def main_with(**changes):
    return {"blocks": {"main": changes}}


def method(**values):
    return main_with(axes={"method": values})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (method(tuned={**TUNED, "gamma": 0.5}), r"tuned: 'gamma' is no key\. Known are best_of, at"),
        (method(tuned={"best_of": "tuning", "att": {}}), r"'att' is no key\. Did you mean 'at'"),
        (method(tuned={"best_of": "tuning", "at": ["token"]}), r"tuned\.at must be a mapping, got \['token'\]"),
        (main_with(settings={"best_of": "tuning"}), "which the values of an axis have alone"),
        (
            {"blocks": {"last": {"question": "?", "seeds": [1], "axes": {"method": {"best": {"best_of": "main"}}}}}},
            "the block 'main' takes settings from another block itself",
        ),
        ({"protocol": " "}, r"study\.yaml\.protocol must be a text, got ' '"),
        ({"work": None}, r"\.work must be a text, got None"),
        ({"work": ""}, r"\.work must be a text, got ''"),
        ({"name": None}, r"\.name must be a text, got None"),
        ({"name": "../elsewhere"}, r"name: '\.\./elsewhere' is no path below the folder of runs"),
        ({"name": "/elsewhere"}, "is no path below the folder of runs"),
        ({"name": "a\0b"}, r"study\.yaml\.name holds a NUL character"),
        ({"work": "a\0b"}, r"study\.yaml\.work holds a NUL character"),
        (main_with(question=None), r"main\.question must be a text, got None"),
        (main_with(claims=[{**CLAIM, "claim": True}]), r"claims\[0\]\.claim must be a text, got True"),
        (main_with(claims=[{**CLAIM, "margin": "a lot"}]), r"margin must be a number of at least 0, got 'a lot'"),
        (main_with(claims=[{**CLAIM, "margin": math.nan}]), "got nan"),
        (main_with(claims=[{**CLAIM, "margin": True}]), "got True"),
        (main_with(claims=[{**CLAIM, "than": "turn"}]), "`better` and `than` are both 'turn'"),
        (main_with(claims=[{**CLAIM, "at": {"moves": 1, "method": "turn"}}]), "`at` holds 'method', the axis that is"),
        (main_with(claims=[{**CLAIM, "more_than_at": {"method": "turn"}}]), "`more_than_at` holds 'method'"),
        ({"minutes_per_run": 0}, "minutes_per_run must be a number above 0, got 0"),
        ({"minutes_per_run": None}, "minutes_per_run must be a number above 0, got None"),
        (main_with(seeds=[1, -1]), "seeds holds -1, but generators are seeded with 0 to 4294967295"),
        (main_with(seeds=list(range(21))), "has 21 seeds, but the exact test of a claim takes 20 pairs at most"),
        (main_with(claims={}), r"claims must be a list, got \{\}"),
        (main_with(claims=False), "claims must be a list, got False"),
        (main_with(claims=[CLAIM, None]), r"claims\[1\] is empty, so there is nothing to run or to compare"),
        (main_with(claims=[CLAIM, {**CLAIM, "claim": "Again"}]), r"claims\[1\] compares what claims\[0\] compares"),
        ({"minutes_per_run": 10**400}, "minutes_per_run must be a number above 0, got inf"),
        (method(tuned={"best_of": "tuning", "at": {"rate": 1e-3}}), r"0\.001 is no value of the axis 'rate'\. YAML"),
        (method(tuned={"best_of": "tuning", "at": {"rat": "low"}}), r"block 'tuning': 'rat' is no axis .*'rate'"),
        (main_with(axes={"method": {"turn": {}, True: {}}}), r"axes\.method has the name True, which is no text"),
        (main_with(axes={None: {"a": {}}}), r"axes has the name None, which is no text"),
        ({"blocks": {date(2024, 1, 1): STUDY["blocks"]["tuning"]}}, r"blocks has the name datetime\.date"),
        ({"settings": {"seed": 3}}, "settings sets `seed`, which the study chooses"),
        ({"settings": {"resume_from_checkpoint": True}}, "settings sets `resume_from_checkpoint`"),
        ({"starts": {"runs/start": "imitate X"}}, "no run has 'runs/start' as its `model`"),
        ({"settings": {"model": "a/b"}, "starts": {"a/b": ["imitate"]}}, r"starts\.a/b must be a text"),
        ({"settings": {"model": "start"}, "starts": {"strat": "imitate X"}}, "Did you mean 'start'"),
        (
            {
                **method(turn={"model": "x/start"}, other={"model": "y/start"}),
                "starts": {"x/start": "a", "y/start": "b"},
            },
            "two folders are called 'start'",
        ),
        (method(**{"../../elsewhere": {}}), "is no path below the folder of results"),
        (method(**{"": {}}), "is no path below the folder of results"),
        ({"blocks": {"/block": STUDY["blocks"]["tuning"]}}, "is no path below the folder of results"),
        (
            main_with(axes={"moves": {"1/turn": {}}, "method": {"turn/x": {}, "x": {}}}),
            "two runs would be called 'main/1/turn/x/seed_1'",
        ),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path, changes, message):
    with pytest.raises(StudyError, match=message):
        read_study(write(tmp_path, changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blocks: {a: {}, b: {}, a: {}}", "study.yaml sets `a` twice, in lines 1 and 1"),
        ('axes: {1: {}, "1": {}}', "sets `1` twice"),
        ("- a list", "study.yaml must be a mapping of field names to values, got list"),
        ("a: [", "study.yaml is no YAML"),
        ("a: {1e-3: x, 0.001: y}", "study.yaml sets `0.001` twice"),
        ("a: {on: x, true: y}", "study.yaml sets `true` twice"),
        ("a: &a {b: *a}", "study.yaml is no YAML: found unconstructable recursive node"),
        ("a: &a [*a]", "study.yaml is no YAML: found unconstructable recursive node"),
        ("a: " + "[" * 2000 + "]" * 2000, "study.yaml is nested too deeply"),
        ("a: 2024-13-45", "study.yaml is no YAML: month must be in 1..12"),
        ("a: " + "9" * 5000, "study.yaml is no YAML: Exceeds the limit"),
        ("a: !!bool x", "study.yaml is no YAML"),
        ("a: !!timestamp x", "study.yaml is no YAML"),
    ],
)
def test_file_is_read_as_strictly_as_a_config(tmp_path, text, message):
    file = write(tmp_path)
    file.write_text(text)
    with pytest.raises(StudyError, match=message):
        read_study(file)


@pytest.mark.parametrize("written", ["sokoban_cpu", "trainer_configs/sokoban_cpu.yaml", "here.yaml"])
def test_config_is_found_beside_the_study_and_as_training_finds_it(tmp_path, monkeypatch, written):
    file = write(tmp_path, {"config": written})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.yaml").write_text("model: tiny\n")
    assert read_study(file).settings["model"] == "tiny"


@pytest.mark.parametrize(
    ("written", "near"),
    [("bsae.yaml", r"Did you mean 'base\.yaml'"), ("sokobn_cpu", "Did you mean 'sokoban_cpu'")],
)
def test_config_that_is_not_there_is_named_with_the_study_and_the_nearest(tmp_path, written, near):
    file = write(tmp_path, {"config": written})
    with pytest.raises(StudyError, match=f"study\\.yaml\\.config: {written!r} cannot be read: No such.*{near}"):
        read_study(file)


def test_config_below_is_read_as_training_reads_it(tmp_path):
    file = write(tmp_path, {"settings": {"environment_kwargs": {"size": 6}}})
    base = tmp_path / "base.yaml"
    base.write_text('model: tiny\nlearning_rate: 1e-1\nenvironment_kwargs: \'{"size": 5, "split": "train"}\'\n')
    settings = read_study(file).settings
    assert settings["learning_rate"] == 0.1
    assert settings["environment_kwargs"] == {"size": 6, "split": "train"}
    base.write_text("model: tiny\nresume_from_checkpoint: true\n")
    with pytest.raises(StudyError, match="each run of a study begins anew"):
        read_study(file)
    base.write_text("model: tiny\ngamma: 0.9\ngamma: 0.8\n")
    with pytest.raises(StudyError, match="sets `gamma` twice"):
        read_study(file)


def test_values_with_a_slash_are_folders_of_their_own(tmp_path):
    study = read_study(write(tmp_path, method(**{"1/1": {}, "0.99/0.9": {}})))
    (main,) = [block for block in study.blocks if block.name == "main"]
    names = {run.name for run in study.runs(main, {key: {} for key in study.best_requests(main)})}
    assert {"main/1/1/1/seed_1", "main/1/0.99/0.9/seed_1"} <= names


@pytest.mark.parametrize(("seeds", "warns"), [([1, 2], 1), ([1, 2, 3, 4, 5], 1), ([1, 2, 3, 4, 5, 6], 0)])
def test_claims_that_too_few_seeds_leave_open_are_warned_of(tmp_path, seeds, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_study(write(tmp_path, main_with(seeds=seeds)))
    found = [item for item in caught if "so its claims will stay not decided" in str(item.message)]
    assert len(found) == warns
