"""The folder of an agent in, the facts of its card out; what was not recorded is absent, never guessed."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from turnppo_hf.distribution import DISTRIBUTION, declared
from turnppo_hf.evaluation.results import RESULTS_FILE, ComparedRun, Package, RunResults
from turnppo_hf.hub.agent_record import RECORD_FILE, AgentRecord
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.files import CRITIC_FOLDER, is_private, read_json
from turnppo_hf.redaction import redact
from turnppo_hf.rollout.parquet import read_trajectories
from turnppo_hf.trajectory import Trajectory

TRAIN_CONFIG = "train_config.yaml"  # what `turnppo train` needs to train the agent again
EPISODES_FILE = "trajectories/held_out.parquet"  # the episodes behind the results, with the critic's values
EMISSIONS_FILE = "emissions.csv"  # CodeCarbon's, where its callback ran


@dataclass(frozen=True)
class RunRecord:
    """What is recorded of an agent. Mappings are empty and numbers `None` where nothing was recorded."""

    name: str  # of its folder
    record: AgentRecord  # turnppo.json
    results: RunResults  # results.json of `turnppo train`
    training: Mapping[str, Any]  # training_config.json: every argument of the trainer
    log_history: Sequence[Mapping[str, Any]]  # trainer_state.json
    model_type: str | None  # architecture, such as "llama"
    is_adapter: bool
    sizes: Mapping[str, int]  # network -> number of parameters
    has_train_config: bool
    emissions_g: float | None  # grams of CO2 equivalents, by CodeCarbon
    episodes: Sequence[Trajectory] = field(default=(), repr=False)  # held out, after training
    steps: int | None = None  # optimizer steps of the weights that are here

    @property
    def is_playable(self) -> bool:
        """Whether the record names an environment of this package, so that strangers can play it by a command."""
        return (self.record.environment or "").startswith("turnppo_hf/")

    @property
    def comparison(self) -> Sequence[ComparedRun]:
        """Results of other runs on the same held-out tasks, as `add_comparison` adds them."""
        return self.results.comparison or ()


def read_run(folder: str | Path) -> RunRecord:
    """
    Read the facts of an agent.

    Args:
        folder (`str` or `Path`): That the trainer saved, or a copy of a release.

    Raises:
        `ReleaseError`: it holds no agent, or a damaged file.
    """
    path = Path(folder)
    if not (path / RECORD_FILE).exists():
        raise ReleaseError(
            f"{str(folder)!r} holds no {RECORD_FILE}, so nothing is known of how it was trained. Name the "
            "`output_dir` of a run, or a checkpoint in it."
        )
    sizes = {"actor": count_parameters(path), "critic": count_parameters(path / CRITIC_FOLDER)}
    config = path / "config.json"
    state = _read_if_there(path / "trainer_state.json")
    if not _is_log(state.get("log_history", [])):
        raise ReleaseError(
            f"{path / 'trainer_state.json'} is damaged: `log_history` must be a list of objects whose `step` is a "
            "number. The card tells of the training by it. Download or save it again."
        )
    training = redact(_read_if_there(path / "training_config.json"))
    episodes = path / EPISODES_FILE
    return RunRecord(
        name=path.resolve().name,
        record=AgentRecord.from_folder(path),
        results=_read_results(path) if (path / RESULTS_FILE).exists() else RunResults(),
        training=training,
        log_history=state.get("log_history", []),
        steps=_steps(state, training),
        model_type=read_json(config).get("model_type") if config.exists() else None,
        is_adapter=(path / "adapter_config.json").exists(),
        sizes={name: size for name, size in sizes.items() if size},
        has_train_config=(path / TRAIN_CONFIG).exists(),
        emissions_g=_read_emissions(path / EMISSIONS_FILE),
        episodes=read_trajectories(episodes) if episodes.exists() else (),
    )


def add_comparison(folder: str | Path, others: Sequence[str | Path]) -> None:
    """
    Write the results of other runs into this one's `results.json`, for its card and its curves.

    Args:
        folder (`str` or `Path`): The run that the others are compared with.
        others (`Sequence`): Folders of runs, such as baselines or other seeds.

    Raises:
        `ReleaseError`: a run without results, or one that was judged on other tasks.
    """
    results = _need_results(folder)
    compared = []
    for other in others:
        theirs = _need_results(other)
        for name in ("environment", "held_out"):
            if getattr(theirs, name) != getattr(results, name):
                raise ReleaseError(
                    f"{str(other)!r} and {str(folder)!r} differ in `{name}`, so their figures do not compare. "
                    "Evaluate both on the same held-out tasks."
                )
        compared.append(theirs.compared())
    replace(results, comparison=tuple(compared)).save(folder)


def count_parameters(folder: Path) -> int:
    """Count the numbers in a folder's safetensors, by their headers alone; tied weights are stored once."""
    total = 0
    for file in folder.glob("*.safetensors"):
        if is_private(file.name):  # a rollout batch under way
            continue
        try:
            with safe_open(file, framework="numpy") as opened:
                total += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())
        except (OSError, SafetensorError) as error:
            raise ReleaseError(f"{file} cannot be read ({error}). Download or save it again.") from error
    return total


def package_version() -> Package:
    """Return the version, and the commit of the checkout or the one that the installation records."""
    commit = _commit_of_checkout() or _commit_of_installation()
    return Package(name=DISTRIBUTION, version=declared().version, commit=commit or None)


def _commit_of_installation() -> str:
    try:
        direct = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:  # run from a checkout's files that git does not look after
        return ""
    return str(direct.get("vcs_info", {}).get("commit_id", ""))


def _commit_of_checkout() -> str:
    """Return the commit of the checkout that the package lies in, with a `+` where files were changed since."""
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():  # another project's repository may lie around an installed package
        return ""
    git = ["git", "-C", str(package)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed.strip() else "")


def _need_results(folder: str | Path) -> RunResults:
    if not (Path(folder) / RESULTS_FILE).exists():
        raise ReleaseError(
            f"{str(folder)!r} holds no {RESULTS_FILE}, so there is nothing to compare. `turnppo train` writes it at "
            "its end."
        )
    return _read_results(folder)


def _read_results(folder: str | Path) -> RunResults:
    try:
        return RunResults.from_file(folder)
    except ValueError as error:
        raise ReleaseError(str(error)) from error


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _is_log(history: Any) -> bool:
    return isinstance(history, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("step", 0), int | float) for entry in history
    )


def _steps(state: Mapping[str, Any], training: Mapping[str, Any]) -> int | None:
    """Steps of the last entry; of the best checkpoint where the trainer went back to it."""
    if training.get("load_best_model_at_end") and state.get("best_global_step"):
        return int(state["best_global_step"])
    return max((entry["step"] for entry in state.get("log_history", ()) if "step" in entry), default=None)


def _read_emissions(path: Path) -> float | None:
    """CodeCarbon's total, in grams: its column `emissions` is in kilograms, one row a run."""
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    try:
        return sum(float(row["emissions"]) for row in rows) * 1000
    except (KeyError, TypeError, ValueError) as error:
        raise ReleaseError(
            f"{path} is no file of CodeCarbon: no number in its column `emissions`. Remove it."
        ) from error
