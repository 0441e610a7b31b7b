"""`turnppo study`: runs are trained once, a failing one stops no other, a killed study goes on where it was."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import yaml

from tests.cli.test_report import finish
from tests.evaluation.study.test_report import result_of
from turnppo_hf.cli import study_runs, study_starts
from turnppo_hf.cli.main import main
from turnppo_hf.cli.study_runs import StudyRunner
from turnppo_hf.cli.train_arguments import parse_run
from turnppo_hf.evaluation.study.result import read_results, weights_digest
from turnppo_hf.evaluation.study.study_file import read_study

CONFIG = Path(__file__).parents[2] / "trainer_configs" / "sokoban_cpu.yaml"
SMALL = {
    **{"max_steps": 2, "generation_batch_size": 8, "eval_episodes": 8, "eval_steps": 1, "logging_steps": 1},
    **{"num_tasks": 16, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"},
}


def write(folder: Path, methods: dict, seeds: list[int]) -> Path:
    block = {"question": "Which?", "axes": {"method": methods}, "seeds": seeds}
    study = {
        **{"name": "trial", "protocol": "None.", "config": str(CONFIG), "results": "results", "work": "work"},
        **{"settings": SMALL, "blocks": {"first": block}},
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return file


def test_run_that_would_be_refused_is_named_before_any_starts(tmp_path, capsys):
    file = write(tmp_path, {"good": {}, "bad": {"learning_rat": 1e-3}}, [1])
    assert main(["study", str(file)]) == 2
    error = capsys.readouterr().err
    assert "first/bad/seed_1 cannot run" in error and "Did you mean `learning_rate`" in error
    assert not (tmp_path / "results").exists()
    assert main(["study", str(file), "--only", "nothing"]) == 2
    assert "in no run's name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"environment_kwargs": {"num_boxs": 2}}, "has no argument 'num_boxs'. Did you mean 'num_boxes'"),
        ({"eval_environment_kwargs": {"splt": "test"}}, "has no argument 'splt'. Did you mean 'split'"),
        ({"environment": "sokobn"}, "Unknown environment 'sokobn'. Did you mean 'turnppo_hf/Sokoban-v0'"),
        ({"environment_kwargs": {"size": date(2024, 1, 1)}}, "are no JSON"),
    ],
)
def test_run_that_would_end_at_once_is_named_before_any_starts(tmp_path, capsys, settings, message):
    assert main(["study", str(write(tmp_path, {"good": {}, "bad": settings}, [1])), "--list"]) == 2
    error = capsys.readouterr().err
    assert "study.yaml: first/bad/seed_1 cannot run." in error and message in error


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("imitate 'minigrid", "cannot be split into words: No closing quotation"),
        ("ONE=1 imitat minigrid", "'imitat' is no command that makes an agent to start from. Did you mean 'imitate'"),
        ("ONE=1", "'' is no command"),
        ("push start", "'push' is no command that makes an agent"),
    ],
)
def test_start_that_no_command_makes_is_named_before_any_run(tmp_path, capsys, command, message):
    file = write(tmp_path, {"good": {"model": "start"}}, [1])
    study = yaml.safe_load(file.read_text()) | {"starts": {"start": command}}
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    assert main(["study", str(file), "--list"]) == 2
    assert f"{file}: starts.start: " in (error := capsys.readouterr().err) and message in error


def test_claim_about_equal_runs_is_refused_as_soon_as_it_is_known(tmp_path, begun, capsys):
    file = write(tmp_path, {"tuned": {"gamma": 0.5}}, [1, 2, 3, 4, 5, 6])
    study = yaml.safe_load(file.read_text())
    axes = {"method": {"best": {"best_of": "first"}, "same": {"gamma": 0.5}}}
    claims = [{"claim": "It pays", "axis": "method", "better": "best", "than": "same"}]
    second = {"question": "And then?", "seeds": [1, 2, 3, 4, 5, 6], "axes": axes, "claims": claims}
    file.write_text(yaml.safe_dump(study | {"blocks": study["blocks"] | {"second": second}}, sort_keys=False))
    message = "the claim 'It pays' of the block 'second' compares 'best' with 'same', whose runs have equal settings"
    assert main(["study", str(file)]) == 1  # the best cell was not known when the study was checked
    assert message in capsys.readouterr().out and {name.split("/")[0] for name in begun} == {"first"}
    assert main(["study", str(file), "--list"]) == 2
    assert message in capsys.readouterr().err


def test_example_of_the_page_is_a_study(tmp_path, capsys, monkeypatch):
    page = (CONFIG.parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(name: .+?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(example)
    assert main(["study", "study.yaml", "--list"]) == 0
    assert capsys.readouterr().out.count("not run") == 12
    assert list(Path().iterdir()) == [Path("study.yaml")]
    assert read_study("study.yaml").work == tmp_path / "runs" / "studies" / "trial"


def test_candidate_that_may_not_be_chosen_is_not_warned_of(tmp_path, capsys):
    file = write(tmp_path, {"good": {"beta": 0.1, "kl_estimator": "k1"}}, [1])
    with pytest.warns(UserWarning, match="expected gradient is 0"):
        StudyRunner(read_study(file)).check()
    study = yaml.safe_load(file.read_text())
    study["blocks"]["first"]["axes"]["method"] = {"good": {"beta": 0.1}}
    idle = {"settings": {"kl_estimator": "k1"}, "axes": {"method": {"best": {"best_of": "first"}}}}
    second = {"question": "And then?", "seeds": [1], **idle}
    file.write_text(yaml.safe_dump(study | {"blocks": study["blocks"] | {"second": second}}, sort_keys=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        StudyRunner(read_study(file)).check()


def test_list_names_the_chosen_runs_only(tmp_path, capsys):
    file = write(tmp_path, {"good": {}, "other": {"gamma": 0.5}}, [1, 2])
    assert main(["study", str(file), "--list", "--only", "other"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [[f"first/other/seed_{seed}", "not", "run"] for seed in (1, 2)]


def test_blocks_without_a_chosen_run_are_not_spoken_of(tmp_path, capsys):
    file = write(tmp_path, {"good": {}, "other": {"gamma": 0.5}}, [1])
    study = yaml.safe_load(file.read_text())
    waits = {"question": "And then?", "axes": {"method": {"best": {"best_of": "first", "at": {}}}}, "seeds": [1]}
    file.write_text(yaml.safe_dump(study | {"blocks": study["blocks"] | {"second": waits}}, sort_keys=False))
    runner = StudyRunner(read_study(file), only="first/good")
    (run,) = runner._chosen(runner.blocks[0], {})
    result_of(run, 0.5).save(tmp_path / "results" / "first" / "good" / "seed_1.json")
    assert main(["study", str(file), "--only", "first/good"]) == 0  # every chosen run is finished
    assert "second" not in capsys.readouterr().out
    assert main(["study", str(file), "--list"]) == 0
    assert "second: waits" in capsys.readouterr().out


def test_two_commands_check_one_study_at_the_same_time(tmp_path, monkeypatch):
    file = write(tmp_path, {"good": {}}, [1])
    parse_run = study_runs.parse_run

    def meanwhile_another(arguments):
        monkeypatch.setattr(study_runs, "parse_run", parse_run)
        assert main(["study", str(file), "--list"]) == 0
        return parse_run(arguments)

    monkeypatch.setattr(study_runs, "parse_run", meanwhile_another)
    assert main(["study", str(file), "--list"]) == 0
    assert list(tmp_path.iterdir()) == [file]  # and leave nothing behind


def test_start_is_made_with_the_variables_before_its_command_where_none_is_kept(tmp_path, monkeypatch):
    file = write(tmp_path, {"good": {"model": str(tmp_path / "start")}}, [1])
    study = yaml.safe_load(file.read_text()) | {
        "starts": {str(tmp_path / "start"): "ONE_WAY=slow imitate CONFIG --x=1"}
    }
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    made = []

    def make(command, *, env, check, preexec_fn):
        made.append((command[-3:], env["ONE_WAY"]))
        (tmp_path / "start").mkdir(exist_ok=True)
        raise KeyboardInterrupt  # in the middle of it

    monkeypatch.setattr(study_starts.subprocess, "run", make)
    runner = StudyRunner(read_study(file))
    for times in (1, 2):  # what was left in the middle is no start
        with pytest.raises(KeyboardInterrupt):
            runner.run()
        assert made == [(["imitate", "CONFIG", "--x=1"], "slow")] * times
    kept = tmp_path / "results" / "starts" / "start"
    kept.mkdir(parents=True)
    (kept / "model.safetensors").write_bytes(b"kept")
    with pytest.raises(KeyboardInterrupt):  # a kept one without its record is none either
        study_starts.prepare_start(runner.study, str(tmp_path / "start"), [])
    (kept / "turnppo.json").write_text("{}")
    study_starts.prepare_start(runner.study, str(tmp_path / "start"), [])
    assert {path.name for path in (tmp_path / "start").iterdir()} == {"model.safetensors", "turnppo.json"}
    assert len(made) == 3
    study_starts.prepare_start(runner.study, str(tmp_path / "start"), [])  # it is there
    StudyRunner(read_study(file), minutes=0.0).run()
    assert len(made) == 3


def test_start_with_other_weights_than_finished_runs_had_is_refused(tmp_path, capsys):
    start = tmp_path / "start"
    start.mkdir()
    (start / "model.safetensors").write_bytes(b"weights")
    file = write(tmp_path, {"good": {"model": str(start)}, "other": {"model": str(start), "gamma": 0.5}}, [1])
    study = read_study(file)
    finished = result_of(study.runs(study.blocks[0], {})[0], 0.5)
    digest = weights_digest(start)
    assert digest and not weights_digest("tiny") and not weights_digest(None)
    for known, refused in ((digest, False), ("", False), ("another", True)):
        replace(finished, start_digest=known).save(tmp_path / "results" / "first" / "good" / "seed_1.json")
        runner = StudyRunner(read_study(file))
        if refused:
            assert main(["study", str(file)]) == 1
            error = capsys.readouterr().out
            assert f"{start} holds other weights than the ones that 1 finished runs" in error
            assert "first/good/seed_1 was one" in error and "Bring that folder back" in error
        else:
            runner.minutes = 0.0
            assert not runner.run()
        assert not list((tmp_path / "work").rglob("*.log"))  # no run was started
    (start / "model.safetensors").unlink()
    assert main(["study", str(file)]) == 1
    assert f"{start} is not there; it held the weights that 1 finished runs" in capsys.readouterr().out


@pytest.fixture
def begun(monkeypatch):
    """Names of the runs that a study starts, each of which is finished at once."""
    names = []

    def start(runner, run, lock):
        names.append(run.name)
        runner.finished.keep(run, result_of(run, 0.5))
        return study_runs._Job(run, None, Path(), Path(), lock)

    monkeypatch.setattr(StudyRunner, "_start", start)
    monkeypatch.setattr(StudyRunner, "_has_ended", lambda *_, **__: True)
    return names


def test_runs_with_equal_settings_are_trained_once(tmp_path, begun):
    file = write(tmp_path, {"good": {}, "same": {}, "other": {"gamma": 0.5}}, [1, 2])
    assert StudyRunner(read_study(file), workers=6).run()
    assert begun == ["first/good/seed_1", "first/other/seed_1", "first/good/seed_2", "first/other/seed_2"]
    assert len(read_results(tmp_path / "results")) == 6


def test_run_that_another_command_trains_or_has_finished_is_left_to_it(tmp_path, begun, capsys):
    file = write(tmp_path, {"good": {}, "same": {}}, [1, 2])
    other, runner = (StudyRunner(read_study(file)) for _ in range(2))
    first, second, same, _ = sorted(
        other.study.runs(other.blocks[0], {}), key=lambda run: (run.cell["method"], run.seed)
    )
    lock = other._lock(first)
    assert not runner.run()
    assert begun == [second.name]
    assert "first: 2 runs are trained by another command now" in capsys.readouterr().out  # the equal one, too
    other.finished.keep(first, result_of(first, 0.5))
    os.close(lock)
    assert runner.run() and begun == [second.name]  # read from its file, not trained again
    assert runner.finished.of(same)


def test_run_that_cannot_be_started_stops_no_other(tmp_path, begun, capsys):
    file = write(tmp_path, {"good": {}, "long" * 65: {"gamma": 0.5}, "other": {"gamma": 0.7}}, [1])
    assert main(["study", str(file), "--workers", "1"]) == 1
    assert {"first/good/seed_1", "first/other/seed_1"} < set(begun)
    assert len(read_results(tmp_path / "results")) == 2
    assert "long/seed_1: it cannot be started: [Errno 36] File name too long" in capsys.readouterr().out


def test_result_that_cannot_be_taken_over_stops_no_other(tmp_path, begun, capsys):
    file = write(tmp_path, {"good": {}, "long" * 65: {}, "other": {"gamma": 0.7}}, [1])
    assert main(["study", str(file), "--workers", "1"]) == 1
    assert begun == ["first/good/seed_1", "first/other/seed_1"]
    assert "long/seed_1: its result, that of first/good/seed_1, cannot be kept" in capsys.readouterr().out


def test_runs_of_other_settings_have_folders_of_their_own(tmp_path):
    folders = set()
    for gamma in (0.5, 0.7):
        runner = StudyRunner(read_study(write(tmp_path, {"good": {"gamma": gamma}}, [1])))
        (run,) = runner._chosen(runner.blocks[0], {})
        folders.add(runner._folder(run))
    assert len(folders) == 2


@pytest.mark.parametrize("is_of_the_run", [True, False])
def test_folder_of_other_settings_gives_no_result(tmp_path, capsys, is_of_the_run):
    runner = StudyRunner(read_study(write(tmp_path, {"good": {}}, [1])))
    (run,) = runner._chosen(runner.blocks[0], {})
    folder = finish(runner._folder(run))
    config, record = folder.with_suffix(".yaml"), folder / "train_config.yaml"
    runner._write_config(run, config, folder)
    record.write_text(parse_run([str(config)]).again() if is_of_the_run else "gamma: 0.5\n")
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert runner._has_ended(study_runs._Job(run, process, folder, Path(), 0), left=0)
    assert ("is that of other settings" in capsys.readouterr().out) is not is_of_the_run
    assert bool(runner.finished.of(run)) is is_of_the_run


def test_progress_counts_each_run_that_ends(tmp_path, begun, monkeypatch):
    counts = []
    monkeypatch.setattr(StudyRunner, "_has_ended", lambda _, job, left: counts.append(left) or True)
    assert StudyRunner(read_study(write(tmp_path, {"good": {}}, [1, 2, 3])), workers=3).run()
    assert counts == [2, 1, 0]


def test_variables_of_one_cell_stay_out_of_the_others(tmp_path):
    file = write(tmp_path, {"with": {"env": {"MY_FLAG": "1"}}, "without": {}}, [1])
    before = dict(os.environ)
    StudyRunner(read_study(file)).check()
    assert dict(os.environ) == before and "MY_FLAG" not in before


@pytest.mark.parametrize("folder", ["results", "work"])
def test_folder_that_cannot_be_written_is_named_before_any_run(tmp_path, begun, capsys, folder):
    file = write(tmp_path, {"good": {}}, [1])
    (tmp_path / folder).write_text("a file")
    assert main(["study", str(file)]) == 2
    error = capsys.readouterr().err
    assert "cannot be written (File exists), so no run could be kept" in error and f"`{folder}` in {file}" in error
    assert begun == []


def test_start_that_cannot_be_made_is_tried_once_and_stops_no_other_run(tmp_path, begun, monkeypatch, capsys):
    start = str(tmp_path / "start")
    file = write(tmp_path, {"good": {"model": start}}, [1])
    study = yaml.safe_load(file.read_text())
    second = {"question": "And?", "axes": {"method": {"tiny": {}, "same": {"model": start}}}, "seeds": [1]}
    changes = {"starts": {start: "NCCL_P2P=1 lower=2 imitate X"}, "blocks": study["blocks"] | {"second": second}}
    file.write_text(yaml.safe_dump(study | changes, sort_keys=False))
    failed = subprocess.CompletedProcess((), 3)
    asked = []
    monkeypatch.setattr(study_starts.subprocess, "run", lambda words, **how: asked.append((words, how)) or failed)
    assert main(["study", str(file)]) == 1
    assert begun == ["second/tiny/seed_1"]
    assert f"failed: {start}: `turnppo NCCL" in capsys.readouterr().out
    ((words, how),) = asked
    assert words[-2:] == ["imitate", "X"] and (how["env"]["NCCL_P2P"], how["env"]["lower"]) == ("1", "2")


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch, capsys):
    file = write(tmp_path, {"good": {}}, [1])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(StudyRunner, "_start", interrupted)
    assert main(["study", str(file)]) == 130
    assert "the same command goes on" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "value"), [("--minutes", "nan"), ("--minutes", "-1"), ("--workers", "0")])
def test_flags_that_would_start_nothing_are_refused(tmp_path, capsys, flag, value):
    assert main(["study", str(write(tmp_path, {"good": {}}, [1])), flag, value]) == 2
    assert f"`{flag}` must be at least" in capsys.readouterr().err


@pytest.mark.slow
def test_failing_run_stops_no_other_and_finished_ones_are_kept(tmp_path, capsys):
    file = write(tmp_path, {"bad": {"model": str(tmp_path / "nowhere")}, "good": {}}, [1, 2])
    assert main(["study", str(file), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("first/bad/seed_1: failed") == 1 and "nowhere" in printed
    results = list(read_results(tmp_path / "results").values())
    assert [(item.cell["method"], item.seed) for item in results] == [("good", 1), ("good", 2)]
    assert all(item.cpu_s > 0 and len(item.curve) == 3 and item.episodes_per_step == 4 for item in results)
    assert all(item.advantages_by_turn and item.examples and item.critic.groups for item in results)
    assert all("log_ratio/p99" in item.log for item in results)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "results").rglob("*.json")}
    assert main(["study", str(file), "--only", "good"]) == 0  # nothing is trained again
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "results").rglob("*.json")}
    assert main(["study", str(file), "--list"]) == 0
    assert capsys.readouterr().out.count("not run") == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a run outlives a study that is killed")
def test_killed_study_leaves_no_run_behind_and_loses_only_those_in_hand(tmp_path):
    file = write(tmp_path, {"good": {}}, [1, 2])
    words = [sys.executable, "-m", "turnppo_hf.cli", "study", str(file), "--workers", "1"]
    study = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        for line in study.stdout:
            if "seed_1: 0" in line:  # the first run is kept, the second one begins
                break
        time.sleep(2)
        study.send_signal(signal.SIGKILL)
        study.wait()
        time.sleep(1)
        running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert str(tmp_path / "work") not in running
    finally:
        if study.poll() is None:
            os.killpg(study.pid, signal.SIGKILL)
    assert [item.seed for item in read_results(tmp_path / "results").values()] == [1]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs are finished" in done.stdout
    assert [item.seed for item in read_results(tmp_path / "results").values()] == [1, 2]
