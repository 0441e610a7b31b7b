"""The word behind a command in, the config file that it means out: a path, or the name of one in the package."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from turnppo_hf.distribution import config_folder
from turnppo_hf.environments.names import did_you_mean

__all__ = ["find_config", "near_config", "packaged_configs"]

_SUFFIXES = (".yaml", ".yml")


def packaged_configs(folder: str = "") -> dict[str, Path]:
    """
    Return the configs in the package: name -> file.

    Args:
        folder (`str`, *optional*): `""` are those of `turnppo train`; `"imitate"`, `"studies"` and `"accelerate"` hold
            the others.
    """
    return {path.stem: path for path in sorted((config_folder() / folder).glob("*.yaml"))}


def find_config(written: str, folder: str = "") -> Path:
    """
    Return the file that was meant: the one at that path where there is one, else the packaged one of that name.

    Args:
        written (`str`): A path, or a name such as `sokoban_cpu`, with or without `trainer_configs/` and `.yaml`.
        folder (`str`, *optional*): Of the command's packaged configs.

    Returns:
        `Path`: that of `written` itself where neither exists, so that reading it gives the error.
    """
    path = Path(written)
    if path.is_file() or written.startswith("."):
        return path
    return packaged_configs(folder).get(_name(path, folder), path)


def near_config(written: str, folder: str = "", within: Path = Path()) -> str:
    """
    Return what follows the message that a config cannot be read: the nearest match, and where the names are.

    Args:
        written (`str`): What was asked for.
        folder (`str`, *optional*): Of the command's packaged configs.
        within (`Path`, *optional*): Folder that a path is relative to. Defaults to the working directory.
    """
    path = Path(written)
    beside = [item.name for item in _yaml_files(within / path.parent)]
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {str(path.parent / near[0])!r}?"
    names = packaged_configs(folder)
    hint = did_you_mean(_name(path, folder), names)
    return f"{hint} The package has {', '.join(names)}; name one of them, or the path of a file of yours."


def _name(path: Path, folder: str) -> str:
    """Return a path without what a packaged config's name leaves out: the folders it lies in, and the suffix."""
    parts = list(path.parts)
    for lead in (config_folder().name, folder):
        if parts[:1] == [lead]:
            parts = parts[1:]
    name = Path(*parts)
    return (name.with_suffix("") if name.suffix in _SUFFIXES else name).as_posix()


def _yaml_files(folder: Path) -> Iterator[Path]:
    return (item for item in folder.iterdir() if item.suffix in _SUFFIXES) if folder.is_dir() else iter(())
