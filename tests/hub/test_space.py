"""`turnppo space`: what a Space consists of, and the push of each kind to the test Hub."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The sources of a page of two files, and a package of none: what is pushed is small."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_bytes((find_space() / "README.md").read_bytes())
    (source / "app.py").write_text("page = 1\n")

    def empty_wheel(folder: Path) -> Path:
        zipfile.ZipFile(folder / "empty.whl", "w").close()
        return folder / "empty.whl"

    monkeypatch.setattr(turnppo_hf.hub.space, "find_space", lambda: source)
    monkeypatch.setattr(turnppo_hf.hub.space, "build_wheel", empty_wheel)
    return source


def variables_of(hub: Hub, space: str) -> dict[str, str]:
    found = hub.repos["space", space].space["variables"]
    return {name: str(item["value"]) for name, item in found.items()}


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


def test_agent_and_revision_that_are_not_named_any_longer_are_unset(hub: Hub, small: Path) -> None:
    push_space("alice/playground", "cpu", agent="alice/a", revision="v1")
    HfApi().add_space_variable("alice/playground", "RESULTS_FOLDER", "/data")
    push_space("alice/playground", "cpu", agent="alice/b")
    assert variables_of(hub, "alice/playground") == {"AGENT_REPO": "alice/b", "RESULTS_FOLDER": "/data"}
    push_space("alice/playground", "cpu")
    assert variables_of(hub, "alice/playground") == {"RESULTS_FOLDER": "/data"}


def test_update_deletes_what_an_earlier_push_wrote_and_nothing_of_the_owners(hub: Hub, small: Path) -> None:
    dropped = ["replays/9_old_episodes.json", "old.py", "assets/a [1].js"]
    for name in dropped:
        (small / name).parent.mkdir(exist_ok=True)
        (small / name).write_text("{}")
    push_space("alice/playground", "cpu")
    assert set(dropped) <= set(hub.files("alice/playground", repo_type="space"))
    theirs = ["results/mine.json", "extra.py", "replays/7_mine_episodes.json", "assets/a 1.js"]
    for name in theirs:
        HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="alice/playground", repo_type="space")
    for name in dropped:
        (small / name).unlink()
    push_space("alice/playground", "cpu")
    left = set(hub.files("alice/playground", repo_type="space"))
    assert set(theirs) | {"app.py", "README.md"} <= left and not left & set(dropped)


def test_results_in_folders_are_written_as_the_page_reads_them(small: Path, tmp_path: Path) -> None:
    nested = small / "results" / "sokoban_5x5_bare" / "tiny" / "results.json"
    nested.parent.mkdir(parents=True)
    nested.write_text("{}")
    (small / "results" / "plain.json").write_text("{}")
    (small / "assets" / "__pycache__").mkdir(parents=True)
    (tmp_path / "space").mkdir()
    write_space(tmp_path / "space", "cpu")
    folder = tmp_path / "space" / "results"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.json")}
    assert found == {"plain.json", "sokoban_5x5_bare/tiny/results.json"}


def test_packaged_agent_is_named_as_no_repository(hub: Hub, small: Path) -> None:
    push_space("alice/playground", "cpu", agent="tiny-webshop")
    card = front_matter(hub.files("alice/playground", repo_type="space")["README.md"])
    assert "models" not in card and "preload_from_hub" not in card
    assert variables_of(hub, "alice/playground") == {"AGENT_REPO": "tiny-webshop"}


def test_agent_that_a_space_could_not_load_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for agent in ("runs/x", str(tmp_path / "runs" / "x"), "runs"):
        with pytest.raises(ValueError, match="Push the agent first"):
            push_space("alice/playground", "cpu", agent=agent)
    assert main(["space", "push", "alice/playground", "--cpu", "--agent", "runs/x"]) == 2
    assert "a stranger's repository" in capsys.readouterr().err
    for agent in (None, "tiny-webshop"):
        with pytest.raises(ValueError, match="names a commit on the Hub"):
            push_space("alice/playground", "cpu", agent=agent, revision="v1")
    assert not hub.repos


def test_page_of_another_agent_gets_no_revision_of_the_shells(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], small: Path
) -> None:
    (small / "app.py").write_text("import os; print(os.environ.get('AGENT_REPO'), os.environ.get('AGENT_REVISION'))")
    monkeypatch.setenv("AGENT_REPO", "alice/a"), monkeypatch.setenv("AGENT_REVISION", "v1")
    assert run_space() == run_space(agent="alice/b") == run_space(agent="alice/b", revision="v2") == 0
    assert capfd.readouterr().out.splitlines() == ["alice/a v1", "alice/b None", "alice/b v2"]


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
