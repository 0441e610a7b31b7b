"""A tokenizer that calls tools as Qwen3 does, and environments of TRL's protocol, for tests of conversations."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import trl

from tests.helpers import tiny
from tests.helpers.scripted import ScriptedGenerator
from turnppo_hf.generation.base import Completion

CHAT_TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def calling_tokenizer(tokenizer, template="qwen3"):
    """Make the tiny tokenizer speak one of TRL's chat templates, with the special tokens of ChatML."""
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = (CHAT_TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return tokenizer


def calling_actor(tokenizer, **changes):
    """A random network that reads it, with room for tool schemas."""
    sizes = {"max_position_embeddings": 4096, "initializer_range": 0.02, "tie_word_embeddings": True}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return tiny.tiny_actor(vocab_size=len(tokenizer), **{**sizes, **ids, **changes})


def call(name, **arguments):
    """What Qwen3 writes to call a tool; the odd spaces must survive, as sampled ids do."""
    return f'<tool_call>\n{{"name":  "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def answer_to(tokenizer, prompt_ids, answers):
    """The ids of a script's next answer: as many were given as assistant's turns stand in the prompt."""
    turns = tokenizer.decode(prompt_ids).count("<|im_start|>assistant")
    text = answers[min(turns, len(answers)) - 1] + tokenizer.eos_token
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class AnsweringGenerator(ScriptedGenerator):
    """Answers by what is read, so that it follows an episode whatever its number."""

    def submit(self, episode, prompt_ids, *, max_new_tokens, seed):
        self.prompts.append((episode, tuple(prompt_ids)))
        ids = answer_to(self.tokenizer, prompt_ids, self.answers)
        cut = tuple(ids[:max_new_tokens])
        reason = "stop" if len(cut) == len(ids) else "length"
        self.pending.append(Completion(episode, cut, tuple(-0.5 for _ in cut), reason))


class Ladder:
    """Four rungs; `done` at the top. `climb` is synchronous, `look` is not."""

    def reset(self, **row):
        self.row, self.height, self.done = row, 0, False
        return "Climb."

    def climb(self, rungs: int) -> str:
        """
        Go up.

        Args:
            rungs: How many rungs.

        Returns:
            The height.
        """
        if self.done:
            raise ValueError("You are up.")
        self.height += rungs
        self.done = self.height >= 4
        return f"height {self.height}"

    async def look(self) -> str:
        """
        Look down.

        Returns:
            What is seen.
        """
        return f"ground {self.height} below"

    def get_reward(self) -> float:
        return float(self.height)


class Stairs(Ladder):
    """The same game, where each step pays."""

    def reset(self, **row):
        self.rewards = []
        return super().reset(**row)

    def climb(self, rungs: int) -> str:
        """
        Go up.

        Args:
            rungs: How many rungs.

        Returns:
            The height.
        """
        self.rewards += [0.5 * rungs, None]
        return super().climb(rungs)


class Pit:
    """Another environment, whose observation goes after the prompt and whose reward is asynchronous."""

    def reset(self, prompt, depth, **row):
        self.depth = depth
        return f" It is {depth} deep."

    def dig(self, much: bool = False) -> int:
        """
        Dig.

        Args:
            much: Whether with force.
        """
        self.depth += 2 if much else 1
        return self.depth

    async def get_reward(self):
        return self.depth / 10


def add(a: int, b: int) -> int:
    """
    Add.

    Args:
        a: One number.
        b: Another.
    """
    return a + b


async def wait(seconds: float) -> list:
    """
    Wait.

    Args:
        seconds: How long.
    """
    await asyncio.sleep(seconds)
    return [("waited", seconds)]
