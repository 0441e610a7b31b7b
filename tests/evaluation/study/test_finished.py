"""Results count for the runs whose settings they have, once each, wherever else files lie."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.study.test_plan import write
from tests.evaluation.study.test_report import result, result_of, summary
from turnppo_hf.cli.main import main
from turnppo_hf.cli.study_runs import StudyRunner
from turnppo_hf.evaluation.json_fields import write_fields
from turnppo_hf.evaluation.study.finished import FinishedRuns
from turnppo_hf.evaluation.study.plan import hash_of
from turnppo_hf.evaluation.study.report import Bold, claims_table
from turnppo_hf.evaluation.study.result import StudyResult
from turnppo_hf.evaluation.study.study_file import read_study

POINT = write_fields(result("turn", "1", 1, 0.5).curve[0])
ENDS = {"turn": 0.75, "other": 0.5}


def study_of(folder, **changes):
    """A study of one block with a claim, without `best_of`."""
    claim = {"claim": "Better", "axis": "method", "better": "turn", "than": "other", "at": {"moves": "1"}}
    axes = {"moves": {"1": {}}, "method": {"turn": {}, "other": {"gamma": 0.5}}}
    block = {"question": "Which?", "axes": axes, "seeds": [1, 2, 3, 4, 5, 6], "claims": [claim]}
    file = write(folder)
    text = {"name": "trial", "protocol": "Before.", "config": "base.yaml", "results": "results", **changes}
    file.write_text(json.dumps({**text, "blocks": {"main": block}}))
    return read_study(file)


def finish(study):
    """Keep a result of every run."""
    for run in study.runs(study.blocks[0], {}):
        end = ENDS[run.cell["method"]] + 0.01 * run.seed
        result_of(run, end).save(study.results / f"{run.name}.json")


def verdict(study):
    (row,) = claims_table(study.blocks, FinishedRuns(study).planned()).rows
    return row[2], row[-1]


def test_results_of_other_settings_count_nowhere(tmp_path, capsys):
    study = study_of(tmp_path)
    finish(study)
    assert verdict(study) == ("6 of 6", Bold("holds")) and FinishedRuns(study).left_out() == []
    other = study_of(tmp_path, settings={"max_steps": 500})
    assert verdict(other) == ("0 of 6", Bold("not decided"))
    assert len(FinishedRuns(other).left_out()) == 12
    pytest.importorskip("matplotlib")
    assert main(["report", str(other.path), "--output", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "## Results left out" in page and "main/1/turn/seed_1" in page and "0 of 6" in page


def test_renamed_axis_takes_its_results_along(tmp_path):
    study = study_of(tmp_path)
    finish(study)
    file = study.path
    file.write_text(file.read_text().replace('"method"', '"algo"'))
    renamed = read_study(file)
    runs, finished = renamed.runs(renamed.blocks[0], {}), FinishedRuns(renamed)
    assert not any(finished.of(run) for run in runs)
    assert all(finished.equal_to(run) for run in runs)  # so that `turnppo study` takes them over
    for run in runs:
        finished.keep(run, replace(finished.equal_to(run), cell=dict(run.cell)))
    assert verdict(renamed) == ("6 of 6", Bold("holds"))


def test_results_of_another_study_count_nowhere_until_they_are_taken_over(tmp_path):
    finish(study_of(tmp_path, name="trial"))
    study = study_of(tmp_path, name="renamed", work="work")
    assert verdict(study) == ("0 of 6", Bold("not decided")) and len(FinishedRuns(study).left_out()) == 12
    runner = StudyRunner(study, minutes=0.0)
    assert runner.run() and verdict(study) == ("6 of 6", Bold("holds"))


def test_result_with_a_masked_secret_is_read(tmp_path):
    settings = {"hub_token": "hf_abcdefghijklmnopqrstuvwxyz"}
    made = replace(result("turn", "1", 1, 0.5), settings=settings, settings_hash=hash_of(settings))
    made.save(tmp_path / "seed_1.json")
    assert StudyResult.from_file(tmp_path / "seed_1.json").settings_hash == hash_of(settings)


def test_two_commands_keep_one_result_at_the_same_time(tmp_path, monkeypatch):
    file, made = tmp_path / "seed_1.json", result("turn", "1", 1, 0.5)
    replace_file = Path.replace

    def meanwhile_another(beside, target):
        monkeypatch.setattr(Path, "replace", replace_file)
        made.save(target)
        return replace_file(beside, target)

    monkeypatch.setattr(Path, "replace", meanwhile_another)
    made.save(file)
    assert StudyResult.from_file(file) == made and list(tmp_path.iterdir()) == [file]


def test_file_in_two_places_counts_once(tmp_path):
    study = study_of(tmp_path)
    finish(study)
    for place in ("a_backup", "old"):  # before and after the file itself
        shutil.copytree(study.results / "main", study.results / place)
    stale = study.results / "old" / "1" / "turn" / "seed_1.json"
    other = {"max_steps": 500}
    replace(StudyResult.from_file(stale), settings=other, settings_hash=hash_of(other)).save(stale)
    assert verdict(study) == ("6 of 6", Bold("holds")) and len(FinishedRuns(study).planned()) == 12
    assert {name.split("/")[0] for name in FinishedRuns(study).left_out()} == {"a_backup", "old"}


def test_score_that_is_no_number_is_no_pair(tmp_path):
    study = study_of(tmp_path)
    finish(study)
    file = study.results / "main/1/turn/seed_1.json"
    unknown = dict.fromkeys(("solved", "success_rate", "success_low", "success_high"))
    nothing = replace(summary(0.5), **unknown, mean_return=math.nan)
    replace(StudyResult.from_file(file), after=nothing).save(file)
    assert StudyResult.from_file(file).score is None
    assert verdict(study) == ("5 of 6", Bold("not decided"))


def test_secrets_stay_out_of_results(tmp_path):
    settings = {"env": {"MY_API_KEY": "sk-abcdefghijklmnop1234"}, "hub_token": "hf_abcdefghijklmnopqrstuvwxyz"}
    made = replace(result("turn", "1", 1, 0.5), settings=settings)
    made.save(tmp_path / "seed_1.json")
    text = (tmp_path / "seed_1.json").read_text()
    assert "sk-abcdef" not in text and "hf_abcdef" not in text and "MY_API_KEY" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": {"method": 3}}, r"`cell\.method` is 3, it must be a string"),
        ({"after": {**write_fields(summary(0.5)), "success_rate": 7.5}}, r"`after\.success_rate` is 7\.5"),
        ({"log": {"step": 3}}, r"`log\.step` is 3, it must be a list of numbers"),
        ({"log": {"step": ["a"]}}, "it must be a list of numbers"),
        ({"log": {"step": [math.inf]}}, "it must be a list of numbers"),
        ({"log": {"step": [True]}}, "it must be a list of numbers"),
        ({"log": {"step": [10**400]}}, "it must be a list of numbers"),
        ({"cpu_s": -5}, r"`cpu_s` is -5, it must be a number of at least 0"),
        ({"wall_s": math.inf}, r"`wall_s` is inf"),
        ({"cut_share": math.nan}, r"`cut_share` is nan"),
        ({"episodes_per_step": None}, r"`episodes_per_step` is nan"),
        ({"advantages_by_turn": [0.5, math.inf]}, r"`advantages_by_turn\[1\]` is inf"),
        ({"settings": {"max_steps": 7}}, r"`settings_hash` is '44136fa355b3678a', it must be [0-9a-f]{16}, that of"),
        ({"curve": [{**POINT, "success_rate": 7.5}]}, r"`curve\[0\]` is .*of a success between 0 and 1"),
        ({"curve": [{**POINT, "mean_return": math.inf}]}, r"`curve\[0\]` is .*and a finite return"),
        ({"curve": [{**POINT, "step": -1}]}, r"`curve\[0\]\.step` is -1"),
    ],
)
def test_damaged_result_is_named(tmp_path, changes, message):
    file = tmp_path / "seed_1.json"
    result("turn", "1", 1, 0.5).save(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        StudyResult.from_file(file)
    assert str(file) in str(caught.value)
