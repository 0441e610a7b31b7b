"""`turnppo report`: finished runs, or a study, in; a picture of learning curves, an HTML page or Markdown out."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnppo_hf.evaluation.study.plan import Block
    from turnppo_hf.evaluation.study.result import StudyResult

_PICTURES = (".png", ".svg", ".pdf")
_PAGES = (".md", ".html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which runs are drawn, and where to."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a run, its results.json, or one study: a YAML file, or a packaged one by its name",
    )
    parser.add_argument("--metric", choices=["success", "return"], help="of a picture (default: success)")
    parser.add_argument(
        "--output",
        default="learning_curve.png",
        help="a picture, or a page: .png, .svg, .pdf, .html, .md (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw or write, and print the path."""
    output = Path(arguments.output)
    suffix = output.suffix.lower()
    is_study = [_is_study(name) for name in arguments.runs]
    if suffix not in (*_PICTURES, *_PAGES):
        raise ValueError(
            f"--output {arguments.output} names no format that is written. End it in one of "
            f"{', '.join((*_PICTURES, *_PAGES))}."
        )
    if suffix in _PICTURES:
        from turnppo_hf.evaluation.learning_curve import learning_curve

        if any(is_study):
            raise ValueError(
                f"{arguments.output!r} is one picture, and a study needs several. Pass --output X.html or X.md."
            )
        print(learning_curve(arguments.runs, output, arguments.metric or "success"))
        return 0
    if any(is_study) and len(is_study) > 1:
        raise ValueError("A page reports one study, or runs. Name the study's file alone.")
    if arguments.metric:
        raise ValueError(
            "`--metric` is of a picture; a page has the success, or the return where there is none. Drop it."
        )
    print(_write_page(arguments.runs, output, is_study=is_study[0]))
    return 0


def _is_study(name: str) -> bool:
    """Whether a study is named, not a run's folder or its results."""
    from turnppo_hf.environments.names import did_you_mean
    from turnppo_hf.evaluation.config_files import find_config, near_config
    from turnppo_hf.evaluation.results import RESULTS_FILE

    path, file = Path(name), find_config(name, "studies")
    if path.is_dir() or path.name == RESULTS_FILE:
        return False
    if file.is_file() and file.suffix in (".yaml", ".yml"):
        return True
    runs = [str(found.parent) for found in path.parent.glob(f"*/{RESULTS_FILE}")]
    raise ValueError(
        f"{name!r} is no folder of a run, no {RESULTS_FILE} and no study, so there is nothing to report. `turnppo "
        f"train` writes {RESULTS_FILE} at its end."
        f"{did_you_mean(path, runs) or near_config(name, 'studies')}"
    )


def _write_page(names: list[str], output: Path, *, is_study: bool) -> Path:
    from turnppo_hf.evaluation.config_files import find_config
    from turnppo_hf.evaluation.study.finished import FinishedRuns
    from turnppo_hf.evaluation.study.pages import write_html, write_markdown
    from turnppo_hf.evaluation.study.report import study_sections
    from turnppo_hf.evaluation.study.study_file import read_study

    is_html = output.suffix.lower() == ".html"
    if is_study:
        study = read_study(find_config(names[0], "studies"))
        title, finished = f"Study: {study.name.replace('_', ' ')}", FinishedRuns(study)
        sections = study_sections(
            study.blocks,
            finished.planned(),
            study.protocol,
            left_out=finished.left_out(),
            every_scale=is_html,
        )
    else:
        title, sections = "Runs", study_sections(*_read_runs(names), every_scale=is_html)
    command = shlex.join(["turnppo", "report", *names, "--output", str(output)])
    return (write_html if is_html else write_markdown)(title, sections, output, command)


def _read_runs(names: list[str]) -> tuple[tuple[Block, ...], list[StudyResult]]:
    """Return folders of runs as the cells of a block that makes no claim."""
    from turnppo_hf.evaluation.learning_curve import check_comparable
    from turnppo_hf.evaluation.results import RunResults
    from turnppo_hf.evaluation.study.plan import Block, PlannedRun
    from turnppo_hf.evaluation.study.result import StudyResult
    from turnppo_hf.evaluation.yaml_file import read_yaml_file
    from turnppo_hf.hub.run_record import TRAIN_CONFIG

    folders = [Path(name).parent if Path(name).suffix == ".json" else Path(name) for name in names]
    folders = list({folder.resolve(): folder for folder in folders}.values())  # a run that is named twice is one
    known = {str(folder): RunResults.from_file(folder) for folder in folders}
    check_comparable(known)
    results = []
    for folder in folders:
        found, config = known[str(folder)], folder / TRAIN_CONFIG
        settings = read_yaml_file(config) if config.exists() else {}
        run = PlannedRun("runs", {"run": str(folder)}, found.seed or 0, settings)
        seconds = None if found.duration_s is None else found.duration_s.total
        results.append(StudyResult.of_run(run, "runs", folder, wall_s=seconds))
    axes: dict[str, dict[str, dict[str, object]]] = {"run": {str(result.cell["run"]): {} for result in results}}
    seeds = tuple(dict.fromkeys(result.seed for result in results))
    return (Block("runs", "Held-out scores of the runs named.", axes, seeds, {}),), results
