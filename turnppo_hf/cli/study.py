"""`turnppo study`: a grid of runs in a file in; every run trained, and one small result a run, out."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which study, and how much of it."""
    parser.add_argument("file", metavar="FILE", help="YAML of a study, or a packaged one by its name, such as doorkey")
    parser.add_argument("--workers", type=int, help="runs at a time, one thread each (default: one a core)")
    parser.add_argument("--only", metavar="TEXT", help="only the runs that have TEXT in their name")
    parser.add_argument("--minutes", type=float, help="start no run after so many minutes (default: no limit)")
    parser.add_argument("--list", action="store_true", help="print the runs with what is known of each, and stop")


def run(arguments: argparse.Namespace) -> int:
    """Return 0 where every chosen run is finished, 1 where some failed or are left, 130 after Ctrl-C."""
    from turnppo_hf.cli.study_runs import StudyRunner
    from turnppo_hf.evaluation.config_files import find_config, near_config
    from turnppo_hf.evaluation.study.study_file import read_study

    file = find_config(arguments.file, "studies")
    if not file.is_file():
        raise ValueError(
            f"The study {arguments.file!r} is no file, so there are no runs to make."
            + near_config(arguments.file, "studies")
        )
    study = read_study(file)
    runner = StudyRunner(study, workers=arguments.workers, only=arguments.only, minutes=arguments.minutes)
    runner.check()
    if arguments.list:
        print(runner.overview())
        return 0
    try:
        return 0 if runner.run() else 1
    except KeyboardInterrupt:
        print("interrupted: finished runs are kept, and the same command goes on with the others", flush=True)
        return 130
