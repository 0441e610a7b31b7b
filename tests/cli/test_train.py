"""`turnppo train` with secrets in every place that takes one: none reaches a file, and a run again asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import yaml

from tests.cli.test_main import RUN
from turnppo_hf.cli.main import main
from turnppo_hf.cli.train import _learning_curve, _longer
from turnppo_hf.environments.sokoban.environment import Sokoban
from turnppo_hf.evaluation.outcome import Summary
from turnppo_hf.hub.card.card import prepare_release
from turnppo_hf.hub.run_record import read_run
from turnppo_hf.hub.trajectory_dataset import write_dataset

TOKEN = "hf_" + "aB3" * 11 + "c"
SECRETS = {"login": "Swordfish-99", "address": "p4ssWord", "token": TOKEN}


class LoggedIn(Sokoban):
    """Sokoban behind a login, which it shows to the player."""

    def __init__(self, login: Any = None, server: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.login = login

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        return f"{observation}\n{self.login['password']}", info


gymnasium.register("tests/LoggedIn-v0", LoggedIn, disable_env_checker=True, order_enforce=False)
LOGIN = {"login": {"user": "me", "password": SECRETS["login"]}, "server": f"http://me:{SECRETS['address']}@host"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run with secrets in its file and in its flags."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    changes = {"environment": "tests/LoggedIn-v0", "log_completions": True, "save_strategy": "steps", "save_steps": 2}
    settings = {**RUN, **changes, "max_steps": 2, "logging_steps": 1, "eval_episodes": 4, "output_dir": str(folder)}
    settings["environment_kwargs"] = {**RUN["environment_kwargs"], **LOGIN}
    config = folder.parent / "run.yaml"
    config.write_text(yaml.safe_dump(settings))
    flags = ["--model_init_kwargs", json.dumps({"token": TOKEN}), "--hub_token", TOKEN]
    assert main(["train", str(config), *flags, f"--vllm_server_base_url=http://me:{SECRETS['address']}@host"]) == 0
    return folder


@pytest.mark.slow
def test_no_secret_reaches_a_file_of_the_run(run: Path, tmp_path: Path) -> None:
    prepare_release(run, "alice/agent", dataset="alice/episodes")
    record = read_run(run)
    write_dataset(record.episodes, tmp_path / "data", agent="a", environment_kwargs=record.record.environment_kwargs)
    files = [path for folder in (run, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert {"README.md", "results.json", "train_config.yaml", "training_config.json", "turnppo.json"} <= {
        path.name for path in files
    }
    for path in files:
        data = path.read_bytes()
        for secret in SECRETS.values():
            assert secret.encode() not in data, path
    assert "<redacted>" in json.dumps(json.loads((run / "turnppo.json").read_text())["environment_kwargs"])
    assert any(turn.observation.endswith("<redacted>") for turn in record.episodes[0].turns)


@pytest.mark.slow
def test_recorded_run_asks_for_its_secrets_again(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    again = str(run / "train_config.yaml")
    assert main(["train", again, "--output_dir", str(tmp_path / "again")]) == 2
    message = capsys.readouterr().err
    assert "environment_kwargs.login.user` holds <redacted>" in message or "login.password` holds" in message
    assert "Give the secret again" in message and "Traceback" not in message and not (tmp_path / "again").exists()
    kwargs = {**RUN["environment_kwargs"], **LOGIN}
    words = ["train", again, "--output_dir", str(tmp_path / "again"), "--environment_kwargs", json.dumps(kwargs)]
    assert main(words) == 2
    assert "`model_init_kwargs.token` holds <redacted>" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--episodes", "2"]) == 2
    assert "holds <redacted>" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--episodes", "2", "--environment_kwargs", json.dumps(LOGIN)]) == 0
    assert SECRETS["login"] not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "saved_at", "expected"),
    [
        ("turnppo train x.yaml", 4, "turnppo train x.yaml --max_steps 12 --resume_from_checkpoint true"),
        (
            "turnppo train x.yaml --max_steps 6 --seed 1 --resume_from_checkpoint=true",
            None,
            "turnppo train x.yaml --seed 1 --max_steps 12 --overwrite_output_dir true",
        ),
        (
            "turnppo train x.yaml --overwrite_output_dir --seed 3",
            None,
            "turnppo train x.yaml --seed 3 --max_steps 12 --overwrite_output_dir true",
        ),
        (
            "turnppo train x.yaml --overwrite_output_dir True --lr 1",
            4,
            "turnppo train x.yaml --lr 1 --max_steps 12 --resume_from_checkpoint true",
        ),
    ],
)
def test_longer_training_goes_on_from_a_checkpoint_where_there_is_one(
    command: str, saved_at: int | None, expected: str
) -> None:
    trainer: Any = SimpleNamespace(ending=SimpleNamespace(saved_at=saved_at), state=SimpleNamespace(max_steps=6))
    run: Any = SimpleNamespace(typed=command)
    assert _longer(run, trainer) == expected


def test_point_of_the_curve_counts_every_episode_that_was_played() -> None:
    score = Summary(4, 0, 2, 0.5, 0.15, 0.85, 1.0, 0.1, 0.0, 3.0, 0.0, {"solved": 2, "task_budget": 2})
    entry = {"eval_reward": 1.0, "eval_reward_std": 0.5, "eval_success": 0.25}
    history = [{**entry, "step": step, "eval_episodes/failed": failed} for step, failed in ((2, 10), (4, 32))]
    _, between, _ = _learning_curve(history, score, score, 6, 32)
    assert (between.step, between.episodes, between.success_rate) == (2, 22, 0.25), "nothing was played at step 4"
