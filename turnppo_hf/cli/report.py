"""`turnppo report`: folders of finished runs in, a picture of their learning curves out."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which runs are drawn, and where to."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its results.json")
    parser.add_argument("--metric", choices=["success", "return"], default="success", help="(%(default)s)")
    parser.add_argument("--output", default="learning_curve.png", help="picture to write (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Draw and print the path of the picture."""
    from turnppo_hf.evaluation.learning_curve import learning_curve

    print(learning_curve(arguments.runs, arguments.output, arguments.metric))
    return 0
