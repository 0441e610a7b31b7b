"""`turnppo space`: what a Space consists of, and the push of each kind to the test Hub."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

pytest.importorskip("gradio", reason='needs Gradio: pip install "turnppo-hf[space]"')

import turnppo_hf.hub.space
from tests.fake_hub.fixture import Hub
from turnppo_hf.cli.main import main
from turnppo_hf.distribution import declared, is_tried
from turnppo_hf.hub.exceptions import PushError, ReleaseError
from turnppo_hf.hub.space import (
    HARDWARE,
    PYTHON,
    ZERO_GPU_TORCH,
    find_space,
    push_space,
    requirements,
    run_space,
    write_space,
)


def front_matter(card: bytes) -> dict[str, object]:
    return dict(yaml.safe_load(card.decode().split("---\n")[1]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero_gpu", "cpu"])
def test_space_pushed_has_page_package_and_requirements(hub: Hub, kind: str) -> None:
    push_space("alice/playground", kind, agent="alice/agent", revision="v1")
    files = hub.files("alice/playground", repo_type="space")
    assert {"app.py", "player.py", "assets/board.js", "replays/training.json", "turnppo_hf/agent.py"} <= set(files)
    assert "turnppo_hf/_trl.py" in files and "turnppo_hf/models/sokoban_turnppo/critic/model.safetensors" in files
    assert not any(name.endswith((".pyc", ".whl")) for name in files)
    card = front_matter(files["README.md"])
    assert (card["sdk"], card["app_file"], card["python_version"]) == ("gradio", "app.py", "3.12")
    assert (card["suggested_hardware"], card["preload_from_hub"]) == (HARDWARE[kind], ["alice/agent"])
    settings = hub.repos["space", "alice/playground"].space
    assert settings["hardware"] == HARDWARE[kind]
    assert {name: item["value"] for name, item in settings["variables"].items()} == {
        "AGENT_REPO": "alice/agent",
        "AGENT_REVISION": "v1",
    }
    assert len(str(card["short_description"])) <= 60
    assert hub.saw_token(hub.token) == []


def test_static_space_pushed_has_files_for_a_browser_only(hub: Hub) -> None:
    push_space("alice/replays", "static")
    files = hub.files("alice/replays", repo_type="space")
    card = front_matter(files["README.md"])
    assert (card["sdk"], card["app_file"]) == ("static", "index.html")
    assert "sdk_version" not in card
    assert {"index.html", "page.js", "content.json", "assets/player.js"} <= set(files)
    assert not any(name.endswith(".py") for name in files)
    for name in [line.split('"')[1] for line in files["index.html"].decode().splitlines() if "<script src" in line]:
        assert name in files


@pytest.mark.slow
def test_space_pushed_again_changes_only_what_changed(hub: Hub) -> None:
    push_space("alice/playground", "cpu")
    push_space("alice/playground", "cpu", agent="alice/agent")
    changed = hub.commits("alice/playground", repo_type="space")[0].files
    assert set(changed) == {"README.md"}


@pytest.mark.slow
def test_secret_travels_from_the_environment_and_stands_in_no_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READ_TOKEN", "hf_only_for_reading")
    push_space("alice/playground", "cpu", secrets=["READ_TOKEN"], private=True)
    assert set(hub.repos["space", "alice/playground"].space["secrets"]) == {"READ_TOKEN"}
    assert not any(
        b"hf_only_for_reading" in data for data in hub.files("alice/playground", repo_type="space").values()
    )
    with pytest.raises(ValueError, match="OTHER is not set here"):
        push_space("alice/other", "cpu", secrets=["OTHER"])
    assert ("space", "alice/other") not in hub.repos


def test_static_space_with_an_agent_is_refused(hub: Hub) -> None:
    with pytest.raises(ValueError, match="no agent plays there"):
        push_space("alice/replays", "static", agent="alice/agent")
    assert not hub.repos


def test_space_that_needs_a_plan_says_so(hub: Hub) -> None:
    hub.inject("POST /api/repos/create", status=402, times=None)
    with pytest.raises(PushError, match="paid plan"):
        push_space("alice/playground", "cpu")


def test_requirements_are_pinned_and_fit_zero_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu" if name == "torch" else real(name))
    lines = requirements("zero_gpu")
    assert f"torch=={ZERO_GPU_TORCH}" in lines
    assert all(line.count("==") == 1 and "+" not in line for line in lines)
    assert not any(line.startswith(("gradio", "turnppo")) for line in lines)
    assert "torch==2.13.0" in requirements("cpu")


def test_space_has_versions_that_were_tried() -> None:
    torch = next(requirement for requirement in declared().core if requirement.name == "torch")
    assert is_tried(torch, ZERO_GPU_TORCH) and PYTHON in declared().pythons


@pytest.mark.slow
def test_space_runs_from_its_own_files_without_the_installed_package(tmp_path: Path) -> None:
    write_space(tmp_path, "cpu")
    check = """
import importlib.metadata, pathlib, sys
import app, turnppo_hf
here = pathlib.Path.cwd()
assert here in pathlib.Path(turnppo_hf.__file__).resolve().parents
assert here in importlib.metadata.distribution("turnppo-hf").locate_file("x").resolve().parents
app.build()
assert app.choose_episode("turn_ppo-1")["turns"]
print(app.endpoints.play(seed=1000001)["stop_reason"])
"""
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] in ("solved", "task_budget")


@pytest.mark.slow
def test_command_pushes_and_prints_the_commit(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "push", "alice/replays", "--static"]) == 0
    assert "/spaces/alice/replays/commit/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["space", "push", "alice/x"], "a kind of machine"),
        (["space", "push", "--cpu"], "needs a name"),
        (["space", "--cpu"], "belong to a Space on the Hub"),
    ],
)
def test_command_without_what_it_needs_says_so(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_space_without_gradio_or_files_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(turnppo_hf.hub.space, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"turnppo-hf\[space\]"):
        run_space()
    assert (find_space() / "app.py").is_file()
    monkeypatch.setattr(turnppo_hf.hub.space, "__file__", str(tmp_path / "turnppo_hf" / "hub" / "space.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(ReleaseError, match="pip install -e"):
        find_space()


PAGE = """
import http.server, signal, sys
if sys.argv[0].endswith("stubborn.py"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
print(server.server_port, flush=True)
server.serve_forever()
"""
PARENT = """
import pathlib, sys
from turnppo_hf.hub import space
space.find_space = lambda: pathlib.Path(sys.argv[1])
space._GRACE_S = 0.5
sys.exit(space.run_space())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("is_stubborn", [False, True])
def test_page_ends_with_the_command(tmp_path: Path, number: signal.Signals, is_stubborn: bool) -> None:
    (tmp_path / "app.py").write_text(PAGE.replace('sys.argv[0].endswith("stubborn.py")', str(is_stubborn)))
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    socket.create_connection(("127.0.0.1", port)).close()
    process.send_signal(number)  # to the command alone, as a supervisor does
    assert process.wait(timeout=30) == 128 + number
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
