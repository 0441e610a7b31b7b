"""`turnppo configs`: nothing or a name in; the configs in the package, or the text of one, out."""

from __future__ import annotations

import argparse
from pathlib import Path

# folder -> the command that its files are for
_FOLDERS = {
    "": "turnppo train {name}",
    "imitate": "turnppo imitate {name}",
    "studies": "turnppo study {name}",
    "accelerate": "accelerate launch --config_file {name}.yaml -m turnppo_hf.train CONFIG",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which one."""
    parser.add_argument(
        "name", nargs="?", help="print this one, to be edited: turnppo configs sokoban_cpu > my_config.yaml"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the list, or the text of one."""
    from turnppo_hf.environments.names import did_you_mean

    known = _all_configs()
    if arguments.name is None:
        print(_overview(known))
        return 0
    name = arguments.name.removeprefix("trainer_configs/").removesuffix(".yaml")
    by_last_word = {full.rpartition("/")[2]: full for full in known}
    name = by_last_word.get(name, name)
    if name not in known:
        raise ValueError(
            f"{arguments.name!r} is no config of the package, so there is nothing to print."
            f"{did_you_mean(name, [*by_last_word, *known])} `turnppo configs` lists them."
        )
    print(known[name].read_text(encoding="utf-8"), end="")
    return 0


def _all_configs() -> dict[str, Path]:
    from turnppo_hf.evaluation.config_files import packaged_configs

    return {
        f"{folder}/{name}".lstrip("/"): file for folder in _FOLDERS for name, file in packaged_configs(folder).items()
    }


def _overview(known: dict[str, Path]) -> str:
    lines, width = [], max(map(len, known)) + 2
    for folder, command in _FOLDERS.items():
        names = [name for name in known if name.rpartition("/")[0] == folder]
        lines += [command.format(name=f"{folder}/NAME".lstrip("/") if folder == "accelerate" else "NAME")]
        lines += [f"  {name:<{width}}{_purpose(known[name])}" for name in names]
        lines += [""]
    return "\n".join([*lines, "turnppo configs NAME prints one, to be edited."])


def _purpose(file: Path) -> str:
    """Return the first sentence of the comment that a config opens with."""
    text = file.read_text(encoding="utf-8")
    comment = [line[1:].strip() for line in text.splitlines()[:4] if line.startswith("#")]
    return " ".join(comment).partition(". ")[0].rstrip(".")
