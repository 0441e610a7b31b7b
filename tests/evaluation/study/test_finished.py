"""Results count for the runs whose settings they have, once each, wherever else files lie."""

import json
import math
import shutil
from dataclasses import replace

import pytest

from tests.evaluation.study.test_plan import write
from tests.evaluation.study.test_report import result, summary
from turnppo_hf.cli.main import main
from turnppo_hf.evaluation.json_fields import write_fields
from turnppo_hf.evaluation.study.finished import FinishedRuns
from turnppo_hf.evaluation.study.report import claims_table
from turnppo_hf.evaluation.study.result import StudyResult
from turnppo_hf.evaluation.study.study_file import read_study

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
        made = replace(result(run.cell["method"], "1", run.seed, end), settings_hash=run.settings_hash, cell=run.cell)
        made.save(study.results / f"{run.name}.json")


def verdict(study):
    (row,) = claims_table(study.blocks, FinishedRuns(study).planned()).rows
    return row[2], row[-1]


def test_results_of_other_settings_count_nowhere(tmp_path, capsys):
    study = study_of(tmp_path)
    finish(study)
    assert verdict(study) == ("6 of 6", "**holds**") and FinishedRuns(study).left_out() == []
    other = study_of(tmp_path, settings={"max_steps": 500})
    assert verdict(other) == ("0 of 6", "**not decided**")
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
    assert verdict(renamed) == ("6 of 6", "**holds**")


def test_file_in_two_places_counts_once(tmp_path):
    study = study_of(tmp_path)
    finish(study)
    for place in ("a_backup", "old"):  # before and after the file itself
        shutil.copytree(study.results / "main", study.results / place)
    stale = study.results / "old" / "1" / "turn" / "seed_1.json"
    stale.write_text(stale.read_text().replace('"settings_hash": "', '"settings_hash": "f'))
    assert verdict(study) == ("6 of 6", "**holds**") and len(FinishedRuns(study).planned()) == 12
    assert {name.split("/")[0] for name in FinishedRuns(study).left_out()} == {"a_backup", "old"}


def test_score_that_is_no_number_is_no_pair(tmp_path):
    study = study_of(tmp_path)
    finish(study)
    file = study.results / "main/1/turn/seed_1.json"
    unknown = dict.fromkeys(("solved", "success_rate", "success_low", "success_high"))
    nothing = replace(summary(0.5), **unknown, mean_return=math.nan)
    replace(StudyResult.from_file(file), after=nothing).save(file)
    assert StudyResult.from_file(file).score is None
    assert verdict(study) == ("5 of 6", "**not decided**")


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
    ],
)
def test_damaged_result_is_named(tmp_path, changes, message):
    file = tmp_path / "seed_1.json"
    result("turn", "1", 1, 0.5).save(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        StudyResult.from_file(file)
    assert str(file) in str(caught.value)
