"""`results.json` as typed figures: what is written is what was read, and a wrong value is named."""

import json
import math
import re
import shutil
from dataclasses import replace

import pytest

from turnppo_hf.evaluation.results import RESULTS_FILE, LearningPoint, RunResults
from turnppo_hf.evaluation.summary import Summary
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.run_record import read_run
from turnppo_hf.models.pretrained import find_model

RUN = find_model("tiny-trained")
SUMMARY = RunResults.from_file(RUN).after


def test_packaged_results_are_written_as_they_were_read(tmp_path):
    RunResults.from_file(RUN).save(tmp_path)
    assert (tmp_path / "results.json").read_bytes() == (RUN / "results.json").read_bytes()


def test_figures_are_typed_when_read():
    results = RunResults.from_file(RUN)
    assert isinstance(results.after, Summary) and isinstance(results.learning_curve[0], LearningPoint)
    assert list(results.players) == ["before", "after", "random", "optimal"]
    assert results.comparison[0].after.episodes == results.after.episodes == 256
    assert results.compared().algorithm == "turn_ppo"


def test_summary_of_one_episode_survives_json():
    one = replace(SUMMARY, return_error=math.nan, success_rate=None)
    written = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert written["return_error"] is None
    read = Summary.from_dict(written)
    assert math.isnan(read.return_error) and replace(read, return_error=0.0) == replace(one, return_error=0.0)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (("after", "episodes"), "many", "`after.episodes` is 'many', it must be an integer."),
        (("after", "success_rate"), "x", "`after.success_rate` is 'x', it must be a number or null."),
        (("before", "stop_reasons"), None, "`before.stop_reasons` is None, it must be an object."),
        (("after",), None, "`after` is None, it must be an object."),
        (("critic",), [1], "`critic` is [1], it must be an object."),
        (("learning_curve", 1, "step"), None, "`learning_curve[1].step` is None, it must be an integer."),
        (("learning_curve",), "x", "`learning_curve` is 'x', it must be a list of objects."),
        (("comparison", 0, "algorithm"), "dqn", "`comparison[0].algorithm` is 'dqn', it must be one of turn_ppo"),
        (("algorithm",), "dqn", "`algorithm` is 'dqn', it must be one of turn_ppo"),
        (("schema_version",), 2, "`schema_version` is 2, it must be at most 1."),
    ],
)
def test_wrong_value_is_one_sentence_of_field_value_and_what_is_expected(place, value, sentence, tmp_path):
    content = json.loads((RUN / "results.json").read_text())
    *path, last = place
    inner = content
    for key in path:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        RunResults.from_file(tmp_path)
    (tmp_path / "turnppo.json").write_text("{}")
    with pytest.raises(ReleaseError, match=re.escape(sentence)):
        read_run(tmp_path)


def test_missing_figure_is_named(tmp_path):
    content = json.loads((RUN / "results.json").read_text())
    del content["after"]["mean_turns"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"`after\.mean_turns` is missing, it must be a number\."):
        RunResults.from_file(tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"success_low": None}, "after.success_rate"),
        ({"success_rate": 1.5}, "after.success_rate"),
        ({"episodes": -3}, "after.episodes"),
        ({"failed": -1}, "after.failed"),
    ],
)
def test_figures_that_no_episodes_give_are_named(changes, field, tmp_path):
    found = json.loads((find_model("tiny-trained") / RESULTS_FILE).read_text())
    (tmp_path / RESULTS_FILE).write_text(json.dumps({**found, "after": {**found["after"], **changes}}))
    with pytest.raises(ValueError, match=rf"results\.json is damaged, .*`{field}` is"):
        RunResults.from_file(tmp_path)


def test_results_of_a_panel_are_no_results_of_a_run(tmp_path):
    (tmp_path / RESULTS_FILE).write_text(json.dumps({"protocol_checksum": "0" * 64}))
    with pytest.raises(ValueError, match="absent: this file is of a panel"):
        RunResults.from_file(tmp_path)


@pytest.mark.parametrize("history", [None, "x", [3], [{"step": "x"}]])
def test_damaged_log_of_a_run_is_named(history, tmp_path):
    folder = shutil.copytree(find_model("tiny-trained"), tmp_path / "agent")
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    with pytest.raises(ReleaseError, match=r"trainer_state\.json is damaged: `log_history` must be a list"):
        read_run(folder)
