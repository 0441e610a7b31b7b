"""A study's YAML file in; the runs that it asks for, each with all of its settings, out."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from turnppo_hf.distribution import config_folder
from turnppo_hf.environments.names import did_you_mean

BEST_OF = "best_of"  # in place of settings: those of the best cell of a block that comes before
_STUDY_KEYS = ("name", "protocol", "config", "results", "work", "settings", "minutes_per_run", "starts", "blocks")
_BLOCK_KEYS = ("question", "axes", "seeds", "settings", "claims")
_CLAIM_KEYS = ("claim", "axis", "better", "than", "at", "more_than_at", "margin", "measure")
MEASURES = ("score", "fall")  # properties of `StudyResult`
_OF_THE_STUDY = ("seed", "output_dir", "resume_from_checkpoint")  # settings that it chooses for each run
_MARGIN = 0.05  # of the score


class StudyError(ValueError):
    """A study's file that cannot be understood."""


@dataclass(frozen=True)
class Claim:
    """
    That one value of an axis is better than another, all else equal, or that its lead is larger than it is elsewhere.

    Each seed is a pair.
    """

    claim: str  # in words
    axis: str
    better: str  # value of the axis
    than: str
    at: Mapping[str, str]  # values of the other axes
    more_than_at: Mapping[str, str] = field(default_factory=dict)  # those where the lead is smaller, if it says so
    margin: float = _MARGIN  # a difference below it does not count as better
    measure: str = "score"  # what `better` has more of, one of `MEASURES`


@dataclass(frozen=True)
class Block:
    """A grid of runs that answers one question."""

    name: str
    question: str
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]]  # axis -> its values -> settings of each
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    claims: tuple[Claim, ...] = ()

    def cells(self) -> Iterator[dict[str, str]]:
        """Yield the combinations of the axes' values, the last axis fastest."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))


@dataclass(frozen=True)
class PlannedRun:
    """One run: a cell of a block, and a seed."""

    block: str
    cell: Mapping[str, str]  # axis -> value
    seed: int
    settings: Mapping[str, Any]  # all that `turnppo train` reads, without `output_dir`

    @property
    def name(self) -> str:
        """Block, values and seed, as a path below the folder of results."""
        return run_name(self.block, self.cell, self.seed)

    @property
    def settings_hash(self) -> str:
        """Sixteen hex digits of the settings, the seed among them: equal for equal runs only."""
        text = json.dumps(self.settings, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study:
    """A study's file."""

    path: Path
    name: str
    protocol: str  # in words, written before the runs
    results: Path  # folder of one JSON file a finished run
    work: Path  # folder of the runs themselves
    minutes_per_run: float
    starts: Mapping[str, str]  # folder that the runs start from -> the `turnppo` command that makes it
    settings: Mapping[str, Any]
    blocks: tuple[Block, ...]

    def block(self, name: str) -> Block:
        """Return a block by name."""
        return next(block for block in self.blocks if block.name == name)

    def runs(self, block: Block, best: Mapping[str, Mapping[str, str]]) -> list[PlannedRun]:
        """
        Return a block's runs, all cells of a seed before the next seed, so that a stopped study holds whole seeds.

        Args:
            block ([`Block`]): One of the study's.
            best (`Mapping`): Answers to `best_requests`: key -> the best cell.
        """
        return [self._run(block, cell, seed, best) for seed in block.seeds for cell in block.cells()]

    def best_requests(self, block: Block) -> dict[str, tuple[Block, dict[str, str]]]:
        """Return the best cells that a block needs to know: key -> the block to look in, and the values to hold."""
        requests = {}
        for values in block.axes.values():
            for settings in values.values():
                if BEST_OF in settings:
                    key, of, at = _best_request(settings)
                    requests[key] = (self.block(of), at)
        return requests

    def _run(
        self, block: Block, cell: Mapping[str, str], seed: int, best: Mapping[str, Mapping[str, str]]
    ) -> PlannedRun:
        settings = merge(self.settings, block.settings)
        for axis, value in cell.items():
            chosen = block.axes[axis][value]
            if BEST_OF in chosen:
                key, of, _ = _best_request(chosen)
                chosen = self.cell_settings(self.block(of), best[key])
            settings = merge(settings, chosen)
        return PlannedRun(block.name, cell, seed, {**settings, "seed": seed})

    @staticmethod
    def cell_settings(block: Block, cell: Mapping[str, str]) -> dict[str, Any]:
        """Return what the values of a cell set."""
        settings: dict[str, Any] = {}
        for axis, value in cell.items():
            settings = merge(settings, block.axes[axis][value])
        return settings


def run_name(block: str, cell: Mapping[str, str], seed: int) -> str:
    """Return block, values and seed, as a path below the folder of results."""
    return "/".join([block, *cell.values(), f"seed_{seed}"])


def read_study(path: str | Path) -> Study:
    """
    Read a study's file.

    Args:
        path (`str` or `Path`): YAML; the paths in it are relative to its folder. Of a study inside of the installed
            package those of results and work are relative to the working directory, as to the repository's root.

    Raises:
        `StudyError`: a missing, unknown or wrong entry, with the nearest match.
    """
    file = Path(path)
    found = _read_mapping(file)
    _check_keys(found, _STUDY_KEYS, ("name", "protocol", "config", "results", "blocks"), str(file))
    base = _read_mapping(file.parent / str(found["config"]))
    settings = merge(base, _mapping(found.get("settings"), f"{file}: settings"))
    blocks: list[Block] = []
    for name, entry in _filled(found["blocks"], f"{file}: blocks").items():
        blocks.append(_read_block(str(name), entry, blocks, str(file)))
    outputs = _outputs_of(file)
    work = outputs / str(found.get("work", f"../../runs/studies/{found['name']}"))
    settings.pop("output_dir", None)
    return Study(
        path=file,
        name=str(found["name"]),
        protocol=str(found["protocol"]),
        results=(outputs / str(found["results"])).resolve(),
        work=work.resolve(),
        minutes_per_run=float(found.get("minutes_per_run", 20)),
        starts={str(name): str(words) for name, words in _mapping(found.get("starts"), f"{file}: starts").items()},
        settings=settings,
        blocks=tuple(blocks),
    )


def _outputs_of(file: Path) -> Path:
    configs, package = config_folder(), Path(__file__).parents[2]
    if configs.is_relative_to(package) and file.resolve().is_relative_to(configs.resolve()):
        return Path(configs.name) / file.resolve().parent.relative_to(configs.resolve())
    return file.parent


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return both mappings, `upper` on top, mappings inside of them joined in the same way."""
    merged = dict(lower)
    for name, value in upper.items():
        both = isinstance(merged.get(name), Mapping) and isinstance(value, Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def _read_block(name: str, entry: Any, before: Sequence[Block], file: str) -> Block:
    at = f"{file}: blocks.{name}"
    block = _mapping(entry, at)
    _check_keys(block, _BLOCK_KEYS, ("question", "axes", "seeds"), at)
    axes: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, values in _filled(block["axes"], f"{at}.axes").items():
        place = f"{at}.axes.{axis}"
        axes[str(axis)] = {
            str(value): _mapping(chosen, f"{place}.{value}") for value, chosen in _filled(values, place).items()
        }
        for value, chosen in axes[str(axis)].items():
            _check_settings(chosen, before, f"{place}.{value}")
    settings = _mapping(block.get("settings"), f"{at}.settings")
    _check_settings(settings, (), f"{at}.settings")
    seeds = block["seeds"]
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise StudyError(f"{at}.seeds must be a list of integers such as [0, 1, 2], got {seeds!r}.")
    if len(set(seeds)) != len(seeds):
        raise StudyError(f"{at}.seeds names a seed twice: {seeds}. Equal seeds give equal runs. Keep one of them.")
    claims = tuple(_read_claim(item, axes, f"{at}.claims[{number}]") for number, item in _list(block, at))
    return Block(name, str(block["question"]), axes, tuple(seeds), settings, claims)


def _list(block: Mapping[str, Any], at: str) -> Iterator[tuple[int, Any]]:
    claims = block.get("claims") or []
    if not isinstance(claims, list):
        raise StudyError(f"{at}.claims must be a list, got {claims!r}.")
    return enumerate(claims)


def _read_claim(entry: Any, axes: Mapping[str, Mapping[str, Any]], at: str) -> Claim:
    found = _mapping(entry, at)
    _check_keys(found, _CLAIM_KEYS, ("claim", "axis", "better", "than"), at)
    axis, better, than = (str(found[name]) for name in ("axis", "better", "than"))
    _check_values([(axis, better), (axis, than)], axes, at)
    held, elsewhere = (_read_cell(found, key, axes, axis, at) for key in ("at", "more_than_at"))
    if held == elsewhere and elsewhere:
        raise StudyError(f"{at}: `more_than_at` is `at`, so the lead is compared with itself. Name another cell.")
    margin, measure = float(found.get("margin", _MARGIN)), str(found.get("measure", "score"))
    if measure not in MEASURES:
        hint = did_you_mean(measure, MEASURES)
        raise StudyError(f"{at}: `measure` is {measure!r}, so nothing is compared.{hint} Pass one of {MEASURES}.")
    return Claim(str(found["claim"]), axis, better, than, held, elsewhere, margin, measure)


def _read_cell(
    claim: Mapping[str, Any], key: str, axes: Mapping[str, Mapping[str, Any]], axis: str, at: str
) -> dict[str, str]:
    """Read a value of each axis but the compared one; nothing at all where the claim names no other cell."""
    cell = {str(name): str(value) for name, value in _mapping(claim.get(key), f"{at}.{key}").items()}
    _check_values(cell.items(), axes, at)
    missing = set(axes) - {axis} - set(cell)
    if missing and (cell or key == "at"):
        raise StudyError(
            f"{at} leaves {sorted(missing)[0]!r} open, so it compares no two cells. Name its value in `{key}`."
        )
    return cell


def _check_values(pairs: Iterable[tuple[str, str]], axes: Mapping[str, Mapping[str, Any]], at: str) -> None:
    for axis, value in pairs:
        if axis not in axes:
            raise StudyError(f"{at}: {axis!r} is no axis of the block.{did_you_mean(axis, axes)}")
        if value not in axes[axis]:
            raise StudyError(f"{at}: {value!r} is no value of the axis {axis!r}.{did_you_mean(value, axes[axis])}")


def _check_settings(settings: Mapping[str, Any], before: Sequence[Block], at: str) -> None:
    for name in _OF_THE_STUDY:
        if name in settings:
            raise StudyError(f"{at} sets `{name}`, which the study chooses for each run. Remove it.")
    if BEST_OF in settings:
        _, of, held = _best_request(settings)
        block = next((block for block in before if block.name == of), None)
        if block is None:
            names = [block.name for block in before]
            raise StudyError(
                f"{at}: `{BEST_OF}` names {of!r}, which is no block before this one.{did_you_mean(of, names)}"
            )
        for name, value in held.items():
            if value not in block.axes.get(name, {}):
                raise StudyError(f"{at}: {name}={value!r} is in no cell of the block {of!r}.")


def _best_request(settings: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Return the request's key, its block and the values to hold."""
    held = {str(name): str(value) for name, value in (settings.get("at") or {}).items()}
    of = str(settings[BEST_OF])
    return f"{of} {json.dumps(held, sort_keys=True)}", of, held


def _check_keys(found: Mapping[str, Any], known: Sequence[str], needed: Sequence[str], at: str) -> None:
    for name in found:
        if name not in known:
            raise StudyError(f"{at}: {name!r} is no key.{did_you_mean(name, known)} Known are {', '.join(known)}.")
    if missing := [name for name in needed if name not in found]:
        raise StudyError(f"{at} lacks `{missing[0]}`, so it is not known what is run. Add it.")


def _mapping(value: Any, at: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise StudyError(f"{at} must be a mapping, got {value!r}.")
    return dict(value)


def _filled(value: Any, at: str) -> dict[str, Any]:
    found = _mapping(value, at)
    if not found:
        raise StudyError(f"{at} is empty, so there is nothing to run. Name at least one.")
    return found


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        return _mapping(yaml.safe_load(file.read_text(encoding="utf-8")), str(file))
    except OSError as error:
        raise StudyError(f"{str(file)!r} cannot be read: {error.strerror}. Name a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} is no YAML: {' '.join(str(error).split())}.") from error
