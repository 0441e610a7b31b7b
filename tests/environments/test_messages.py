"""How a conversation opens: the prompt's messages, the observation after them, in text or in text blocks."""

from __future__ import annotations

import pytest

from turnppo_hf.environments.messages import open_conversation, text_of


def block(text):
    return {"type": "text", "text": text}


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("prompt", "observation", "expected"),
    [
        ("", "P#", [user("P#")]),
        ((), "P#", [user("P#")]),
        (None, "P#", [user("P#")]),
        ("Go ", "P#", [user("Go P#")]),
        ([system("s")], "P#", [system("s"), user("P#")]),
        ([system("s"), user("Go ")], "P#", [system("s"), user("Go P#")]),
        ([user([block("Go ")])], "P#", [user([block("Go "), block("P#")])]),
        ([user("Go ")], [block("P#")], [user([block("Go "), block("P#")])]),
        ([system([block("s")])], [block("P#")], [system([block("s")]), user([block("P#")])]),
        ("Go ", None, [user("Go ")]),
    ],
)
def test_observation_follows_the_prompt(prompt, observation, expected):
    assert open_conversation(observation, prompt) == expected


def test_observation_of_an_environment_class_extends_the_last_message_whatever_its_role():
    assert open_conversation("P#", [system("s")], extend_any_role=True) == [system("sP#")]
    assert open_conversation("P#", None, extend_any_role=True) == [user("P#")]
    assert open_conversation(None, None, extend_any_role=True) == [user("")]


def test_prompt_of_blocks_stays_as_it_is():
    blocks = [block("Go ")]
    prompt = [user(blocks)]
    open_conversation("P#", prompt)
    assert prompt == [user(blocks)] and blocks == [block("Go ")]


@pytest.mark.parametrize("part", [{"type": "image", "image": "x"}, {"type": "image_url"}, {"text": "x"}, "x", None])
def test_block_that_is_not_text_is_refused(part):
    with pytest.raises(TypeError, match=r"The task's `prompt` holds .*reads text only.*Write text, or blocks"):
        open_conversation("P#", [system([part]), user("Go ")])
    with pytest.raises(TypeError, match=r"reset\(\) returned .*reads text only"):
        open_conversation([block("P#"), part], "Go ")


@pytest.mark.parametrize("observation", [3, {"type": "text", "text": "x"}])
def test_observation_that_is_no_text_is_refused(observation):
    with pytest.raises(TypeError, match=r"reset\(\) returned (int|dict), but the model reads text only"):
        open_conversation(observation, "Go ")


def test_text_of_joins_blocks():
    assert [text_of(content) for content in ("a", [block("a"), block("b")], None, [1])] == ["a", "ab", "", "[1]"]
