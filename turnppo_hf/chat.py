"""Messages in, token ids out; what the sampler wrote is never encoded again, and a rewritten history is noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What the model reads before one response."""

    ids: tuple[int, ...]
    text: str  # the rendered conversation that `ids` stand for, special tokens included
    messages: tuple[Message, ...]


def open_conversation(observation: str, messages: str | Sequence[Message] = ()) -> list[Message]:
    """Return the messages that a first response answers; the arguments are those of `Chat.start`."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    opening = [dict(message) for message in messages]
    if opening and opening[-1]["role"] == "user":
        opening[-1]["content"] += observation
    else:
        opening.append({"role": "user", "content": observation})
    return opening


class Chat:
    """
    Renders a conversation through the tokenizer's chat template, turn by turn.

    `extend` keeps the ids that were read and sampled and appends only what the template adds after them. Where the
    template renders the past differently, as templates do that drop earlier reasoning, the whole prompt is encoded
    anew: it is what the model would read in use, and the batch starts a new row there.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        template_kwargs (`Mapping`, *optional*):
            Passed to the template, such as `{"enable_thinking": False}`.

    Raises:
        `ValueError`: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template, so a conversation cannot be "
                "rendered. Set `tokenizer.chat_template`, or take an instruction-tuned model."
            )
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})

    def start(self, observation: str, messages: str | Sequence[Message] = ()) -> Prompt:
        """
        Open a conversation.

        Args:
            observation (`str`): The environment's first text. It is appended to the last message where that is the
                user's (as TRL does with `prompt` and `reset`), else it is a user message of its own.
            messages (`str` or `Sequence[dict]`, *optional*): The task's own `prompt`, such as a system message; a
                text is the user's.
        """
        opening = open_conversation(observation, messages)
        text = self._render(opening)
        return Prompt(tuple(self._encode(text)), text, tuple(opening))

    def extend(self, prompt: Prompt, completion_ids: Sequence[int], observation: str) -> Prompt:
        """Append the model's response, as it was sampled, and the environment's next observation."""
        written = self.tokenizer.decode(completion_ids, skip_special_tokens=False)
        content = self.content(completion_ids)
        answer = {"role": "assistant", "content": content}
        messages = (*prompt.messages, answer, {"role": "user", "content": observation})
        text = self._render(list(messages))
        # templates that trim a message's edges keep its tokens all the same: only the rest is appended
        for past in (written, content, content.strip()):
            if text.startswith(prompt.text + past):
                rest = text[len(prompt.text + past) :]
                if past != written and completion_ids[-1] in self.tokenizer.all_special_ids:
                    # the end of turn was sampled already
                    rest = rest.removeprefix(self.tokenizer.decode(completion_ids[-1:], skip_special_tokens=False))
                return Prompt((*prompt.ids, *completion_ids, *self._encode(rest)), text, messages)
        return Prompt(tuple(self._encode(text)), text, messages)

    def content(self, completion_ids: Sequence[int]) -> str:
        """The response as text, without special tokens: what the environment reads."""
        return str(self.tokenizer.decode(completion_ids, skip_special_tokens=True))

    def _render(self, messages: list[Message]) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.template_kwargs
            )
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
