"""`turnppo panel`: a panel's name in, a folder with frozen tasks out."""

from __future__ import annotations

import argparse

from turnppo_hf.cli.common import hide_loading_bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which panel is made, and of what."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="such as sokoban_6x6; --list prints all")
    parser.add_argument("--output", metavar="FOLDER", help="where to (default: panels/NAME)")
    parser.add_argument("--data", help="folder of WebShop's own files, for webshop_1000")
    parser.add_argument("--workers", type=int, default=1, help="processes that play the references (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the names and what they stand for")


def run(arguments: argparse.Namespace) -> int:
    """Write the panel and print its checksum and reference players."""
    import os

    from turnppo_hf.environments.webshop.environment import DATA_VARIABLE
    from turnppo_hf.evaluation.panels.catalog import PANELS, find_spec
    from turnppo_hf.evaluation.summary import comparison_table
    from turnppo_hf.hub.panel.folder import write_panel

    if arguments.name is None and (arguments.output or arguments.data):
        raise ValueError(
            "No panel is named, so none would be made. Name one; `turnppo panel --list` prints all names."
        )
    if arguments.list or arguments.name is None:
        width = max(map(len, PANELS))
        print("\n".join(f"{name.ljust(width)}  {spec.about}" for name, spec in PANELS.items()))
        return 0
    if arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {arguments.workers}: no process would play the tasks.")
    hide_loading_bars()
    data = arguments.data
    if find_spec(arguments.name).num_products is not None:
        data = data or os.environ.get(DATA_VARIABLE)
    folder = arguments.output or f"panels/{arguments.name}"
    panel = write_panel(arguments.name, folder, data=data, workers=arguments.workers)
    print(f"{panel.manifest.num_tasks} tasks of {arguments.name} in {folder}: {panel.manifest.about}")
    print(f"protocol checksum {panel.manifest.protocol_checksum}\n")
    print(comparison_table(panel.players))
    print(f"\nScore a model on it: turnppo evaluate MODEL --panel {folder}")
    return 0
