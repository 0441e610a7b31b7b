"""The demo Space: an agent's name in; the page on this machine, or a Space on the Hub that shows it, out."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import CommitInfo, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from turnppo_hf.distribution import declared
from turnppo_hf.hub.client import create_repository, with_retries
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.processes import end_process, left_by_signals
from turnppo_hf.hub.secret_check import check_no_secrets
from turnppo_hf.hub.wheel import build_wheel

SpaceKind = Literal["zero_gpu", "cpu", "static"]

HARDWARE = {"zero_gpu": "zero-a10g", "cpu": "cpu-basic"}
ZERO_GPU_TORCH = "2.11.0"  # the newest one that ZeroGPU runs
PYTHON = "3.12"  # on Spaces; their default is too old for TRL and transformers

PUSHED_FILE = "turnppo_files.txt"  # names what a push wrote, a line each: what the next one may delete

_SOURCES = ("README.md", "*.py", "assets/*", "replays/*", "results/**/*", "static/*")
_UNSHOWN = "turnppo_hf/models/*/trajectories"  # evidence of the packaged agents, which their releases hold
_FRONT_MATTER = "---\n"
_GRACE_S = 3.0  # that a page has to end by itself


def run_space(*, agent: str | None = None, revision: str | None = None, port: int | None = None) -> int:
    """
    Serve the page on this machine until it is interrupted.

    Args:
        agent (`str`, *optional*): Folder of a run or model on the Hub that plays in the Live tab, first of all.
        revision (`str`, *optional*): Of the agent.
        port (`int`, *optional*): The first free one from 7860 on by default.

    Returns:
        `int`: the page's exit status; 130 where Ctrl-C ended it.

    Raises:
        `ImportError`: Gradio is missing.
        `ReleaseError`: the page's files are.
    """
    if find_spec("gradio") is None:
        raise ImportError(
            "Gradio is not installed. The page is drawn and served with it. Install it: "
            'pip install "turnppo-hf[space]".'
        )
    variables = dict(os.environ)
    if agent is not None:
        variables.pop("AGENT_REVISION", None)  # of another agent
    named = {"AGENT_REPO": agent, "AGENT_REVISION": revision, "GRADIO_SERVER_PORT": port}
    variables |= {name: str(value) for name, value in named.items() if value is not None}
    with left_by_signals():
        page = subprocess.Popen([sys.executable, str(find_space() / "app.py")], env=variables)
        try:
            return page.wait()
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            end_process(page, _GRACE_S)


def push_space(
    repo_id: str,
    kind: SpaceKind,
    *,
    agent: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    secrets: Sequence[str] = (),
    token: str | None = None,
) -> CommitInfo:
    """
    Create or update a Space on the Hub.

    The package's wheel lies unpacked beside `app.py`, as `pip install --no-deps --target .` would leave it: the
    package is on no index, and what a Space installs is in its requirements, torch as ZeroGPU runs it among them.

    An update deletes what an earlier push wrote and this one does not; what its owner added stays. An agent or a
    revision that is not named any longer is unset.

    Args:
        repo_id (`str`): `"name"` or `"namespace/name"`.
        kind (`"zero_gpu"`, `"cpu"` or `"static"`): The hardware of a Space that is created; `"static"` shows recorded
            episodes without a server.
        agent (`str`, *optional*): Model on the Hub, or in the package, that plays in the Live tab; the tiny one in the
            package by default.
        revision (`str`, *optional*): Of the agent.
        private (`bool`, *optional*): Of a Space that is created.
        secrets (`Sequence[str]`): Names of environment variables of this machine that the Space gets as secrets, such
            as the `HF_TOKEN` that reads a private agent.
        token (`str`, *optional*): Defaults to the one that `hf auth login` or `HF_TOKEN` gives.

    Raises:
        `PushError`: nothing was committed; the message names the reason.
        `ValueError`: a secret that is not set here, an agent for a static Space or in a folder of this machine, or a
            revision of none.
    """
    _check_agent(agent, revision)
    missing = [name for name in secrets if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"The environment variable {missing[0]} is not set here, so the Space would get an empty secret. Set it, "
            "or leave --secret out."
        )
    if kind == "static" and (agent or secrets):
        raise ValueError(
            "A static Space has no server: it shows recorded episodes, and no agent plays there. Leave --agent and "
            "--secret out, or push a Space with --cpu or --zero_gpu."
        )
    sdk: dict[str, Any] = {"space_sdk": "static"}
    if kind != "static":
        sdk = {"space_sdk": "gradio", "space_hardware": HARDWARE[kind]}
    with tempfile.TemporaryDirectory() as folder:
        write_space(Path(folder), kind, agent=agent)
        space = create_repository(repo_id, token=token, private=private, repo_type="space", **sdk)
        api = HfApi(token=token)
        _set_variables(api, space, {"AGENT_REPO": agent, "AGENT_REVISION": revision})
        for name in secrets:
            set_secret = partial(api.add_space_secret, space, name, os.environ[name])
            with_retries(set_secret, f"The secret {name} of {space!r} was not set")
        names = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
        (Path(folder) / PUSHED_FILE).write_text("\n".join([*sorted(names), ""]), encoding="utf-8")
        check_no_secrets(Path(folder), called="the playground")
        upload = partial(
            api.upload_folder,
            repo_id=space,
            repo_type="space",
            folder_path=folder,
            commit_message="Update the playground",
            delete_patterns=[glob.escape(name) for name in sorted(_pushed_before(space, token) - names)],
        )
        commit: CommitInfo = with_retries(upload, f"The playground was not pushed to {space!r}", token=token)
        return commit


def write_space(folder: Path, kind: SpaceKind, *, agent: str | None = None) -> None:
    """
    Write everything that a Space consists of.

    Args:
        folder (`Path`): Empty; it becomes the Space's repository.
        kind (`"zero_gpu"`, `"cpu"` or `"static"`): See `push_space`.
        agent (`str`, *optional*): Model on the Hub, for the card.

    Raises:
        `ReleaseError`: the page's files are not there.
    """
    source = find_space()
    about, text = _read_card(source / "README.md")
    if kind == "static":
        subprocess.run([sys.executable, str(source / "static_page.py"), str(folder)], check=True)
        about = {**about, "sdk": "static", "app_file": "index.html"}
        for name in ("sdk_version", "python_version", "suggested_hardware"):
            about.pop(name, None)
    else:
        for pattern in _SOURCES:
            for path in sorted(path for path in source.glob(pattern) if path.is_file()):
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        with zipfile.ZipFile(build_wheel(folder)) as wheel:
            wheel.extractall(folder)
        for packed in folder.glob("*.whl"):
            packed.unlink()
        for unshown in folder.glob(_UNSHOWN):
            shutil.rmtree(unshown)
        (folder / "requirements.txt").write_text("\n".join([*requirements(kind), ""]), encoding="utf-8")
        about |= {
            "sdk_version": metadata.version("gradio"),
            "python_version": PYTHON,
            "suggested_hardware": HARDWARE[kind],
        }
        if agent is not None and "/" in agent:  # a name without one is of the package
            about |= {"models": [agent], "preload_from_hub": [agent]}
    head = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
    (folder / "README.md").write_text(f"{_FRONT_MATTER}{head}{_FRONT_MATTER}{text}", encoding="utf-8")


def requirements(kind: SpaceKind) -> list[str]:
    """
    Return what a Space installs: what the package needs, pinned to what is installed here.

    Gradio is not among it, as the Space's `sdk_version` installs it. ZeroGPU gets the newest torch that it runs.
    """
    lines = []
    for requirement in declared().core:
        version = metadata.version(requirement.name).partition("+")[0]
        if requirement.name == "torch" and kind == "zero_gpu":
            version = ZERO_GPU_TORCH
        lines.append(f"{requirement.name}=={version}")
    return sorted(lines)


def find_space() -> Path:
    """
    Return the folder of the page's files: in the checkout, or where an installation put it.

    Raises:
        `ReleaseError`: it is in neither.
    """
    candidates = (Path(__file__).parents[2] / "spaces_demo", Path(sys.prefix) / "share" / "turnppo_hf" / "spaces_demo")
    for folder in candidates:
        if (folder / "app.py").is_file():
            return folder
    raise ReleaseError(
        f"The page's files are not in {candidates[0]}. They are a folder of the repository and not of the package. "
        "Install the package from its checkout: pip install -e ."
    )


def _check_agent(agent: str | None, revision: str | None) -> None:
    """Refuse an agent that a Space could not load."""
    if revision is not None and (agent is None or "/" not in agent):
        what = "no agent is named" if agent is None else f"{agent!r} is no repository there"
        raise ValueError(
            f"A revision ({revision!r}) names a commit on the Hub, and {what}, so the Space would start with "
            "another agent or with none. Name the repository with --agent, or leave --revision out."
        )
    if agent is not None and Path(agent).is_dir():
        raise ValueError(
            f"{agent!r} is a folder of this machine, which a Space cannot read; it would load a stranger's repository "
            "of that name, or none. Push the agent first (turnppo push FOLDER NAME) and name its repository. If you "
            "mean a repository of this name, run the command in another folder."
        )


def _set_variables(api: HfApi, space: str, variables: Mapping[str, str | None]) -> None:
    """Set a Space's variables, and delete those that are there and have no value."""
    known = with_retries(partial(api.get_space_variables, space), f"The variables of {space!r} were not read")
    for name, value in variables.items():
        if value is not None:
            set_variable = partial(api.add_space_variable, space, name, value)
            with_retries(set_variable, f"The variable {name} of {space!r} was not set")
        elif name in known:
            delete_variable = partial(api.delete_space_variable, space, name)
            with_retries(delete_variable, f"The variable {name} of {space!r} was not deleted")


def _pushed_before(space: str, token: str | None) -> set[str]:
    """Return the names of the files that the push before wrote; none where it left no list of them."""

    def read() -> set[str]:
        with tempfile.TemporaryDirectory() as scratch:  # in a cache an older list might stand for the one there
            try:
                file = hf_hub_download(space, PUSHED_FILE, repo_type="space", token=token, cache_dir=scratch)
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):
                    raise
                return set()
            return set(Path(file).read_text(encoding="utf-8").splitlines())

    names: set[str] = with_retries(read, f"{PUSHED_FILE} of {space!r} was not read", token=token)
    return names


def _read_card(file: Path) -> tuple[dict[str, Any], str]:
    _, head, text = file.read_text(encoding="utf-8").split(_FRONT_MATTER, 2)
    return dict(yaml.safe_load(head)), text
