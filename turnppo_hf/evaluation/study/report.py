"""A study and its results in; sections of tables, verdicts and pictures out, for a page or a Markdown file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from turnppo_hf.evaluation.study.curves import (
    SCALES,
    Scale,
    draw_advantages,
    draw_calibration,
    draw_curves,
    draw_levels,
)
from turnppo_hf.evaluation.study.plan import Block, Claim
from turnppo_hf.evaluation.study.result import StudyResult
from turnppo_hf.evaluation.study.statistics import Comparison, bootstrap_interval, compare

Cell = tuple[tuple[str, str], ...]

_LAST = 5  # logged steps, at the end of a run, whose mean a table shows
_SHOWN = {
    "explained variance": "explained_variance",
    "clip fraction": "clip_fraction",
    "std of log-ratio": "log_ratio/std",
    "its 1 %": "log_ratio/p01",
    "its 99 %": "log_ratio/p99",
    "entropy": "entropy",
    "turns": "turns/mean",
}


@dataclass(frozen=True)
class Bold:
    """A text whose beginning is bold."""

    bold: str
    rest: str = ""


@dataclass(frozen=True)
class Table:
    """A header and rows of cells, all text in which no sign is markup."""

    header: tuple[str, ...]
    rows: tuple[tuple[str | Bold, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows in words."""

    name: str  # file name
    text: str
    png: bytes = field(repr=False)


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    paragraphs: tuple[str, ...] = ()  # in which no sign is markup
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    prose: str = ""  # stands first, as the study's author wrote it, who may have written Markdown


def study_sections(
    blocks: Sequence[Block],
    results: Sequence[StudyResult],
    protocol: str = "",
    *,
    left_out: Sequence[str] = (),
    every_scale: bool = False,
) -> list[Section]:
    """
    Lay out what is known of a study.

    Args:
        blocks (`Sequence[Block]`): Its questions.
        results (`Sequence[StudyResult]`): What was finished, in any order.
        protocol (`str`, *optional*): How its claims are judged; without one there are none.
        left_out (`Sequence[str]`, *optional*): Names of results that are those of none of the runs.
        every_scale (`bool`, *optional*, defaults to `False`): Whether curves are drawn over episodes, tokens and
            seconds, not over episodes alone.
    """
    sections = []
    if protocol:
        sections.append(Section("Claims", (), (claims_table(blocks, results),), prose=protocol.strip()))
    if left_out:
        text = "Of another study, of other settings than the study has now, or of runs that it does not ask for, or "
        text += f"whose settings come from a block that is not finished; counted nowhere: {', '.join(left_out)}."
        sections.append(Section("Results left out", (text,)))
    if cut := cut_runs(results):
        names = ", ".join(sorted({f"{run.block} {' '.join(map(str, run.cell.values()))}" for run in cut}))
        sections.append(
            Section("Runs with cut episodes", (f"A token limit or a long prompt ended episodes of: {names}.",))
        )
    if unlike := unlike_starts(results):
        text = "Folders that held other weights for some runs than for others, which no claim compares: "
        sections.append(Section("Runs from unlike starts", (text + "; ".join(unlike) + ".",)))
    sections += _level_sections(blocks, results)
    for block in blocks:
        cells = cells_of(block, results)
        if not cells:
            sections.append(Section(_heading(block.name), ("No run of it is finished.",), prose=block.question))
            continue
        scales: list[Scale] = list(SCALES) if every_scale else ["episodes"]
        tables = [cells_table(block, cells), examples_table(block, cells)]
        tables = [table for table in tables if table.rows]
        pictures = tuple(_pictures(block, cells, scales))
        sections.append(Section(_heading(block.name), (), tuple(tables), pictures, block.question))
    return sections


def cells_of(block: Block, results: Sequence[StudyResult]) -> dict[Cell, list[StudyResult]]:
    """Return the finished runs of a block's cells, in the block's order, by seed."""
    found: dict[Cell, list[StudyResult]] = {}
    for cell in block.cells():
        runs = [item for item in results if item.block == block.name and dict(item.cell) == cell]
        runs = [item for item in runs if item.seed in block.seeds]
        if runs:
            found[tuple(cell.items())] = sorted(runs, key=lambda item: item.seed)
    return found


def claims_table(blocks: Sequence[Block], results: Sequence[StudyResult]) -> Table:
    """Return one row a claim: what is compared, the difference of final scores over seeds, and the verdict."""
    rows = []
    for block in blocks:
        for claim in block.claims:
            found = judge_claim(block, claim, results)
            setting = ", ".join([f"{claim.better} against {claim.than}", *(f"{n} {v}" for n, v in claim.at.items())])
            if claim.measure != "score":
                setting += f", {claim.measure} from the best score"
            if claim.more_than_at:
                setting += " more than " + ", ".join(f"{n} {v}" for n, v in claim.more_than_at.items())
            difference, p_value = "-", "-"
            if found.pairs:
                bounds = f" ({found.low:+.3f} to {found.high:+.3f})" if math.isfinite(found.low) else ""
                difference = f"{found.difference:+.3f}{bounds}"
                p_value = f"{found.p_value:.3f}"
            pairs = f"{found.pairs} of {len(block.seeds)}"
            rows.append((claim.claim, f"{block.name}: {setting}", pairs, difference, p_value, Bold(found.verdict)))
    header = ("claim", "setting", "seeds", "difference (95 % interval)", "p, paired", "verdict")
    return Table(header, tuple(rows))


def judge_claim(block: Block, claim: Claim, results: Sequence[StudyResult]) -> Comparison:
    """Compare the two cells of a claim, seed by seed, or the lead between them with the lead elsewhere."""
    cells = {frozenset(cell): runs for cell, runs in cells_of(block, results).items()}
    lead = _lead(claim, claim.at, cells)
    elsewhere = _lead(claim, claim.more_than_at, cells) if claim.more_than_at else dict.fromkeys(lead, 0.0)
    seeds = [seed for seed in block.seeds if seed in lead and seed in elsewhere]
    larger, smaller = ([side[seed] for seed in seeds] for side in (lead, elsewhere))
    return compare(larger, smaller, margin=claim.margin, planned=len(block.seeds))


def _lead(
    claim: Claim, at: Mapping[str, str], cells: Mapping[frozenset[tuple[str, str]], Sequence[StudyResult]]
) -> dict[int, float]:
    """Return seed -> by how much more the better value has than the other, where both started alike."""
    better, than = (
        {run.seed: run for run in cells.get(frozenset({**at, claim.axis: value}.items()), ())}
        for value in (claim.better, claim.than)
    )
    pairs = {seed: (run, than[seed]) for seed, run in better.items() if seed in than and run.starts_as(than[seed])}
    found = {seed: [getattr(run, claim.measure) for run in pair] for seed, pair in pairs.items()}
    known = {seed: numbers for seed, numbers in found.items() if None not in numbers}
    return {seed: lead for seed, numbers in known.items() if math.isfinite(lead := numbers[0] - numbers[1])}


def cells_table(block: Block, cells: Mapping[Cell, Sequence[StudyResult]]) -> Table:
    """Return one row a cell: scores before and after with their interval, every seed, and how training looked."""
    is_cpu_known = any(run.cpu_s is not None for runs in cells.values() for run in runs)
    time = "CPU min" if is_cpu_known else "wall min"
    header = (
        *block.axes,
        "seeds",
        "start",
        "end (bootstrap interval)",
        "each seed",
        "below start",
        *_SHOWN,
        time,
    )
    rows = []
    for cell, runs in cells.items():
        scores = [run.score for run in runs if run.score is not None]
        starts = [run.start for run in runs if run.start is not None]
        spent = [run.cpu_s if is_cpu_known else run.wall_s for run in runs]
        seconds = [each for each in spent if each is not None]
        below = sum(run.score < run.start for run in runs if run.score is not None and run.start is not None)
        rows.append(
            (
                *(value for _, value in cell),
                f"{len(runs)} of {len(block.seeds)}",
                f"{fmean(starts):.3f}" if starts else "-",
                _mean_of(scores) if scores else "-",
                " ".join(f"{score:.2f}" for score in scores),
                f"{below} of {len(scores)}",
                *(_last_mean(runs, name) for name in _SHOWN.values()),
                f"{fmean(seconds) / 60:.1f}" if seconds else "-",
            )
        )
    return Table(header, tuple(rows))


def examples_table(block: Block, cells: Mapping[Cell, Sequence[StudyResult]]) -> Table:
    """Return held-out episodes of a run of each cell: what the agent first saw, said, and the critic's values."""
    rows = []
    for cell, runs in cells.items():
        run = next((run for run in runs if run.examples), runs[0])
        for example in run.examples:
            values = [f" ({value:.2f})" for value in example.values] or [""] * len(example.responses)
            said = [f"{response}{value}" for response, value in zip(example.responses, values, strict=True)]
            left = ["..."] if example.turns > len(said) else []
            texts = (example.observation, ", ".join([*said, *left]))
            shown = (" / ".join(text.splitlines()) for text in texts)
            end = f"{example.stop_reason} after {example.turns}"
            rows.append((*(value for _, value in cell), str(run.seed), end, f"{example.total_reward:.2f}", *shown))
    header = ("seed", "ended, turns", "return", "first observation", "responses (the critic's value before)")
    return Table((*block.axes, *header), tuple(rows))


@dataclass(frozen=True)
class Levels:
    """The finished runs of blocks that differ in nothing but the values of an axis."""

    axis: str  # such as a number of turns
    last: str  # the other axis, such as a method
    blocks: list[str] = field(default_factory=list)
    # value of `last` -> value of `axis` -> runs
    lines: dict[str, dict[str, list[StudyResult]]] = field(default_factory=dict)

    @property
    def values(self) -> list[str]:
        """The values of the axis, numbers by size before words."""
        return sorted({value for at in self.lines.values() for value in at}, key=_rank)


def levels_of(blocks: Sequence[Block], results: Sequence[StudyResult]) -> list[Levels]:
    """Return the finished runs of all blocks with two axes, those together that have one axis and all else alike."""
    found: dict[str, Levels] = {}
    for block in blocks:
        if len(block.axes) != 2:
            continue
        axis, last = block.axes
        alike = json.dumps([axis, last, block.axes[last], block.settings], sort_keys=True)
        levels = found.setdefault(alike, Levels(axis, last))
        cells = cells_of(block, results)
        if cells:
            levels.blocks.append(block.name)
        for ((_, value), (_, line)), runs in cells.items():
            levels.lines.setdefault(line, {}).setdefault(value, runs)
    return [levels for levels in found.values() if len(levels.values) > 1]


def _rank(value: str) -> tuple[float, str]:
    return (float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else float("inf"), value)


def _level_sections(blocks: Sequence[Block], results: Sequence[StudyResult]) -> list[Section]:
    """Lay out final scores over the values of an axis that several cells differ in."""
    sections = []
    for levels in levels_of(blocks, results):
        rows = [(value, *(_score(at.get(value, ())) for at in levels.lines.values())) for value in levels.values]
        title = f"Final score by {levels.axis}: {', '.join(levels.blocks)}"
        with TemporaryDirectory() as folder:
            file = Path(folder) / "picture.png"
            draw_levels(levels.lines, file, title=title, axis=levels.axis, values=levels.values)
            text = f"{title}, one line for each {levels.last}"
            picture = Picture(_file_name([*levels.blocks, "levels"]), text, file.read_bytes())
        sections.append(Section(title, (), (Table((levels.axis, *levels.lines), tuple(rows)),), (picture,)))
    return sections


def _score(runs: Sequence[StudyResult]) -> str | Bold:
    scores = [run.score for run in runs if run.score is not None]
    return _mean_of(scores, f", n = {len(scores)}") if scores else "-"


def _mean_of(scores: Sequence[float], then: str = "") -> Bold:
    low, high = bootstrap_interval(scores)
    bounds = "" if math.isnan(low) else f" ({low:.3f} to {high:.3f})"
    return Bold(f"{fmean(scores):.3f}", f"{bounds}{then}")


def cut_runs(results: Sequence[StudyResult]) -> list[StudyResult]:
    """Return the runs in which a token limit or a long prompt ended an episode: they answer another question."""
    return [result for result in results if result.cut_share > 0]


def unlike_starts(results: Sequence[StudyResult]) -> list[str]:
    """Name the folders that runs started from with unlike weights, and how many runs with each."""
    found: dict[str, list[list[StudyResult]]] = {}
    for run in results:
        groups = found.setdefault(str(run.settings.get("model")), [])
        group = next((group for group in groups if group[0].starts_as(run)), None)
        groups.append([run]) if group is None else group.append(run)
    return [
        f"{folder} (" + ", ".join(f"{len(group)} runs from {group[0].start or 0:.3f}" for group in groups) + ")"
        for folder, groups in found.items()
        if len(groups) > 1
    ]


def _last_mean(runs: Sequence[StudyResult], name: str) -> str:
    """Mean over runs of the mean over the last logged steps."""
    ends = [[value for value in run.log.get(name, [])[-_LAST:] if value is not None] for run in runs]
    means = [fmean(values) for values in ends if values]
    return f"{fmean(means):.3f}" if means else "-"


def _pictures(block: Block, cells: Mapping[Cell, Sequence[StudyResult]], scales: Sequence[Scale]) -> list[Picture]:
    """Draw curves, calibration and advantages for each combination of all axes but the last."""
    pictures = []
    panels: dict[Cell, dict[str, Sequence[StudyResult]]] = {}
    for cell, runs in cells.items():
        panels.setdefault(cell[:-1], {})[cell[-1][1]] = runs
    with TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        for panel, lines in panels.items():
            title = ", ".join([_heading(block.name), *(f"{axis} {value}" for axis, value in panel)])
            runs = [run for line in lines.values() for run in line]
            charts: list[tuple[Callable[..., Path], str, str]] = []
            if any(run.curve for run in runs):
                charts += [(partial(draw_curves, scale=scale), scale, f"score over {scale}") for scale in scales]
            if any(run.calibration for run in runs):
                charts.append((draw_calibration, "calibration", "calibration"))
            if any(run.advantages_by_turn for run in runs):
                charts.append((draw_advantages, "advantage by turn", "advantage by turn"))
            for draw, word, text in charts:
                draw(lines, file, title=title)
                name = _file_name([block.name, *(value for _, value in panel), word])
                pictures.append(Picture(name, f"{title}: {text}", file.read_bytes()))
    return pictures


def _heading(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _file_name(parts: Sequence[str]) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(parts)) + ".png"
