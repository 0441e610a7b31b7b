"""Chat: sampled ids are kept, only what the template adds is encoded, and a rewritten history is noticed."""

import threading

import pytest

from tests.helpers.tools import CHAT_TEMPLATES
from turnppo_hf.rollout.chat import Chat

THINK_STRIPPING = (
    "{%- for message in messages -%}<|{{ message.role }}|>"
    "{%- if message.role == 'assistant' and ')' in message.content and not loop.last -%}"
    "{{ message.content.split(')')[-1] }}{%- else -%}{{ message.content }}{%- endif -%}<|end|>"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
TRIMMING = (
    "{%- for message in messages -%}<|{{ message.role }}|>{{ message.content | trim }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@pytest.fixture
def chat(tiny_tokenizer):
    return Chat(tiny_tokenizer)


def ids_of(chat: Chat, text: str) -> tuple[int, ...]:
    return tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_chat_without_template_is_refused(tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template.*Set `tokenizer\.chat_template`"):
        Chat(tiny_tokenizer)


def test_start_appends_the_observation_to_a_user_message(chat):
    prompt = chat.start("#P", [{"role": "system", "content": "s"}, {"role": "user", "content": "Go "}])
    assert prompt.text == "<|system|>s<|end|><|user|>Go #P<|end|><|assistant|>"
    assert prompt.ids == ids_of(chat, prompt.text)
    assert chat.start("#P", [{"role": "system", "content": "s"}]).text.endswith("<|user|>#P<|end|><|assistant|>")


@pytest.mark.parametrize("template", ["gemma3", "qwen2_5_vl", "qwen2_5", "qwen3", "llama3"])
def test_no_template_drops_a_text_block(tiny_tokenizer, template):
    tiny_tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tiny_tokenizer.chat_template = (CHAT_TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    chat = Chat(tiny_tokenizer)
    texts = ("Be brief. ", "Be kind.", "You are in a maze. ", "It is dark. ")
    blocks = [{"type": "text", "text": text} for text in texts]
    prompt = [{"role": "system", "content": blocks[:2]}, {"role": "user", "content": blocks[2:]}]
    opened = chat.start("WALL AHEAD", prompt)
    plain = [{"role": "system", "content": "".join(texts[:2])}, {"role": "user", "content": "".join(texts[2:])}]
    assert opened.text == chat.start("WALL AHEAD", plain).text and opened.ids == chat.start("WALL AHEAD", plain).ids
    assert "You are in a maze. It is dark. WALL AHEAD" in opened.text
    assert opened.messages[1]["content"] == [*blocks[2:], {"type": "text", "text": "WALL AHEAD"}]  # as TRL opens it
    assert prompt[1]["content"] == blocks[2:]
    # and no later turn renders it otherwise
    following = chat.extend(opened, tuple(chat.tokenizer("Left").input_ids), "A DOOR")
    assert following.ids[: len(opened.ids)] == opened.ids and following.text.startswith(opened.text)


def test_extend_appends_only_what_the_template_adds(chat):
    first = chat.start("#P")
    completion = ids_of(chat, "Up<|end|>")
    second = chat.extend(first, completion, "P#")
    assert second.ids == first.ids + completion + ids_of(chat, "<|user|>P#<|end|><|assistant|>")
    assert second.ids == ids_of(chat, second.text)


def test_extend_after_a_cut_response_closes_the_turn_itself(chat):
    first = chat.start("#P")
    second = chat.extend(first, ids_of(chat, "Up"), "P#")
    assert second.ids == first.ids + ids_of(chat, "Up") + ids_of(chat, "<|end|><|user|>P#<|end|><|assistant|>")


def test_extend_keeps_ids_that_would_be_encoded_otherwise(chat):
    first = chat.start("#P")
    spelled = ids_of(chat, "U") + ids_of(chat, "p") + ids_of(chat, "<|end|>")
    assert spelled != ids_of(chat, "Up<|end|>")
    second = chat.extend(first, spelled, "P#")
    assert second.ids[: len(first.ids) + 3] == first.ids + spelled
    # control: encoding the conversation anew would train other tokens
    assert second.ids != ids_of(chat, second.text)


def test_extend_keeps_the_tokens_a_template_trims(tiny_tokenizer):
    tiny_tokenizer.chat_template = TRIMMING
    chat = Chat(tiny_tokenizer)
    first = chat.start("#P")
    completion = ids_of(chat, " Up\n<|end|>")
    second = chat.extend(first, completion, "P#")
    # and the end of turn, which was sampled, is not there twice
    assert second.ids == first.ids + completion + ids_of(chat, "<|user|>P#<|end|><|assistant|>")


def test_extend_forks_where_the_template_drops_reasoning(tiny_tokenizer):
    tiny_tokenizer.chat_template = THINK_STRIPPING
    chat = Chat(tiny_tokenizer)
    first = chat.start("#P")
    second = chat.extend(first, ids_of(chat, "(hm)Up<|end|>"), "P#")
    assert second.text == "<|user|>#P<|end|><|assistant|>Up<|end|><|user|>P#<|end|><|assistant|>"
    assert second.ids == ids_of(chat, second.text)
    # without reasoning nothing is dropped, and the row goes on
    plain = chat.extend(first, ids_of(chat, "Up<|end|>"), "P#")
    assert plain.ids[: len(first.ids)] == first.ids and len(plain.ids) == len(second.ids)


def test_empty_response_goes_on_where_the_template_ends_it_and_is_encoded_anew_where_something_stands_for_it(
    tiny_tokenizer,
):
    chat = Chat(tiny_tokenizer)
    first, empty = chat.start("#P"), ids_of(chat, "<|end|>")
    assert chat.extend(first, empty, "P#").ids == first.ids + empty + ids_of(chat, "<|user|>P#<|end|><|assistant|>")
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace(
        "{{ message.content }}", "{{ message.content or 'Up' }}"
    )
    second = Chat(tiny_tokenizer).extend(first, empty, "P#")
    assert second.text == "<|user|>#P<|end|><|assistant|>Up<|end|><|user|>P#<|end|><|assistant|>"
    assert second.ids == ids_of(chat, second.text)


def test_content_leaves_special_tokens_out(chat):
    assert chat.content(ids_of(chat, "Up Left<|end|>")) == "Up Left"


def test_template_kwargs_reach_the_template(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{{ mode }}{{ messages[0].content }}"
    assert Chat(tiny_tokenizer, {"mode": "X"}).start("P").text == "XP"


def test_template_that_never_ends_is_refused(tiny_tokenizer, monkeypatch):
    ends = threading.Event()
    monkeypatch.setattr("turnppo_hf.rollout.chat.MAX_TEMPLATE_S", 0.01)
    monkeypatch.setattr(type(tiny_tokenizer), "apply_chat_template", lambda *_, **__: ends.wait() and "")
    with pytest.raises(ValueError, match=r"did not end within 0.01 seconds.*no episode would begin.*Look for a loop"):
        Chat(tiny_tokenizer)
    ends.set()


def test_template_that_refuses_the_first_conversation_gets_its_error_where_it_is_used(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{{ raise_exception('no') if messages|length > 2 }}<|user|>"
    assert Chat(tiny_tokenizer).start("P").text == "<|user|>"
