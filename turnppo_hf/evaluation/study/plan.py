"""What a study asks for in: blocks, axes, seeds; its runs, each with all of its settings, out."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEST_OF, AT = "best_of", "at"  # in place of settings: those of the best cell of a block before, at some values
MEASURES = ("score", "fall")  # properties of `StudyResult`
MARGIN = 0.05  # of the score


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
    margin: float = MARGIN  # an interval that lies below it refutes the claim
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
        """
        Sixteen hex digits of the settings, the seed among them: equal for equal runs only.

        Raises:
            `StudyError`: the settings are no JSON.
        """
        try:
            return hash_of(self.settings)
        except (TypeError, ValueError) as error:
            raise StudyError(
                f"The settings of {self.name} are no JSON ({error}), so its result could not be kept. Write in quotes "
                "what YAML takes for a date or the like."
            ) from error


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
                    key, of, at = best_request(settings)
                    requests[key] = (self.block(of), at)
        return requests

    def _run(
        self, block: Block, cell: Mapping[str, str], seed: int, best: Mapping[str, Mapping[str, str]]
    ) -> PlannedRun:
        settings = merge(self.settings, block.settings)
        for axis, value in cell.items():
            settings = merge(settings, self.value_settings(block, axis, value, best))
        return PlannedRun(block.name, cell, seed, {**settings, "seed": seed})

    def value_settings(
        self, block: Block, axis: str, value: str, best: Mapping[str, Mapping[str, str]]
    ) -> Mapping[str, Any]:
        """Return what a value of an axis sets; of a `best_of` what its best cell sets, arguments as in `runs`."""
        chosen = block.axes[axis][value]
        if BEST_OF not in chosen:
            return chosen
        key, of, _ = best_request(chosen)
        return self.cell_settings(self.block(of), best[key])

    @staticmethod
    def cell_settings(block: Block, cell: Mapping[str, str]) -> dict[str, Any]:
        """Return what the values of a cell set."""
        settings: dict[str, Any] = {}
        for axis, value in cell.items():
            settings = merge(settings, block.axes[axis][value])
        return settings


def hash_of(settings: Mapping[str, Any]) -> str:
    """Return sixteen hex digits of settings, the same of those that were written as JSON and read again."""
    text = json.dumps(json.loads(json.dumps(settings)), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_claims(study: Study, block: Block, best: Mapping[str, Mapping[str, str]]) -> None:
    """
    Check that the claims of a block compare runs of different settings.

    Args:
        study ([`Study`]): What is asked for.
        block ([`Block`]): One of its blocks.
        best (`Mapping`): As in `Study.runs`.

    Raises:
        `StudyError`: two cells that a claim compares have equal settings.
    """
    hashes = {
        frozenset(run.cell.items()): run.settings_hash for run in study.runs(block, best) if run.seed == block.seeds[0]
    }
    for claim in block.claims:
        which, pairs = f"{study.path}: the claim {claim.claim!r} of the block {block.name!r}", []
        for at in (claim.at, claim.more_than_at) if claim.more_than_at else (claim.at,):
            cells = [frozenset({**at, claim.axis: value}.items()) for value in (claim.better, claim.than)]
            pair = [hashes[cell] for cell in cells]
            if pair[0] == pair[1]:
                raise StudyError(
                    f"{which} compares {claim.better!r} with {claim.than!r}, whose runs have equal settings. "
                    f"{_why_equal(study, block, claim, at, best)}"
                )
            if pair in pairs:
                raise StudyError(
                    f"{which} compares a lead with itself: the runs of `at` and those of `more_than_at` have equal "
                    "settings. Let the values of their axes set something."
                )
            pairs.append(pair)


def _why_equal(
    study: Study, block: Block, claim: Claim, at: Mapping[str, str], best: Mapping[str, Mapping[str, str]]
) -> str:
    """Say which axis sets again what two values of another one differ in."""
    better, than = (study.value_settings(block, claim.axis, value, best) for value in (claim.better, claim.than))
    differing = [key for key in {**better, **than} if better.get(key) != than.get(key)]
    axes = list(block.axes)
    for axis in axes[axes.index(claim.axis) + 1 :]:
        for key in study.value_settings(block, axis, at[axis], best):
            if key in differing:
                return f"{at[axis]!r} of the axis {axis!r} sets `{key}` after them. Set it in one of the axes only."
    return "The values set the same, or what the runs have without them. Give one of them a setting of its own."


def run_name(block: str, cell: Mapping[str, str], seed: int) -> str:
    """Return block, values and seed, as a path below the folder of results."""
    return "/".join([block, *cell.values(), f"seed_{seed}"])


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return both mappings, `upper` on top, mappings inside of them joined in the same way."""
    merged = dict(lower)
    for name, value in upper.items():
        both = isinstance(merged.get(name), Mapping) and isinstance(value, Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def best_request(settings: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Return the request's key, its block and the values to hold."""
    held = {str(name): str(value) for name, value in (settings.get(AT) or {}).items()}
    of = str(settings[BEST_OF])
    return f"{of} {json.dumps(held, sort_keys=True)}", of, held
