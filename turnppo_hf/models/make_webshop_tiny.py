"""Make the embedded starting actor of the generated shop: a small Llama with a word tokenizer, cloned from a script.

`python -m turnppo_hf.models.make_webshop_tiny` writes `turnppo_hf/models/webshop_tiny` again, in half an hour on two
cores. It plays in other generated shops than the one that is trained and judged in. It imitates many turns that
are drawn at random: the actor knows how to search, click and buy, and reinforcement learning has the rest to do.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, concatenate_datasets
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Sequence, Split
from transformers import PreTrainedTokenizerFast, set_seed

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.webshop import WebShop
from turnppo_hf.environments.webshop_catalogue import generate_world, words
from turnppo_hf.environments.webshop_world_file import write_world
from turnppo_hf.models.imitation import SPECIAL, chat_tokenizer, imitate, make_demonstrations, tiny_llama, write_actor

TARGET = Path(__file__).parent / "webshop_tiny"
ENVIRONMENT_ID = "turnppo_hf/WebShop-v0"
ENVIRONMENT: dict[str, Any] = {"data": "synthetic", "action_format": "bare", "max_turns": 6, "split_by": "product"}
NUM_SHOPS, BATCH_SIZE = 100, 16
# a command's head, the start of a product's number, words, digits in threes, line breaks, signs; spaces are dropped,
# and decoding puts one between any two tokens, which neither a search nor a click minds
_PIECES = Regex(r"(?:click|search)\[|b0(?=\d{8})|[a-z]+|\d{1,3}|\n|[^\sa-z\d]")


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """
    One token for each word.

    Args:
        texts (`Iterable[str]`): Pages; what occurs in them and in the words of the catalogue is the vocabulary.
    """
    splitter = Sequence([Split(Regex(r"[^\S\n]+"), behavior="removed"), Split(_PIECES, behavior="isolated")])
    numbers = [f"{number:0{width}}" for width in (1, 2, 3) for number in range(10**width)]
    found = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text.lower())}
    vocabulary = dict.fromkeys([*SPECIAL, *numbers, *sorted(found | set(words()))])
    backend = Tokenizer(WordLevel({piece: number for number, piece in enumerate(vocabulary)}, unk_token=SPECIAL[0]))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = splitter
    return chat_tokenizer(backend, max_length=2048)


def make_plays(folder: Path, num_shops: int, num_episodes: int, noise: float, seed: int) -> Dataset:
    """
    Play in many generated shops.

    An actor that saw one shop would learn its products by heart, instead of reading their numbers from the page.

    Args:
        folder (`Path`): Holds the world files meanwhile.
        num_shops (`int`): Catalogues, with the seeds 1, 2, ...; the packaged one has the seed 0 and is not among them.
        num_episodes (`int`): Conversations of each shop.
        noise (`float`): Share of turns drawn at random.
        seed (`int`): Of the wishes and the noise.
    """
    plays = []
    for shop in range(1, num_shops + 1):
        file = folder / f"{shop}.world"
        write_world(generate_world(seed=shop), file)
        made = make_environment(ENVIRONMENT_ID, **{**ENVIRONMENT, "data": str(file)})
        environment = cast(WebShop, made.unwrapped)
        expert = environment.expert_completions
        plays.append(make_demonstrations(environment, expert, num_episodes, noise, seed=seed + shop))
        file.unlink()
    return concatenate_datasets(plays).shuffle(seed=seed)


def main() -> None:
    """Write tokenizer and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--steps", type=int, default=1200, help="of the optimizer")
    options = parser.parse_args()
    set_seed(options.seed)
    episodes = options.steps * BATCH_SIZE // NUM_SHOPS
    with tempfile.TemporaryDirectory() as folder:
        plays = make_plays(Path(folder), NUM_SHOPS, episodes, noise=0.25, seed=options.seed)
    tokenizer = make_tokenizer(message["content"] for messages in plays["messages"] for message in messages)
    model = imitate(
        tiny_llama(tokenizer),
        tokenizer,
        plays,
        steps=options.steps,
        batch_size=BATCH_SIZE,
        learning_rate=2e-3,
        seed=options.seed,
    )
    write_actor(
        options.target,
        model,
        tokenizer,
        environment=ENVIRONMENT_ID,
        environment_kwargs=ENVIRONMENT,
        max_turn_length=24,
        max_completion_length=1536,
    )


if __name__ == "__main__":
    main()
