"""`turnppo report`: what it cannot read, draw or write is said, and nothing is counted twice."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.study.test_report import result
from turnppo_hf.cli.main import main
from turnppo_hf.evaluation.json_fields import write_fields
from turnppo_hf.evaluation.study.pages import write_html, write_markdown
from turnppo_hf.evaluation.study.report import Picture, Section, Table
from turnppo_hf.evaluation.study.result import StudyResult


def finish(made: Path) -> Path:
    """Write what a finished run leaves in its folder, as far as a page reads it."""
    made.mkdir(parents=True)
    known = write_fields(result("turn", "1", 1, 0.5))
    results = {name: known[name] for name in ("before", "after", "seed")}
    (made / "results.json").write_text(json.dumps({**results, "learning_curve": known["curve"]}))
    (made / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 2, "reward": 0.5}]}))
    sizes = {"generation_batch_size": 32, "num_minibatches": 2, "num_iterations": 1}
    (made / "training_config.json").write_text(json.dumps(sizes))
    (made / "train_config.yaml").write_text("per_device_train_batch_size: 4\n")
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finish(tmp_path / "run")


def test_run_that_is_named_twice_is_one(run, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    assert main(["report", str(run), str(run / "results.json"), "--output", str(page)]) == 0
    (row,) = [line for line in page.read_text().splitlines() if line.startswith(f"| {run}")]
    assert "| 1 of 1 |" in row


def test_episodes_are_those_that_the_run_played(run):
    from turnppo_hf.cli.report import _read_runs

    _, (read,) = _read_runs([str(run)])
    assert read.episodes_per_step == 16.0  # what its config file leaves out stands in training_config.json


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train_config.yaml", "", "train_config.yaml must be a mapping"),
        ("train_config.yaml", "a: [", "train_config.yaml is no YAML"),
        ("trainer_state.json", None, "trainer_state.json cannot be read"),
        ("trainer_state.json", "[1", "trainer_state.json cannot be read"),
        ("training_config.json", "[]", "training_config.json holds no JSON object"),
        ("training_config.json", '{"generation_batch_size": "many"}', "`generation_batch_size` is 'many', it must be"),
        ("training_config.json", '{"generation_batch_size": [8]}', "`generation_batch_size` is [8], it must be"),
        ("training_config.json", '{"num_iterations": -1}', "`num_iterations` is -1, it must be"),
        ("trainer_state.json", '{"log_history": [1, 2]}', "`log_history` must be a list of objects"),
        ("trainer_state.json", '{"log_history": null}', "`log_history` must be a list of objects"),
        ("trainer_state.json", '{"log_history": [{"reward": 1, "step": "y"}]}', "`step` of step 1 is 'y', no number"),
        ("trainer_state.json", '{"log_history": [{"reward": []}]}', "`reward` of step 1 is [], no number"),
        (
            "trainer_state.json",
            '{"log_history": [{"reward": 1, "stop/overlong": null}]}',
            "`stop/overlong` of step 1 is None, no number",
        ),
        ("trainer_state.json", "[" * 100_000, "trainer_state.json cannot be read"),
    ],
)
def test_damaged_run_is_named_with_its_file(run, tmp_path, capsys, name, text, message):
    (run / name).unlink() if text is None else (run / name).write_text(text)
    assert main(["report", str(run), "--output", str(tmp_path / "page.md")]) == 2
    error = capsys.readouterr().err
    assert message in error and str(run) in error and "Traceback" not in error


def test_runs_judged_on_other_tasks_share_no_page(run, tmp_path, capsys):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    results = json.loads((other / "results.json").read_text())
    (other / "results.json").write_text(json.dumps({**results, "held_out": {"seed": 5}}))
    assert main(["report", str(run), str(other), "--output", str(tmp_path / "page.html")]) == 2
    assert "was judged on other held-out tasks" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["curve", "page.txt", "."])
def test_output_without_a_known_format_is_refused(run, capsys, output):
    assert main(["report", str(run), "--output", output]) == 2
    assert "names no format" in capsys.readouterr().err and not Path(output).is_file()


def test_metric_of_a_page_is_refused(run, tmp_path, capsys):
    assert main(["report", str(run), "--metric", "return", "--output", str(tmp_path / "page.md")]) == 2
    assert "`--metric` is of a picture" in capsys.readouterr().err


def test_run_without_scores_has_a_page(run, tmp_path):
    pytest.importorskip("matplotlib")
    results = json.loads((run / "results.json").read_text())
    del results["after"], results["before"]
    (run / "results.json").write_text(json.dumps(results))
    assert main(["report", str(run), "--output", str(tmp_path / "PAGE.HTML")]) == 0
    assert "<td>0 of 0</td>" in (tmp_path / "PAGE.HTML").read_text()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dorkey", "Did you mean 'doorkey'"),
        ("nope.yaml", "The package has doorkey, sokoban"),
        ("rnu", "Did you mean 'run'"),
        ("no/such/run", "The package has doorkey, sokoban"),
        ("run/trainer_state.json", "The package has"),
        ("run/train_config.yml", "Did you mean 'run/train_config.yaml'"),
    ],
)
@pytest.mark.parametrize("output", ["page.md", "curve.png"])
def test_what_is_no_run_and_no_study_is_named_with_the_nearest(run, monkeypatch, capsys, name, near, output):
    monkeypatch.chdir(run.parent)
    assert main(["report", name, "--output", output]) == 2
    error = capsys.readouterr().err
    assert f"{name!r} is no folder of a run, no results.json and no study" in error and near in error


def test_file_in_the_place_of_the_pictures_is_named(tmp_path):
    (tmp_path / "page").write_text("a file")
    pictures = (Picture("a.png", "a", b""),)
    with pytest.raises(ValueError, match="is a file, but the pictures of"):
        write_markdown("T", [Section("S", (), (), pictures)], tmp_path / "page.md", "command")
    assert write_markdown("T", [Section("S")], tmp_path / "page.md", "command").exists()  # it has none


def test_run_without_a_curve_stands_beside_one_with_a_curve(run, tmp_path):
    pytest.importorskip("matplotlib")
    bare = finish(tmp_path / "bare")
    results = json.loads((bare / "results.json").read_text())
    (bare / "results.json").write_text(json.dumps({**results, "learning_curve": []}))
    for runs, drawn in (([run, bare], True), ([bare], False)):
        assert main(["report", *map(str, runs), "--output", str(tmp_path / "page.md")]) == 0
        text = (tmp_path / "page.md").read_text()
        assert "/bare | 1 of 1 | 0.250 |" in text and ("![" in text) is drawn


def test_time_of_a_run_is_that_on_the_clock(run, tmp_path):
    pytest.importorskip("matplotlib")
    results = json.loads((run / "results.json").read_text())
    for duration, shown in (({"duration_s": {"training": 60.0, "total": 90.0}}, "1.5"), ({}, "-")):
        (run / "results.json").write_text(json.dumps({**results, **duration}))
        assert main(["report", str(run), "--output", str(tmp_path / "page.md")]) == 0
        header, _, row = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("|")]
        assert header.endswith("| wall min |") and row.endswith(f"| {shown} |")


def test_number_of_the_log_that_is_not_finite_is_kept_as_unknown(run, tmp_path):
    from turnppo_hf.cli.report import _read_runs

    steps = '{"log_history": [{"reward": 1, "explained_variance": NaN}, {"reward": 1, "explained_variance": 0.5}]}'
    (run / "trainer_state.json").write_text(steps)
    _, (read,) = _read_runs([str(run)])
    assert read.log["explained_variance"] == [None, 0.5]
    read.save(tmp_path / "seed_1.json")
    assert StudyResult.from_file(tmp_path / "seed_1.json") == read


def test_pictures_of_a_markdown_page_are_found_and_apart(tmp_path):
    pictures = (Picture("a-b.png", "a b", b"one"), Picture("a-b.png", "a/b", b"two"))
    table = Table(("claim",), (("two\nlines",),))
    page = write_markdown("T", [Section("S", (), (table,), pictures)], tmp_path / "my page.md", "command").read_text()
    links = re.findall(r"!\[.+?\]\((\S+)\)", page)
    assert links == ["my%20page/a-b.png", "my%20page/a-b-2.png"]
    assert [(tmp_path / "my page" / name).read_bytes() for name in ("a-b.png", "a-b-2.png")] == [b"one", b"two"]
    assert "| two lines |" in page
    assert "two\nlines" in write_html("T", [Section("S", (), (table,))], tmp_path / "p.html", "command").read_text()


def test_log_of_another_version_is_drawn_over_steps():
    from turnppo_hf.evaluation.study.curves import _positions

    run = result("turn", "1", 1, 0.5)
    log = {name: values for name, values in run.log.items() if name != "time/update_s"}
    assert _positions(replace(run, log=log), "seconds") == [0.0, 4.0]
