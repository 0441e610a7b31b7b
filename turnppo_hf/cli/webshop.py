"""`turnppo webshop prepare`: WebShop's product files in, one world file out."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def _webshop_prepare(arguments: argparse.Namespace) -> int:
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
