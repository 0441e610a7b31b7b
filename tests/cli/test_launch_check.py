"""`turnppo doctor --multi-gpu`: what it runs on two CPU processes, and what it says of a way that fails."""

import json

import pytest
import torch
from safetensors.torch import save_file

from turnppo_hf.cli import launch_check
from turnppo_hf.cli.common import Diagnosis
from turnppo_hf.cli.main import main


@pytest.mark.slow
def test_fsdp2_passes_on_two_cpu_processes():
    diagnosis = launch_check.check_launches(("fsdp2",), cpu=True)
    assert diagnosis.healthy, diagnosis.page
    assert "Two training steps on 2 x cpu" in diagnosis.page
    assert "passes" in diagnosis.page and "saved and read back, resumed" in diagnosis.page


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "passes"),
        ({"gradient": 1.01}, "gradients differ by 1.0e-02"),
        ({"loss": 0.5}, "losses by 5.0e-01"),
        ({"saved": False}, "what is saved is not what was trained"),
        ({"resumed": 0.1}, "resumed, 1.0e-01 apart"),
    ],
)
def test_way_that_trains_something_else_fails(monkeypatch, tmp_path, changed, expected):
    def leave(command, folder, settings):
        name, mine = settings["name"], changed if settings["name"] == "fsdp2" else {}
        scale = torch.ones(3) * mine.get("gradient", 1.0)
        save_file({"actor.x": scale, "critic.x": torch.ones(2)}, tmp_path / f"{name}.safetensors")
        save_file({}, tmp_path / f"{name}-weights.safetensors")
        record = {"losses": [mine.get("loss", 0.0)], "resumed": mine.get("resumed", 0.0)}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))

    monkeypatch.setattr(launch_check, "_launch", leave)
    monkeypatch.setattr(launch_check, "_is_saved", lambda *_: changed.get("saved", True))
    leave([], "", {"name": "one"})
    way, verdict, why = launch_check._row("fsdp2", 2, str(tmp_path), {})
    assert (way, verdict) == ("fsdp2", "FAILS" if changed else "passes")
    assert expected in f"{verdict}, {why}"


def test_way_whose_processes_end_with_an_error_or_never_says_so(tmp_path):
    settings = {"name": "one", "use_cpu": True}
    assert (
        launch_check._launch(["python", "-c", "raise ValueError('no')"], str(tmp_path), settings) == "ValueError: no"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_check, "_TIMEOUT_S", 0.2)
        told = launch_check._launch(["python", "-c", "import time; time.sleep(9)"], str(tmp_path), settings)
    assert "the processes wait for each other" in str(told)


@pytest.mark.parametrize("healthy", [True, False])
def test_command_prints_the_page_and_its_status_is_the_verdict(monkeypatch, capsys, healthy):
    asked = []
    monkeypatch.setattr(
        launch_check, "check_launches", lambda **given: asked.append(given) or Diagnosis("page", healthy)
    )
    assert main(["doctor", "--multi-gpu", "--cpu"]) == (0 if healthy else 1)
    assert capsys.readouterr().out == "page\n" and asked == [{"cpu": True}]
