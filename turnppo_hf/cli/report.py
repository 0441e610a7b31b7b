"""`turnppo report`: finished runs, or a study, in; a picture of learning curves, an HTML page or Markdown out."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnppo_hf.evaluation.study.plan import Block
    from turnppo_hf.evaluation.study.result import StudyResult

_PAGES = (".md", ".html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which runs are drawn, and where to."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a run, its results.json, or one study: a YAML file, or a packaged one by its name",
    )
    parser.add_argument(
        "--metric", choices=["success", "return"], default="success", help="of a picture (%(default)s)"
    )
    parser.add_argument(
        "--output",
        default="learning_curve.png",
        help="a picture, or a page: .png, .svg, .pdf, .html, .md (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw or write, and print the path."""
    output = Path(arguments.output)
    is_study = [_is_study(name) for name in arguments.runs]
    if output.suffix not in _PAGES:
        from turnppo_hf.evaluation.learning_curve import learning_curve

        if any(is_study):
            raise ValueError(
                f"{arguments.output!r} is one picture, and a study needs several. Pass --output X.html or X.md."
            )
        print(learning_curve(arguments.runs, output, arguments.metric))
        return 0
    if any(is_study) and len(is_study) > 1:
        raise ValueError("A page reports one study, or runs. Name the study's file alone.")
    print(_write_page(arguments.runs, output, is_study=is_study[0]))
    return 0


def _is_study(name: str) -> bool:
    from turnppo_hf.cli.config_files import find_config

    return not Path(name).is_dir() and find_config(name, "studies").suffix in (".yaml", ".yml")


def _write_page(names: list[str], output: Path, *, is_study: bool) -> Path:
    from turnppo_hf.cli.config_files import find_config
    from turnppo_hf.evaluation.study.pages import write_html, write_markdown
    from turnppo_hf.evaluation.study.plan import read_study
    from turnppo_hf.evaluation.study.report import study_sections
    from turnppo_hf.evaluation.study.result import read_results

    if is_study:
        study = read_study(find_config(names[0], "studies"))
        blocks, results, protocol = study.blocks, read_results(study.results), study.protocol
        title = f"Study: {study.name.replace('_', ' ')}"
    else:
        blocks, results, protocol, title = *_read_runs(names), "", "Runs"
    sections = study_sections(blocks, results, protocol, every_scale=output.suffix == ".html")
    command = shlex.join(["turnppo", "report", *names, "--output", str(output)])
    write = write_html if output.suffix == ".html" else write_markdown
    return write(title, sections, output, command)


def _read_runs(names: list[str]) -> tuple[tuple[Block, ...], list[StudyResult]]:
    """Return folders of runs as the cells of a block that makes no claim."""
    import yaml

    from turnppo_hf.evaluation.results import RunResults
    from turnppo_hf.evaluation.study.plan import Block, PlannedRun
    from turnppo_hf.evaluation.study.result import StudyResult
    from turnppo_hf.hub.run_record import TRAIN_CONFIG

    results = []
    for name in names:
        folder = Path(name).parent if Path(name).suffix == ".json" else Path(name)
        known = RunResults.from_file(folder)
        config = folder / TRAIN_CONFIG
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
        run = PlannedRun("runs", {"run": str(folder)}, known.seed or 0, settings)
        seconds = 0.0 if known.duration_s is None else known.duration_s.total
        results.append(StudyResult.of_run(run, "runs", folder, wall_s=seconds, cpu_s=seconds))
    axes: dict[str, dict[str, dict[str, object]]] = {"run": {str(result.cell["run"]): {} for result in results}}
    seeds = tuple(dict.fromkeys(result.seed for result in results))
    return (Block("runs", "Held-out scores of the runs named.", axes, seeds, {}),), results
