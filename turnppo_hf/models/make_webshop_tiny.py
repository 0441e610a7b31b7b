"""Make the embedded starting actor of the generated shop: a small Llama with a word tokenizer, cloned from a script.

`python -m turnppo_hf.models.make_webshop_tiny` makes one like the packaged `turnppo_hf/models/webshop_tiny`, in about
an hour on two cores. It first learns to find a product's number in a list, then plays in other generated shops than
the one that is trained and judged in. It imitates many turns that are drawn at random: the actor can search,
click and buy, and reinforcement learning has the rest to do.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, concatenate_datasets
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Sequence, Split
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.webshop.catalogue import generate_world, words
from turnppo_hf.environments.webshop.environment import WebShop
from turnppo_hf.environments.webshop.world_file import write_world
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.models.demonstrations import make_demonstrations
from turnppo_hf.models.imitation import SPECIAL, chat_tokenizer, imitate, tiny_llama, write_actor
from turnppo_hf.models.make_sokoban_tiny import sft_arguments

TARGET = Path(__file__).parent / "webshop_tiny"
ENVIRONMENT_ID = "turnppo_hf/WebShop-v0"
ENVIRONMENT: dict[str, Any] = {"data": "synthetic", "action_format": "bare", "max_turns": 6, "split_by": "product"}
NUM_SHOPS, EPISODES_PER_SHOP, NUM_DRILLS = 100, 160, 60_000
PRODUCT_NUMBERS = [f"b0{number:08}" for number in range(1000)]  # the catalogue's, one token each
# a command's head, a product's whole number, words, digits in threes, line breaks, signs; spaces are dropped,
# and decoding puts one between any two tokens, which neither a search nor a click minds
_PIECES = Regex(r"(?:click|search)\[|b0{6}\d{3}\b|[a-z]+|\d{1,3}|\n|[^\sa-z\d]")


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """
    One token for each word.

    Args:
        texts (`Iterable[str]`): Pages; what occurs in them and in the words of the catalogue is the vocabulary.
    """
    splitter = Sequence([Split(Regex(r"[^\S\n]+"), behavior="removed"), Split(_PIECES, behavior="isolated")])
    numbers = [f"{number:0{width}}" for width in (1, 2, 3) for number in range(10**width)]
    found = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text.lower())}
    vocabulary = dict.fromkeys([*SPECIAL, *numbers, *PRODUCT_NUMBERS, *sorted(found | set(words()))])
    backend = Tokenizer(WordLevel({piece: number for number, piece in enumerate(vocabulary)}, unk_token=SPECIAL[0]))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = splitter
    return chat_tokenizer(backend, max_length=2048)


def prefer_copying(model: LlamaForCausalLM) -> None:
    """Let equal tokens attend to each other and leave attention as they entered: a random model that repeats words."""
    for layer in model.model.layers:
        attention = layer.self_attn
        for head in attention.q_proj.weight.data.split(attention.head_dim):
            torch.nn.init.orthogonal_(head, gain=0.7)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight)
        torch.nn.init.orthogonal_(attention.v_proj.weight, gain=0.7)
        attention.o_proj.weight.data.copy_(attention.v_proj.weight.T)


def make_drill(num_conversations: int, seed: int) -> Dataset:
    """
    List some products under numbers that are drawn anew, then ask for each by words of its name.

    Numbers that carry no meaning can only be read from the list. In whole episodes a number is read about once in 300
    tokens, from which so small a model does not learn to copy in an hour; here it is once in 30.

    Args:
        num_conversations (`int`): Lists of two to six products.
        seed (`int`): Of everything.
    """
    rng = random.Random(seed)
    names = [product["name"] for product in generate_world(seed=1).products.values()]
    conversations = []
    for _ in range(num_conversations):
        listed = rng.sample(names, rng.randint(2, 6))
        numbers = rng.sample(PRODUCT_NUMBERS, len(listed))
        commands = {name: f"click[{number}]" for name, number in zip(listed, numbers, strict=True)}
        messages, page = [], "\n".join(f"{name}: {command}" for name, command in commands.items()) + "\n"
        for name in rng.sample(listed, len(listed)):
            _, *others = name.split()
            question = " ".join(rng.sample(others, min(4, len(others))))
            messages += [
                {"role": "user", "content": page + question},
                {"role": "assistant", "content": commands[name]},
            ]
            page = ""
        conversations.append({"messages": messages})
    return Dataset.from_list(conversations)


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
    options = parser.parse_args()
    set_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        plays = make_plays(Path(folder), NUM_SHOPS, EPISODES_PER_SHOP, noise=0.25, seed=options.seed)
    tokenizer = make_tokenizer(message["content"] for messages in plays["messages"] for message in messages)
    model = tiny_llama(tokenizer)
    prefer_copying(model)
    for conversations, batch_size in ((make_drill(NUM_DRILLS, options.seed), 40), (plays, 32)):
        with tempfile.TemporaryDirectory() as scratch:
            args = sft_arguments(
                scratch,
                num_train_epochs=1,
                per_device_train_batch_size=batch_size,
                learning_rate=2e-3,
                adam_beta2=0.98,
                weight_decay=0.01,
                warmup_steps=30,
                train_sampling_strategy="group_by_length",  # pages differ in length: little padding
                assistant_only_loss=True,
                seed=options.seed,
            )
            model = cast(LlamaForCausalLM, imitate(model, tokenizer, conversations, args))
    limits = {"max_turns": None, "max_turn_length": 24, "max_completion_length": 1536}
    record = AgentRecord(limits=limits, environment=ENVIRONMENT_ID, environment_kwargs=ENVIRONMENT)
    write_actor(options.target, model.to(torch.bfloat16), tokenizer, record)


if __name__ == "__main__":
    main()
