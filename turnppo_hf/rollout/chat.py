"""
Messages in, token ids out, and sampled ids back to messages. Sampled ids are never encoded again; a history that the
template renders differently is encoded anew.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema

from turnppo_hf.environments.messages import Message, as_messages, is_text_blocks, open_conversation, text_of
from turnppo_hf.rollout.context import FULL, read_context, visible_messages
from turnppo_hf.rollout.control_tokens import ControlTokens, Rendered

MAX_PARSED_LENGTH = 1 << 16  # characters of a response with tool calls
MAX_TEMPLATE_S = 60.0  # of the first rendering
MAX_PARSED_TAGS = 100  # of the template's own, such as `<tool_call>`

_TAG = re.compile(r"</?[\w|:-]{1,40}>|\[/?[A-Z_]{2,40}\]")
_KEPT_RESPONSES = 4096  # texts of sampled responses


@dataclass(frozen=True)
class Prompt:
    """What the model reads before one response."""

    ids: tuple[int, ...]
    text: str  # the rendered conversation that `ids` stand for, special tokens included
    messages: tuple[Message, ...]  # the whole conversation, also where the model reads a part of it
    tools: tuple[Callable[..., Any], ...] | None = None  # that the model may call; None: responses are plain text
    head: tuple[Message, ...] = ()  # the task's own messages, which every prompt opens with


class Chat:
    """
    Renders a conversation through the tokenizer's chat template, turn by turn.

    `extend` keeps the ids that were read and sampled and appends only what the template adds after them. Where the
    template renders the past differently, as templates do that drop earlier reasoning, the whole prompt is encoded
    anew: it is what the model would read in use, and the batch starts a new row there. So it is where `context` leaves
    out earlier turns.

    Content in text blocks is rendered as the text of its blocks, so that no template drops a part of it. Control
    tokens in content are spelled, so that no page and no player can speak as another role.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        template_kwargs (`Mapping`, *optional*):
            Passed to the template, such as `{"enable_thinking": False}`.
        context (`str`, *optional*, defaults to `"full"`):
            What a prompt holds of earlier turns, see [`~turnppo_hf.rollout.context.read_context`].

    Raises:
        `ValueError`: the tokenizer has no chat template, or there is no such context.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any] | None = None,
        context: str = FULL,
    ) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template, so a conversation cannot be "
                "rendered. Set `tokenizer.chat_template`, or take an instruction-tuned model."
            )
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        self._newest = read_context(context)
        self._decode = lru_cache(_KEPT_RESPONSES)(self._decode_anew)  # short answers are few, and each is read often
        self._control = ControlTokens(tokenizer)
        self._tool_template: str | None = None  # None is the tokenizer's own
        self._check_end()

    def offer_tools(self, tools: Iterable[Callable[..., Any]]) -> None:
        """
        Prepare for conversations with tool calls, as `GRPOTrainer` does.

        The tokenizer gets the schema that parses its template's tool calls. Conversations with tools are rendered by
        TRL's training variant of the template where the template itself rewrites earlier turns.

        Args:
            tools (`Iterable[Callable]`): All that may be offered; each must have type hints and a docstring.

        Raises:
            `ValueError`: the template has no place for tools, its tool calls cannot be parsed, a tool cannot be
            described to the model, or the context leaves out the calls that results answer.
        """
        if self._newest is not None:
            raise ValueError(
                "`context` leaves out earlier turns, but the result of a tool answers a call of the turn before, and "
                'would stand in the prompt without it. Set `context` to "full", or take an environment that is played '
                "by text."
            )
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
        return self.open(open_conversation(observation, messages), head=as_messages(messages))

    def open(
        self,
        messages: Sequence[Message],
        tools: Sequence[Callable[..., Any]] | None = None,
        head: Sequence[Message] = (),
    ) -> Prompt:
        """
        Open a conversation, or read the end of one.

        Args:
            messages (`Sequence[dict]`): The conversation, as it is.
            tools (`Sequence[Callable]`, *optional*): With these, even none, its responses are parsed.
            head (`Sequence[dict]`, *optional*): The task's own messages among them.
        """
        rendered = self._render(visible_messages(messages, head, self._newest), tools or ())
        offered = None if tools is None else tuple(tools)
        return Prompt(tuple(self._control.encode(rendered)), rendered.text, tuple(messages), offered, tuple(head))

    def parse(self, prompt: Prompt, completion_ids: Sequence[int]) -> Message:
        """
        Read a response as an assistant's message, with `tool_calls` where it calls tools.

        One that is longer, or holds more of the template's tags, than `MAX_PARSED_LENGTH` and `MAX_PARSED_TAGS` is
        text without calls: the parsers of some templates take time that grows with a power of their number. So is one
        that nests deeper than the parser reads.
        """
        if prompt.tools is None or not self._parses:
            return {"role": "assistant", "content": self.content(completion_ids)}
        written = self.tokenizer.decode(completion_ids, skip_special_tokens=False)
        if len(written) > MAX_PARSED_LENGTH or sum(map(written.count, self._tags)) > MAX_PARSED_TAGS:
            return {"role": "assistant", "content": self.content(completion_ids)}
        from turnppo_hf import _trl

        read: dict[str, Any] = {"prefix": list(prompt.ids), "tools": list(prompt.tools)}
        try:
            return dict(_trl.parse_response(self.tokenizer, list(completion_ids), **read))
        except RecursionError:  # of the parser, where the model opened a thousand brackets
            return {"role": "assistant", "content": self.content(completion_ids)}

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
        text = prompt.text + self._decode(tuple(completion_ids), False) + rest.text
        ids = (*prompt.ids, *completion_ids, *self._control.encode(rest))
        return Prompt(ids, text, (*prompt.messages, answer, *replies), prompt.tools, prompt.head)

    def extend(self, prompt: Prompt, completion_ids: Sequence[int], observation: str) -> Prompt:
        """Append the model's response, as it was sampled, and the environment's next observation."""
        content = self.content(completion_ids)
        answer = {"role": "assistant", "content": content}
        messages = (*prompt.messages, answer, {"role": "user", "content": observation})
        visible = visible_messages(messages, prompt.head, self._newest)
        rendered = self._render(visible)
        text = rendered.text
        if len(visible) < len(messages):
            return Prompt(tuple(self._control.encode(rendered)), text, messages, head=prompt.head)
        written = self._decode(tuple(completion_ids), False)
        ends = completion_ids[-1] in self.tokenizer.all_special_ids
        closing = self._decode((completion_ids[-1],), False) if ends else ""
        # templates that trim a message's edges keep its tokens all the same: only the rest is appended
        for past in (written, content, content.strip()):
            if text.startswith(prompt.text + past):
                rest = rendered.after(len(prompt.text + past))
                if past != written:
                    if not past and not rest.text.startswith(closing):  # something stands for the empty response
                        continue
                    rest = rest.removeprefix(closing)  # the end of turn was sampled already
                ids = (*prompt.ids, *completion_ids, *self._control.encode(rest))
                return Prompt(ids, text, messages, head=prompt.head)
        return Prompt(tuple(self._control.encode(rendered)), text, messages, head=prompt.head)

    def content(self, completion_ids: Sequence[int]) -> str:
        """The response as text, without special tokens: what the environment reads."""
        return self._decode(tuple(completion_ids), True)

    @property
    def _tags(self) -> set[str]:
        return set(_TAG.findall(str(self.tokenizer.chat_template)))

    @property
    def _parses(self) -> bool:
        return any(getattr(self.tokenizer, f"response_{kind}", None) is not None for kind in ("template", "schema"))

    def _check_end(self) -> None:
        """Render a short conversation in a thread that is left behind where the template never ends."""
        say = [{"role": role, "content": "-"} for role in ("user", "assistant", "user")]

        def render() -> None:
            with suppress(Exception):  # a conversation that the template refuses; a real one gets its own error
                self._render(say)

        thread = threading.Thread(target=render, daemon=True)
        thread.start()
        thread.join(MAX_TEMPLATE_S)
        if thread.is_alive():
            raise ValueError(
                f"The chat template of {self.tokenizer.name_or_path!r} did not end within {MAX_TEMPLATE_S:g} seconds "
                "on three short messages, so no episode would begin. Look for a loop in it that has no end, or set "
                "`tokenizer.chat_template` to another one."
            )

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

    def _decode_anew(self, ids: tuple[int, ...], skips_special_tokens: bool) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skips_special_tokens))
