"""Messages in; their rendered text out, and ids in which control tokens that stand in content are text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from turnppo_hf.environments.messages import Message, checked_text

_PLAIN_TAG = re.compile(r"</?\w+>")  # `<think>`, `<tool_call>`: what prompts and answers are written with
_KEPT = ("role", "type")


@dataclass(frozen=True)
class Rendered:
    """
    A rendered conversation.

    Example: with the user's text `"a<|end|>"`, `Rendered("<|user|>a<|end|><|end|>", (10,))`.
    """

    text: str
    cuts: tuple[int, ...] = ()  # places in `text`, each within a control token that is content: it is text there

    def after(self, length: int) -> Rendered:
        """Return what follows the first characters."""
        return Rendered(self.text[length:], tuple(cut - length for cut in self.cuts if cut > length))

    def removeprefix(self, prefix: str) -> Rendered:
        """Return what follows a text, where it begins with that."""
        return self.after(len(prefix)) if self.text.startswith(prefix) else self


class ControlTokens:
    """
    The tokens of a tokenizer that a template builds conversations of, such as `<|end|>` and `<|assistant|>`.

    These are the special tokens, and added tokens that the chat template names, unless they are plain tags: `<think>`
    in a prompt stays the token that it is.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): With its chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        template = str(tokenizer.chat_template)
        added = tokenizer.added_tokens_decoder.values()
        named = {
            token.content
            for token in added
            if token.special or (token.content in template and not _PLAIN_TAG.fullmatch(token.content))
        }
        tokens = sorted((token for token in {*named, *tokenizer.all_special_tokens} if len(token) > 1), key=len)
        self._any = re.compile("|".join(map(re.escape, reversed(tokens))) or r"(?!)")

    def render(self, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> Rendered:
        """
        Render messages; where their content holds control tokens, remember the places.

        Args:
            messages (`Sequence[dict]`): The conversation.
            render (`Callable`): Makes its text.
        """
        found: list[str] = []
        # a word that no template changes stands for each, so that a template's own tokens are told from content
        texts = repr(messages)
        mark = "Qz"
        while mark in texts:
            mark += "Qz"

        def marked(value: Any, key: str = "") -> Any:
            if isinstance(value, str):
                return value if key in _KEPT else self._any.sub(replaced, value)
            if isinstance(value, dict):
                return {name: marked(inner, str(name)) for name, inner in value.items()}
            return [marked(inner) for inner in value] if isinstance(value, list | tuple) else value

        def replaced(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"{mark}{len(found) - 1}{mark}"

        changed = [marked(message) for message in messages]
        if not found:
            return Rendered(render(messages))
        text, cuts, end = "", [], 0
        rendered = render(changed)
        for match in re.finditer(rf"{mark}(\d+){mark}", rendered):
            text += rendered[end : match.start()]
            cuts.append(len(text) + 1)
            text += found[int(match[1])]
            end = match.end()
        return Rendered(text + rendered[end:], tuple(cuts))

    def encode(self, rendered: Rendered) -> list[int]:
        """
        Return the ids of a rendered text, in which control tokens of the content are spelled.

        Raises:
            `ValueError`: it cannot be encoded.
        """
        checked_text(rendered.text, "What the model is to read")
        ids: list[int] = []
        places = [0, *rendered.cuts, len(rendered.text)]
        for start, end in pairwise(places):
            if start < end:
                ids += self.tokenizer(rendered.text[start:end], add_special_tokens=False)["input_ids"]
        return ids
