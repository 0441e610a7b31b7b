"""A study's YAML file in; the checked `Study` out."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from turnppo_hf.distribution import config_folder
from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.evaluation.config_files import find_config, near_config
from turnppo_hf.evaluation.study.plan import (
    AT,
    BEST_OF,
    MARGIN,
    MEASURES,
    Block,
    Claim,
    Study,
    StudyError,
    best_request,
    merge,
    run_name,
)
from turnppo_hf.evaluation.study.statistics import MAX_PAIRS, MIN_PAIRS
from turnppo_hf.evaluation.yaml_file import YamlFileError, read_yaml_file

_STUDY_KEYS = ("name", "protocol", "config", "results", "work", "settings", "minutes_per_run", "starts", "blocks")
_BLOCK_KEYS = ("question", "axes", "seeds", "settings", "claims")
_CLAIM_KEYS = ("claim", "axis", "better", "than", "at", "more_than_at", "margin", "measure")
_RESUME = "resume_from_checkpoint"
_OF_THE_STUDY = ("seed", "output_dir", _RESUME)  # settings that it chooses for each run
_MINUTES = 20.0  # that a run may take
_MAX_SEED = 2**32 - 1
_QUOTE = "YAML made it of what was written, as it does of 1e-3, on, off, ~ and dates. Write it in quotes."

_Axes = Mapping[str, Mapping[str, Mapping[str, Any]]]


def read_study(path: str | Path) -> Study:
    """
    Read a study's file.

    Args:
        path (`str` or `Path`): YAML; the paths in it are relative to its folder. Of a study inside of the installed
            package those of results and work are relative to the working directory, as to the repository's root. A
            `config` that is not there is looked for as `turnppo train` does. Without `work` runs lie in runs/studies
            of the working directory.

    Raises:
        `StudyError`: a missing, unknown or wrong entry, with the nearest match.
    """
    file = Path(path)
    found = _read_file(file)
    _check_keys(found, _STUDY_KEYS, ("name", "protocol", "config", "results", "blocks"), str(file))
    name, protocol = (_text(found, key, str(file)) for key in ("name", "protocol"))
    if not _is_below(name):
        raise StudyError(f"{file}.name: {name!r} is no path below the folder of runs. Choose another name.")
    base = _with_mappings(_read_config(_text(found, "config", str(file)), file))
    base.pop("output_dir", None)
    if _RESUME in base:
        raise StudyError(f"{found['config']} sets `{_RESUME}`, but each run of a study begins anew. Remove it.")
    own = _mapping(found.get("settings"), f"{file}: settings")
    _check_settings(own, f"{file}: settings")
    blocks: list[Block] = []
    for title, entry in _filled(found["blocks"], f"{file}: blocks").items():
        blocks.append(_read_block(title, entry, blocks, str(file)))
    _check_names(blocks, str(file))
    outputs = _outputs_of(file)
    work = outputs / _text(found, "work", str(file)) if "work" in found else Path("runs/studies") / name
    settings = merge(base, own)
    return Study(
        path=file,
        name=name,
        protocol=protocol,
        results=(outputs / _text(found, "results", str(file))).resolve(),
        work=work.resolve(),
        minutes_per_run=_number(found.get("minutes_per_run", _MINUTES), f"{file}: minutes_per_run", above=0.0),
        starts=_read_starts(found.get("starts"), f"{file}: starts", settings, blocks),
        settings=settings,
        blocks=tuple(blocks),
    )


def _outputs_of(file: Path) -> Path:
    configs, package = config_folder(), Path(__file__).parents[2]
    if configs.is_relative_to(package) and file.resolve().is_relative_to(configs.resolve()):
        return Path(configs.name) / file.resolve().parent.relative_to(configs.resolve())
    return file.parent


def _read_starts(value: Any, at: str, settings: Mapping[str, Any], blocks: Sequence[Block]) -> dict[str, str]:
    """Return folder -> the command that makes it, for folders that runs start from."""
    starts = {folder: _text({folder: words}, folder, at) for folder, words in _mapping(value, at).items()}
    chosen = [settings, *(block.settings for block in blocks)]
    chosen += [entry for block in blocks for values in block.axes.values() for entry in values.values()]
    models = {str(entry["model"]) for entry in chosen if "model" in entry}
    for folder in starts:
        if folder not in models:
            raise StudyError(f"{at}: no run has {folder!r} as its `model`.{did_you_mean(folder, models)}")
    kept = Counter(Path(folder).name for folder in starts)
    if twice := [name for name, times in kept.items() if times > 1]:
        raise StudyError(
            f"{at}: two folders are called {twice[0]!r}, and what is kept of them beside the results would be one. "
            "Rename one of them."
        )
    return starts


def _read_block(name: str, entry: Any, before: Sequence[Block], file: str) -> Block:
    at = f"{file}: blocks.{name}"
    block = _mapping(entry, at)
    _check_keys(block, _BLOCK_KEYS, ("question", "axes", "seeds"), at)
    axes: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, values in _filled(block["axes"], f"{at}.axes").items():
        place = f"{at}.axes.{axis}"
        axes[axis] = {value: _mapping(chosen, f"{place}.{value}") for value, chosen in _filled(values, place).items()}
        for value, chosen in axes[axis].items():
            _check_settings(chosen, f"{place}.{value}", before)
    settings = _mapping(block.get("settings"), f"{at}.settings")
    _check_settings(settings, f"{at}.settings")
    seeds = _read_seeds(block["seeds"], f"{at}.seeds")
    claims = _read_claims(block.get("claims"), axes, seeds, at)
    return Block(name, _text(block, "question", at), axes, seeds, settings, claims)


def _read_claims(entries: Any, axes: _Axes, seeds: Sequence[int], at: str) -> tuple[Claim, ...]:
    if not isinstance(entries, list | None):
        raise StudyError(f"{at}.claims must be a list, got {entries!r}. Write a dash before each claim.")
    if entries and len(seeds) > MAX_PAIRS:
        raise StudyError(
            f"{at} has {len(seeds)} seeds, but the exact test of a claim takes {MAX_PAIRS} pairs at most, so its "
            "claims could not be judged. Name fewer seeds."
        )
    if entries and len(seeds) < MIN_PAIRS:
        warnings.warn(
            f"{at} has {len(seeds)} of the {MIN_PAIRS} seeds from which on the exact test of a claim decides "
            "anything, so its claims will stay not decided. Name more seeds.",
            stacklevel=2,
        )
    claims: list[Claim] = []
    for number, entry in enumerate(entries or ()):
        claim = _read_claim(entry, axes, f"{at}.claims[{number}]")
        for earlier, known in enumerate(claims):
            if replace(known, claim=claim.claim) == claim:
                raise StudyError(
                    f"{at}.claims[{number}] compares what claims[{earlier}] compares, so it would be counted twice. "
                    "Remove one of them."
                )
        claims.append(claim)
    return tuple(claims)


def _read_seeds(seeds: Any, at: str) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise StudyError(f"{at} must be a list of integers such as [0, 1, 2], got {seeds!r}.")
    if wrong := [seed for seed in seeds if not 0 <= seed <= _MAX_SEED]:
        raise StudyError(f"{at} holds {wrong[0]}, but generators are seeded with 0 to {_MAX_SEED}. Correct it.")
    if len(set(seeds)) != len(seeds):
        raise StudyError(f"{at} names a seed twice: {seeds}. Equal seeds give equal runs. Keep one of them.")
    return tuple(seeds)


def _read_claim(entry: Any, axes: _Axes, at: str) -> Claim:
    found = _filled(entry, at)
    _check_keys(found, _CLAIM_KEYS, ("claim", "axis", "better", "than"), at)
    axis, better, than = (str(found[name]) for name in ("axis", "better", "than"))
    _check_values([(axis, found["better"]), (axis, found["than"])], axes, at)
    if better == than:
        raise StudyError(f"{at}: `better` and `than` are both {better!r}, so it is compared with itself. Correct one.")
    held, elsewhere = (_read_cell(found, key, axes, axis, at) for key in ("at", "more_than_at"))
    if held == elsewhere and elsewhere:
        raise StudyError(f"{at}: `more_than_at` is `at`, so the lead is compared with itself. Name another cell.")
    margin = _number(found.get("margin", MARGIN), f"{at}.margin", least=0.0)
    measure = str(found.get("measure", "score"))
    if measure not in MEASURES:
        hint = did_you_mean(measure, MEASURES)
        raise StudyError(f"{at}: `measure` is {measure!r}, so nothing is compared.{hint} Pass one of {MEASURES}.")
    return Claim(_text(found, "claim", at), axis, better, than, held, elsewhere, margin, measure)


def _read_cell(claim: Mapping[str, Any], key: str, axes: _Axes, axis: str, at: str) -> dict[str, str]:
    """Read a value of each axis but the compared one; nothing at all where the claim names no other cell."""
    found = _mapping(claim.get(key), f"{at}.{key}")
    _check_values(found.items(), axes, f"{at}.{key}")
    cell = {name: str(value) for name, value in found.items()}
    if axis in cell:
        raise StudyError(f"{at}: `{key}` holds {axis!r}, the axis that is compared, which has two values. Remove it.")
    missing = set(axes) - {axis} - set(cell)
    if missing and (cell or key == "at"):
        raise StudyError(
            f"{at} leaves {sorted(missing)[0]!r} open, so it compares no two cells. Name its value in `{key}`."
        )
    return cell


def _check_values(pairs: Iterable[tuple[str, Any]], axes: _Axes, at: str) -> None:
    for axis, value in pairs:
        if axis not in axes:
            hint = did_you_mean(axis, axes)
            raise StudyError(f"{at}: {axis!r} is no axis of the block.{hint} There are {', '.join(axes)}.")
        if not _is_name(value) or str(value) not in axes[axis]:
            hint = did_you_mean(value, axes[axis]) if isinstance(value, str | list | dict) else f" {_QUOTE}"
            known = ", ".join(map(repr, axes[axis]))
            raise StudyError(f"{at}: {value!r} is no value of the axis {axis!r}.{hint} There are {known}.")


def _check_settings(settings: Mapping[str, Any], at: str, before: Sequence[Block] | None = None) -> None:
    """
    Check what is set for runs.

    Args:
        settings (`Mapping`): It.
        at (`str`): Its place in the file.
        before (`Sequence[Block]`, *optional*): Blocks that a value of an axis may take its settings from.
    """
    for name in _OF_THE_STUDY:
        if name in settings:
            raise StudyError(f"{at} sets `{name}`, which the study chooses for each run. Remove it.")
    if BEST_OF not in settings:
        return
    if before is None:
        raise StudyError(f"{at} holds `{BEST_OF}`, which the values of an axis have alone. Move it there.")
    _check_keys(settings, (BEST_OF, AT), (BEST_OF,), at)
    held = _mapping(settings.get(AT), f"{at}.{AT}")
    _, of, _ = best_request(settings)
    block = next((block for block in before if block.name == of), None)
    if block is None:
        hint = did_you_mean(of, [block.name for block in before])
        raise StudyError(f"{at}: `{BEST_OF}` names {of!r}, which is no block before this one.{hint}")
    if any(BEST_OF in chosen for values in block.axes.values() for chosen in values.values()):
        raise StudyError(f"{at}: the block {of!r} takes settings from another block itself. Name that one.")
    _check_values(held.items(), block.axes, f"{at}.{AT}, of the block {of!r}")


def _check_names(blocks: Sequence[Block], file: str) -> None:
    """Check that each run has a path of its own, below the folder of results."""
    names = Counter(
        run_name(block.name, cell, seed) for block in blocks for cell in block.cells() for seed in block.seeds
    )
    for name, times in names.items():
        if times > 1:
            raise StudyError(f"{file}: two runs would be called {name!r}, of which one would be lost. Rename a value.")
        if not _is_below(name):
            raise StudyError(f"{file}: {name!r} is no path below the folder of results. Rename its block or value.")


def _is_below(path: str) -> bool:
    """Whether a path leads to a place below the folder that it is relative to."""
    return not {"", ".", ".."} & set(path.split("/")) and "\0" not in path


def _check_keys(found: Mapping[str, Any], known: Sequence[str], needed: Sequence[str], at: str) -> None:
    for name in found:
        if name not in known:
            raise StudyError(f"{at}: {name!r} is no key.{did_you_mean(name, known)} Known are {', '.join(known)}.")
    if missing := [name for name in needed if name not in found]:
        raise StudyError(f"{at} lacks `{missing[0]}`, so it is open what is meant. Add it.")


def _text(found: Mapping[str, Any], key: str, at: str) -> str:
    value = found[key]
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        raise StudyError(f"{at}.{key} must be a text, got {value!r}. Write some words.")
    if "\0" in str(value):
        raise StudyError(f"{at}.{key} holds a NUL character, got {value!r}, which no path may. Remove it.")
    return str(value)


def _number(value: Any, at: str, *, least: float = -math.inf, above: float = -math.inf) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # of an integer
        number = value = math.inf
    if not math.isfinite(number) or number < least or number <= above:
        bound = f" of at least {least:g}" if least > -math.inf else f" above {above:g}"
        raise StudyError(f"{at} must be a number{bound}, got {value!r}. Correct it.")
    return number


def _mapping(value: Any, at: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise StudyError(f"{at} must be a mapping, got {value!r}. Write one `name: value` a line.")
    if wrong := [name for name in value if not _is_name(name)]:
        raise StudyError(f"{at} has the name {wrong[0]!r}, which is no text. {_QUOTE}")
    return {str(name): entry for name, entry in value.items()}


def _is_name(value: Any) -> bool:
    """Whether a value of YAML is a text, or a number, which is called as Python writes it."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _filled(value: Any, at: str) -> dict[str, Any]:
    found = _mapping(value, at)
    if not found:
        raise StudyError(f"{at} is empty, so there is nothing to run or to compare. Fill it, or remove it.")
    return found


def _with_mappings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with mappings in place of JSON objects, which a config may hold as text, so that they join."""
    return {name: _from_json(value) if isinstance(value, str) else value for name, value in settings.items()}


def _from_json(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text


def _read_config(written: str, file: Path) -> dict[str, Any]:
    """Read the config that all runs begin from: beside the study's file, else where `turnppo train` finds it."""
    beside = file.parent / written
    try:
        return read_yaml_file(beside if beside.is_file() else find_config(written))
    except OSError as error:
        raise StudyError(
            f"{file}.config: {written!r} cannot be read: {error.strerror}, so no run has settings."
            f"{near_config(written, within=file.parent)}"
        ) from error
    except YamlFileError as error:
        raise StudyError(f"{file}.config: {error}") from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return read_yaml_file(file)
    except OSError as error:
        raise StudyError(f"{str(file)!r} cannot be read: {error.strerror}. Name a YAML file.") from error
    except YamlFileError as error:
        raise StudyError(str(error)) from error
