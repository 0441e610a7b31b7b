"""
Messages in, token ids out, and sampled ids back to messages. Sampled ids are never encoded again; a history that the
template renders differently is encoded anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema

from turnppo_hf.environments.messages import Message, is_text_blocks, open_conversation, text_of
from turnppo_hf.rollout.control_tokens import ControlTokens, Rendered

MAX_PARSED_LENGTH = 1 << 16  # characters of a response with tool calls
MAX_PARSED_TAGS = 100  # of the template's own, such as `<tool_call>`

_TAG = re.compile(r"</?[\w|:-]{1,40}>|\[/?[A-Z_]{2,40}\]")


@dataclass(frozen=True)
class Prompt:
    """What the model reads before one response."""

    ids: tuple[int, ...]
    text: str  # the rendered conversation that `ids` stand for, special tokens included
    messages: tuple[Message, ...]
    tools: tuple[Callable[..., Any], ...] | None = None  # that the model may call; None: responses are plain text


class Chat:
    """
    Renders a conversation through the tokenizer's chat template, turn by turn.

    `extend` keeps the ids that were read and sampled and appends only what the template adds after them. Where the
    template renders the past differently, as templates do that drop earlier reasoning, the whole prompt is encoded
    anew: it is what the model would read in use, and the batch starts a new row there.

    Content in text blocks is rendered as the text of its blocks, so that no template drops a part of it. Control
    tokens in content are spelled, so that no page and no player can speak as another role.

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
        self._control = ControlTokens(tokenizer)
        self._tool_template: str | None = None  # None is the tokenizer's own

    def offer_tools(self, tools: Iterable[Callable[..., Any]]) -> None:
        """
        Prepare for conversations with tool calls, as `GRPOTrainer` does.

        The tokenizer gets the schema that parses its template's tool calls. Conversations with tools are rendered by
        TRL's training variant of the template where the template itself rewrites earlier turns.

        Args:
            tools (`Iterable[Callable]`): All that may be offered; each must have type hints and a docstring.

        Raises:
            `ValueError`: the template has no place for tools, its tool calls cannot be parsed, or a tool cannot be
            described to the model.
        """
        from turnppo_hf import _trl  # loads the trainers of TRL, which playing needs not

        for tool in tools:
            try:
                get_json_schema(tool)
            except Exception as error:
                raise ValueError(
                    f"The tool {tool.__name__!r} cannot be described to the model: {error} Give it type hints and a "
                    "docstring with a section `Args:` that explains every parameter."
                ) from error
        if not _trl.supports_tool_calling(self.tokenizer):
            raise ValueError(
                f"The chat template of {self.tokenizer.name_or_path!r} has no place for tool calls and their results, "
                "so the model could neither call a tool nor read its answer. Take a model with a tool-calling "
                "template, or set `chat_template` to one that TRL supports, such as Qwen3's."
            )
        if not self._parses:
            _trl.add_response_schema(self.tokenizer)
        if not _trl.is_chat_template_prefix_preserving(self.tokenizer):
            self._tool_template = _trl.get_training_chat_template(self.tokenizer)

    def start(self, observation: str, messages: str | Sequence[Message] = ()) -> Prompt:
        """
        Open a conversation.

        Args:
            observation (`str`): The environment's first text. It is appended to the last message where that is the
                user's (as TRL does with `prompt` and `reset`), else it is a user message of its own.
            messages (`str` or `Sequence[dict]`, *optional*): The task's own `prompt`, such as a system message; a
                text is the user's.
        """
        return self.open(open_conversation(observation, messages))

    def open(self, messages: Sequence[Message], tools: Sequence[Callable[..., Any]] | None = None) -> Prompt:
        """Open a conversation with its messages as they are; with `tools`, even none, its responses are parsed."""
        rendered = self._render(list(messages), tools or ())
        ids = tuple(self._control.encode(rendered))
        return Prompt(ids, rendered.text, tuple(messages), None if tools is None else tuple(tools))

    def parse(self, prompt: Prompt, completion_ids: Sequence[int]) -> Message:
        """
        Read a response as an assistant's message, with `tool_calls` where it calls tools.

        One that is longer, or holds more of the template's tags, than `MAX_PARSED_LENGTH` and `MAX_PARSED_TAGS` is
        text without calls: the parsers of some templates take time that grows with a power of their number.
        """
        if prompt.tools is None or not self._parses:
            return {"role": "assistant", "content": self.content(completion_ids)}
        written = self.tokenizer.decode(completion_ids, skip_special_tokens=False)
        if len(written) > MAX_PARSED_LENGTH or sum(map(written.count, self._tags)) > MAX_PARSED_TAGS:
            return {"role": "assistant", "content": self.content(completion_ids)}
        from turnppo_hf import _trl

        tools: list[Any] = list(prompt.tools)
        return dict(_trl.parse_response(self.tokenizer, list(completion_ids), prefix=list(prompt.ids), tools=tools))

    def follow(
        self, prompt: Prompt, completion_ids: Sequence[int], answer: Message, replies: Sequence[Message]
    ) -> Prompt:
        """
        Append the model's response, as it was sampled, and what answered it.

        Args:
            prompt (`Prompt`): What the response answers.
            completion_ids (`Sequence[int]`): The response, as it was sampled.
            answer (`dict`): The same as `parse` read it.
            replies (`Sequence[dict]`): Results of tools, or one message of the user.
        """
        if replies[0]["role"] == "tool":
            return self.reply(prompt, completion_ids, answer, replies)
        [reply] = replies
        return self.extend(prompt, completion_ids, reply["content"])

    def reply(
        self, prompt: Prompt, completion_ids: Sequence[int], answer: Message, replies: Sequence[Message]
    ) -> Prompt:
        """
        Append the model's response, as it was sampled, and what its tools returned.

        Args:
            prompt (`Prompt`): What the response answers.
            completion_ids (`Sequence[int]`): The response, as it was sampled.
            answer (`dict`): The same as `parse` read it.
            replies (`Sequence[dict]`): Messages of the role `tool`, at least one.

        Raises:
            `ValueError`: the template writes an assistant's turn differently once tools have answered.
        """
        # some templates name the call in the header of its result
        call = {"type": "function", "function": {"name": replies[0]["name"], "arguments": {}}}
        asked: list[Message] = [
            {"role": "user", "content": "-"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        before = self._render(asked, (), self._tool_template, add_generation_prompt=False).text
        after = self._render([*asked, *replies], (), self._tool_template)
        end = str(self.tokenizer.eos_token)
        closing = end if end in before else ""
        if closing:
            before = before[: before.rindex(end)]
        if not after.text.startswith(before):
            raise ValueError(
                "The chat template renders a tool call differently once its result follows, so the result cannot be "
                "appended to what was sampled. Set `chat_template` to a training template of TRL."
            )
        rest = after.after(len(before))
        if completion_ids[-1] in self.tokenizer.all_special_ids:
            rest = rest.removeprefix(closing)  # it was sampled already
        text = prompt.text + self.tokenizer.decode(completion_ids, skip_special_tokens=False) + rest.text
        ids = (*prompt.ids, *completion_ids, *self._control.encode(rest))
        return Prompt(ids, text, (*prompt.messages, answer, *replies), prompt.tools)

    def extend(self, prompt: Prompt, completion_ids: Sequence[int], observation: str) -> Prompt:
        """Append the model's response, as it was sampled, and the environment's next observation."""
        written = self.tokenizer.decode(completion_ids, skip_special_tokens=False)
        content = self.content(completion_ids)
        answer = {"role": "assistant", "content": content}
        messages = (*prompt.messages, answer, {"role": "user", "content": observation})
        rendered = self._render(list(messages))
        text = rendered.text
        # templates that trim a message's edges keep its tokens all the same: only the rest is appended
        for past in (written, content, content.strip()):
            if text.startswith(prompt.text + past):
                rest = rendered.after(len(prompt.text + past))
                if past != written and completion_ids[-1] in self.tokenizer.all_special_ids:
                    # the end of turn was sampled already
                    rest = rest.removeprefix(self.tokenizer.decode(completion_ids[-1:], skip_special_tokens=False))
                return Prompt((*prompt.ids, *completion_ids, *self._control.encode(rest)), text, messages)
        return Prompt(tuple(self._control.encode(rendered)), text, messages)

    def content(self, completion_ids: Sequence[int]) -> str:
        """The response as text, without special tokens: what the environment reads."""
        return str(self.tokenizer.decode(completion_ids, skip_special_tokens=True))

    @property
    def _tags(self) -> set[str]:
        return set(_TAG.findall(str(self.tokenizer.chat_template)))

    @property
    def _parses(self) -> bool:
        return any(getattr(self.tokenizer, f"response_{kind}", None) is not None for kind in ("template", "schema"))

    def _render(
        self,
        messages: list[Message],
        tools: Sequence[Callable[..., Any]] = (),
        template: str | None = None,
        add_generation_prompt: bool = True,
    ) -> Rendered:
        # many templates print blocks as nothing, or as Python prints a list
        messages = [
            {**message, "content": text_of(message["content"])} if is_text_blocks(message.get("content")) else message
            for message in messages
        ]
        extra: dict[str, Any] = {"tools": list(tools)} if tools else {}
        if template or (tools and self._tool_template):
            extra["chat_template"] = template or self._tool_template
        arguments = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            **extra,
            **self.template_kwargs,
        }
        return self._control.render(
            messages, lambda given: str(self.tokenizer.apply_chat_template(list(given), **arguments))
        )
