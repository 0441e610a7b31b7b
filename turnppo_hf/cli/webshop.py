"""`turnppo webshop prepare`: WebShop's product files in, one world file out."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which files are read, and how goals and prices are drawn."""
    parser.add_argument("action", choices=["prepare"], help="read the files, write the world")
    parser.add_argument("source", help="folder with the files, one of its catalogue files, or dataset id on the Hub")
    parser.add_argument("--output", help="file to write (default: webshop.world)", default="webshop.world")
    parser.add_argument("--goals", choices=["synthetic", "human"], default="synthetic", help="(%(default)s)")
    parser.add_argument("--num_products", type=int, help="only the first ones (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of drawn prices and price caps (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Write the world file and print what it holds."""
    from tqdm import tqdm

    from turnppo_hf.environments.webshop.files import find_data, prepare_world

    with tqdm(unit=" products", disable=None) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        meta = prepare_world(
            find_data(arguments.source),
            arguments.output,
            goals=arguments.goals,
            num_products=arguments.num_products,
            seed=arguments.seed,
            progress=show,
        )
    print("\n".join(f"{name:<16}{value}" for name, value in meta.items()))
    print(f'Wrote {arguments.output}; play it with --environment_kwargs \'{{"data": "{arguments.output}"}}\'')
    return 0
