"""`turnppo train` again: the same command, `resume_from_checkpoint`, a folder of another run; mistakes before play."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_main import RUN, error_of
from turnppo_hf.cli.main import main
from turnppo_hf.cli.train_arguments import RunConfigError, parse_run

SHORT = {**RUN, "eval_episodes": 2, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1, "max_steps": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run with its checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = folder.parent / "run.yaml"
    config.write_text(yaml.safe_dump({**SHORT, "output_dir": str(folder)}))
    assert main(["train", str(config)]) == 0
    return folder


@pytest.fixture
def config(finished: Path, tmp_path: Path) -> Any:
    """Write a config for a copy of that run, with changes."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)

    def write(**changes: Any) -> str:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump({**SHORT, "output_dir": str(run), **changes}))
        return str(file)

    return write


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.slow
def test_resumed_run_has_the_results_of_the_whole_and_adds_its_time(
    config: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoint-2")
    assert main(["train", config(resume_from_checkpoint=True)]) == 0  # YAML's true
    assert f"resumed     {run / 'checkpoint-1'}" in capsys.readouterr().out
    whole, resumed = results(finished), results(run)
    assert all(whole[name] == resumed[name] for name in ("before", "after", "critic", "shown_episode"))
    for name in ("model.safetensors", "critic/model.safetensors", "turnppo.json"):
        assert (finished / name).read_bytes() == (run / name).read_bytes(), name
    record = json.loads((run / "checkpoint-1" / "checkpoint.json").read_text())["duration_s"]
    assert all(resumed["duration_s"][name] > record[name] > 0 for name in ("training", "total"))


@pytest.mark.slow
def test_finished_run_only_evaluates_and_writes(config: Any, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "results.json").unlink()
    (run / "model.safetensors").unlink()
    before = (run / "checkpoint-2" / "checkpoint.json").read_bytes()
    assert main(["train", config(), "--resume_from_checkpoint", "true"]) == 0
    assert results(run)["after"] == results(finished)["after"]
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert (run / "checkpoint-2" / "checkpoint.json").read_bytes() == before
    assert not (run / "checkpoint-3").exists()


@pytest.mark.slow
def test_same_command_may_be_repeated_and_another_may_not(
    config: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config()]) == 0
    assert results(tmp_path / "run")["after"] == results(finished)["after"]
    capsys.readouterr()
    message = error_of(capsys, "train", config(), "--algorithm", "token_ppo")
    assert "of another run (its `algorithm` is 'turn_ppo', here 'token_ppo')" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [("nowhere", "does not exist"), ("", "is a run's folder"), ("checkpoint-1", "has 0 of ")],
)
def test_path_is_checked_before_anything_is_played(
    config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str, sentence: str
) -> None:
    (tmp_path / "run" / "checkpoint-1" / "optimizer.pt").write_bytes(b"")
    assert main(["train", config(resume_from_checkpoint=str(tmp_path / "run" / asked))]) == 2
    captured = capsys.readouterr()
    assert "Held out" not in captured.out and sentence in captured.err
    assert captured.err.count("\n") == 1 and captured.err.rstrip().endswith("or `true` for the newest.")


@pytest.mark.parametrize(("given", "read"), [(True, "true"), (False, "false"), ("runs/a/checkpoint-1", None)])
def test_yaml_may_say_true(config: Any, given: Any, read: str | None) -> None:
    assert parse_run([config(resume_from_checkpoint=given)]).training.resume_from_checkpoint == (read or given)
    with pytest.raises(RunConfigError, match="must be a string"):
        parse_run([config(resume_from_checkpoint=3)])
