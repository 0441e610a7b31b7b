"""A study and its result files in; which of its runs are finished, and the best cells that they give, out."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from turnppo_hf.evaluation.study.plan import Block, PlannedRun, Study
from turnppo_hf.evaluation.study.result import StudyResult, read_results


class FinishedRuns:
    """
    The finished runs of a study.

    A run is finished when a result has the study's name, and the run's name, cell and hash of settings: one of other
    settings is none of this study any more, and is counted nowhere.

    Args:
        study ([`~turnppo_hf.evaluation.study.plan.Study`]): What is asked for; the files of its results are read.

    Raises:
        `ValueError`: a file is no result.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.results: dict[str, StudyResult] = {}
        self.misplaced: list[str] = []  # files of results whose names are not where they lie
        self.reread()

    def reread(self) -> None:
        """Read the files of results, also those that another command finished."""
        found = read_results(self.study.results)
        self.results = {name: result for name, result in found.items() if result.name == name}
        self.misplaced = [name for name in found if name not in self.results]

    def of(self, run: PlannedRun) -> StudyResult | None:
        """Return the result of a run, None where it is not finished."""
        result = self.results.get(run.name)
        if result is None or result.study != self.study.name or dict(result.cell) != dict(run.cell):
            return None
        return result if result.settings_hash == run.settings_hash else None

    def equal_to(self, run: PlannedRun) -> StudyResult | None:
        """Return the result of any run that has the settings of this one, None where there is none."""
        return next((item for item in self.results.values() if item.settings_hash == run.settings_hash), None)

    def keep(self, run: PlannedRun, result: StudyResult) -> None:
        """Write the result of a run."""
        result.save(self.study.results / f"{run.name}.json")
        self.results[run.name] = result

    def best(self, block: Block) -> dict[str, Mapping[str, str]] | None:
        """Return the cells that the block's `best_of` asks for, None while a run that decides them is not finished."""
        best: dict[str, Mapping[str, str]] = {}
        for key, (of, held) in self.study.best_requests(block).items():
            scores: dict[tuple[tuple[str, str], ...], list[float]] = {}
            for run in self.study.runs(of, {}):
                if all(run.cell[axis] == value for axis, value in held.items()):
                    result = self.of(run)
                    if result is None or result.score is None:
                        return None
                    scores.setdefault(tuple(run.cell.items()), []).append(result.score)
            best[key] = dict(max(scores.items(), key=lambda item: fmean(item[1]))[0])
        return best

    def planned(self) -> list[StudyResult]:
        """Return the results of the study's runs, in its order, at most one a run."""
        found = []
        for block in self.study.blocks:
            best = self.best(block)
            runs = [] if best is None else self.study.runs(block, best)
            found += [result for run in runs if (result := self.of(run)) is not None]
        return found

    def left_out(self) -> list[str]:
        """Name the results that are those of no run of the study, as it is now."""
        return sorted({*self.results, *self.misplaced} - {result.name for result in self.planned()})
