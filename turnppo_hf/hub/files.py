"""The folder of an agent: which files belong to a release, and the checks before anything of them is loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from turnppo_hf.hub.exceptions import ReleaseError

CRITIC_FOLDER = "critic"
# name -> folder in turnppo_hf/models
EMBEDDED_MODELS = {"tiny": "sokoban_tiny", "tiny-webshop": "webshop_tiny", "tiny-trained": "sokoban_turnppo"}

CHECKPOINT_FILE = "checkpoint.json"  # of a checkpoint, with settings and checksums of a run: for resuming alone
# a pickle runs code where it is read; the rest is the trainer's own state, or other people's cache
PRIVATE_FILES = (
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt"),
    *("_*", "checkpoint-*", CHECKPOINT_FILE, "rollout_*.safetensors", "trajectories/*", ".cache/*", ".git/*"),
)
# what loading and republishing an agent read of a repository
PUBLIC_FILES = (
    *("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "*.model"),
    *("README.md", "LICENSE", "*.yaml", "*.webp", "assets/*"),
)
# the evidence of an agent's training and evaluation: copied wherever the agent is saved
EVIDENCE_FILES = (
    *("README.md", "LICENSE", "results.json", "trainer_state.json", "training_config.json", "train_config.yaml"),
    *("*.webp", "assets/*.png", ".eval_results/*.yaml"),
)
_PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.mp4")  # that a user's section may show
# folder -> what a push uploads of it; "" is the run's own
_PUBLISHED = {
    "": (*PUBLIC_FILES, *_PICTURES),
    CRITIC_FOLDER: PUBLIC_FILES,
    "assets": ("*",),
    ".eval_results": ("*.yaml",),
    "wheels": ("*.whl",),
    "runs": ("*",),
}
_WITH_FOLDERS = ("assets", "runs")  # TensorBoard's logs lie in a folder a run
NETWORK_FILES = ("critic/*", "model*.safetensors", "model.safetensors.index.json", "adapter_*")
# what a push deletes where the new release has none, so that no file of another agent is taken for this one's; `*`
# matches folders, too, and checkpoints in folders of their own stay
OWNED_FILES = (
    *NETWORK_FILES,
    *("config.json", "turnppo.json", "results.json", "trainer_state.json"),
    *("training_config.json", "train_config.yaml", ".eval_results/turnppo.yaml", "replay*.webp"),
    *("assets/learning_curve-*.png", "assets/calibration-*.png", "wheels/*.whl"),
)
ADDED_RESULTS = ".eval_results/turnppo-*.yaml"  # of `turnppo evaluate --push`, whoever ran it
UNREAD_FOLDERS = ("checkpoint-*", "last-checkpoint/*")

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def is_private(name: str) -> bool:
    """Whether a file (relative, with `/`) never leaves the machine."""
    return any(fnmatch(name, pattern) for pattern in PRIVATE_FILES)


def published_files(folder: Path) -> list[str]:
    """
    List what a push uploads of an agent's folder: the files of a release where a release has them, and no others.

    Args:
        folder (`Path`): Of a run, a checkpoint or an agent.

    Returns:
        `list[str]`: relative paths, with `/`.
    """
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in names if not is_private(name) and _is_published(PurePosixPath(name))]


def _is_published(path: PurePosixPath) -> bool:
    parts = path.parts[:-1]
    place = parts[0] if parts else ""
    if len(parts) > 1 and place not in _WITH_FOLDERS:
        return False
    return any(fnmatch(path.name, pattern) for pattern in _PUBLISHED.get(place, ()))


def check_names(names: Iterable[str], where: str) -> None:
    """
    Refuse a repository by the names of its files, before one is downloaded.

    Args:
        names (`Iterable[str]`): Relative paths as the Hub lists them.
        where (`str`): The repository or folder, for the message.

    Raises:
        `ReleaseError`: a name that leaves the folder, or weights that exist only as pickles.
    """
    listed = list(names)
    for name in listed:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name):
            raise ReleaseError(
                f"{where} lists a file named {name!r}, which would be written outside of its own folder. Nothing "
                "was downloaded. Do not use this repository."
            )
    in_root = [name for name in listed if "/" not in name]
    pickles = [name for name in in_root if name.endswith(_PICKLES) and name != "training_args.bin"]
    if pickles and not any(name.endswith(".safetensors") for name in in_root):
        raise ReleaseError(
            f"{where} has its weights in {pickles[0]!r}, a pickle, which can run code when it is read. It was not "
            "read. Ask its author for safetensors, or convert it on a machine that you can lose."
        )


def check_is_model(folder: Path, where: str) -> None:
    """
    Check that a folder holds a model at all.

    Raises:
        `ReleaseError`: it has neither a configuration nor that of an adapter.
    """
    if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise ReleaseError(
            f"{where!r} holds no config.json, so it is no model. Name the folder that a run saved (its `output_dir`, "
            "or a checkpoint in it), or a repository that holds an agent."
        )


def check_folder(folder: Path, where: str | None = None) -> None:
    """
    Check an agent's folder before anything of it is loaded.

    Args:
        folder (`Path`): Local copy.
        where (`str`, *optional*): What the user named, for messages.

    Raises:
        `ReleaseError`: no configuration or weights, weights in pickles, a wish for remote code, an index of weights
            that leaves the folder, or a critic that does not belong to the actor.
    """
    where = where or str(folder)
    check_is_model(folder, where)
    check_names([path.relative_to(folder).as_posix() for path in folder.glob("*") if path.is_file()], where)
    for part in (folder, folder / CRITIC_FOLDER):
        if part.is_dir():
            _check_part(part, where)
    _check_adapters(folder, where)
    critic, actor = folder / CRITIC_FOLDER / "config.json", folder / "config.json"
    if critic.exists() and actor.exists():
        check_critic(read_json(critic), read_json(actor), f"The critic of {where}")


def _check_part(part: Path, where: str) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        settings = read_json(part / name) if (part / name).exists() else {}
        if settings.get("auto_map") or settings.get("custom_pipelines"):
            raise ReleaseError(
                f"{where} asks in {name} for code of its own (`auto_map`), which would run with your rights. None was "
                "run. If you trust it, load it with transformers and `trust_remote_code=True`, and pass actor and "
                "tokenizer to TurnPPOAgent."
            )
    weights = list(part.glob("*.safetensors"))
    if not weights:
        raise ReleaseError(
            f"{where} holds no weights in safetensors{' for its critic' if part.name == CRITIC_FOLDER else ''}, and "
            "no other kind is loaded. Save the model again with `save_pretrained`, or wait for its upload to finish."
        )
    for index in part.glob("*.safetensors.index.json"):
        for shard in set(read_json(index).get("weight_map", {}).values()):
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ReleaseError(
                    f"{where} has an index {index.name} of weights that lie in {shard!r}, outside of its own folder. "
                    "Nothing was loaded. Do not use this repository."
                )


def _check_adapters(folder: Path, where: str) -> None:
    """Adapters of both networks sit on one base model, which this machine can find."""
    files = [path for part in (folder, folder / CRITIC_FOLDER) if (path := part / "adapter_config.json").exists()]
    bases = [str(read_json(path).get("base_model_name_or_path")) for path in files]
    if len(set(bases)) > 1:
        raise ReleaseError(
            f"{where} has an actor on the base model {bases[0]!r} and a critic on {bases[1]!r}. A critic reads the "
            "actor's own tokens; save both on one base."
        )
    for base in bases[:1]:
        if (Path(base).is_absolute() or base.startswith(".")) and not Path(base).is_dir():
            raise ReleaseError(
                f"{where} holds adapters for the base model {base!r}, a folder that is not on this machine. Save them "
                "on a base model that has an id on the Hub, or merge them into it."
            )


def check_critic(critic: Mapping[str, Any], actor: Mapping[str, Any], what: str) -> None:
    """
    Check by their configurations that a critic reads the actor's tokens and gives one number for each.

    Raises:
        `ReleaseError`: several labels, or another vocabulary.
    """
    named = critic.get("id2label")
    labels = len(named) if isinstance(named, Mapping) and named else critic.get("num_labels", 2)
    sizes = labels, _text_config(critic).get("vocab_size")
    vocabulary = _text_config(actor).get("vocab_size")
    if sizes != (1, vocabulary):
        raise ReleaseError(
            f"{what} has {sizes[0]} labels and a vocabulary of {sizes[1]}, but it must have 1 and the actor's "
            f"{vocabulary}: it reads the actor's own tokens and outputs one value for each. It belongs to another "
            "base model; train or take one of the same family."
        )


def copy_evidence(source: Path, target: Path) -> None:
    """Copy card, pictures and results of an agent from its folder into another one."""
    for pattern in EVIDENCE_FILES:
        for path in sorted(source.glob(pattern)):
            copy = target / path.relative_to(source)
            if copy.resolve() != path.resolve():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def agent_files(folder: Path, *, networks_only: bool = False) -> set[Path]:
    """Return the files of an agent's folder that are the agent's own: what a push replaces, but for wheels."""
    patterns = NETWORK_FILES if networks_only else [item for item in OWNED_FILES if not item.startswith("wheels/")]
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def read_text(path: Path, where: str) -> str:
    """
    Read a text that somebody may have written by hand.

    Args:
        path (`Path`): Local copy.
        where (`str`): What it is, for the message.

    Raises:
        `ReleaseError`: it is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReleaseError(
            f"{where} is no text in UTF-8 ({error}), so what was written there could not be kept. Save it as UTF-8, "
            "or move it away."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """
    Read a file that holds one JSON object.

    Raises:
        `ReleaseError`: it does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # wrong bytes, no JSON, numbers or nesting without end
        raise ReleaseError(f"{path} cannot be read as JSON ({error}). Download or save it again.") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{path} holds {type(content).__name__}, not a JSON object. Download or save it again.")
    return content


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config
