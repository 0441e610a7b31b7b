"""Make the embedded starting actor of the generated shop: a small Llama with a word tokenizer, cloned from a script.

`python -m turnppo_hf.models.make_webshop_tiny` writes `turnppo_hf/models/webshop_tiny` again, in some minutes on two
cores. It sees no product of the split by product's test side. The imitation stops early and sees many turns drawn at
random: the actor knows how to search, click and buy, and reinforcement learning has the rest to do.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Sequence, Split
from transformers import PreTrainedTokenizerFast, set_seed

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.webshop import WebShop
from turnppo_hf.environments.webshop_catalogue import words
from turnppo_hf.models.imitation import SPECIAL, chat_tokenizer, imitate, make_demonstrations, tiny_llama, write_actor

TARGET = Path(__file__).parent / "webshop_tiny"
ENVIRONMENT_ID = "turnppo_hf/WebShop-v0"
ENVIRONMENT: dict[str, Any] = {"data": "synthetic", "action_format": "bare", "max_turns": 6, "split_by": "product"}
# a command's head, the start of a product's number, words, digits in pairs, line breaks, signs; spaces are dropped,
# and decoding puts one between any two tokens, which neither a search nor a click minds
_PIECES = Regex(r"(?:click|search)\[|b0(?=\d{8})|[a-z]+|\d\d?|\n|[^\sa-z\d]")


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """
    One token for each word.

    Args:
        texts (`Iterable[str]`): Pages; what occurs in them and in the words of the catalogue is the vocabulary.
    """
    splitter = Sequence([Split(Regex(r"[^\S\n]+"), behavior="removed"), Split(_PIECES, behavior="isolated")])
    numbers = [f"{number:0{width}}" for width in (1, 2) for number in range(10**width)]
    found = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text.lower())}
    vocabulary = dict.fromkeys([*SPECIAL, *numbers, *sorted(found | set(words()))])
    backend = Tokenizer(WordLevel({piece: number for number, piece in enumerate(vocabulary)}, unk_token=SPECIAL[0]))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = splitter
    return chat_tokenizer(backend, max_length=2048)


def main() -> None:
    """Write tokenizer and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    options = parser.parse_args()
    set_seed(options.seed)
    environment = cast(WebShop, make_environment(ENVIRONMENT_ID, split="train", **ENVIRONMENT).unwrapped)
    phases = ((0.3, 400, 1.5e-3),)  # noise, steps, learning rate
    plays = [
        make_demonstrations(environment, environment.expert_completions, 20 * steps, noise, seed)
        for seed, (noise, steps, _) in enumerate(phases, start=options.seed)
    ]
    conversations = itertools.chain.from_iterable(play["messages"] for play in plays)
    tokenizer = make_tokenizer(message["content"] for messages in conversations for message in messages)
    model = tiny_llama(tokenizer)
    for seed, (play, (_, steps, learning_rate)) in enumerate(zip(plays, phases, strict=True), start=options.seed):
        model = imitate(model, tokenizer, play, steps=steps, learning_rate=learning_rate, seed=seed)
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
