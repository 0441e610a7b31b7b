"""`turnppo study`: runs are trained once, a failing one stops no other, a killed study goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from turnppo_hf.cli import study_runs
from turnppo_hf.cli.main import main
from turnppo_hf.evaluation.study.result import read_results

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


def test_two_commands_check_one_study_at_the_same_time(tmp_path, monkeypatch):
    file = write(tmp_path, {"good": {}}, [1])
    parse_run = study_runs.parse_run

    def meanwhile_another(arguments):
        monkeypatch.setattr(study_runs, "parse_run", parse_run)
        assert main(["study", str(file), "--list"]) == 0
        return parse_run(arguments)

    monkeypatch.setattr(study_runs, "parse_run", meanwhile_another)
    assert main(["study", str(file), "--list"]) == 0
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.slow
def test_failing_run_stops_no_other_and_finished_ones_are_kept(tmp_path, capsys):
    file = write(tmp_path, {"bad": {"model": str(tmp_path / "nowhere")}, "good": {}}, [1, 2])
    assert main(["study", str(file), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("first/bad/seed_1: failed") == 1 and "nowhere" in printed
    results = read_results(tmp_path / "results")
    assert [(item.cell["method"], item.seed) for item in results] == [("good", 1), ("good", 2)]
    assert all(item.cpu_s > 0 and len(item.curve) == 3 and item.episodes_per_step == 4 for item in results)
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
    assert [item.seed for item in read_results(tmp_path / "results")] == [1]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs are finished" in done.stdout
    assert [item.seed for item in read_results(tmp_path / "results")] == [1, 2]
