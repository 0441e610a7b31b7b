"""What our environments call a state: a text that comes back when the state does, however it was reached."""

from __future__ import annotations

import pytest

from turnppo_hf.environments import SokobanTools, WebShopTools, check_environment, make_environment
from turnppo_hf.environments.conversation import as_conversation
from turnppo_hf.environments.integrations.tools import ToolEnvironment

ROOM = "######\n#    #\n#@ $.#\n#    #\n######"


def states_of(environment, answers, **options):
    """The states before each answer and after the last."""
    states = [environment.reset(seed=0, options=options or None)[1]["state"]]
    for answer in answers:
        states.append(environment.step(environment.unwrapped.completion(answer))[-1]["state"])
    return states


@pytest.mark.parametrize("action_format", ["tags", "bare"])
def test_sokobans_state_is_the_board_without_turn_and_actions_left(action_format):
    environment = make_environment("sokoban", action_format=action_format)
    start, up, back, nothing, pushed = states_of(environment, [[1], [2], [], [4, 4]], level=ROOM)
    assert start == back == nothing == ROOM
    assert len({start, up, pushed}) == 3


def test_webshops_state_is_the_page_without_the_turn():
    environment = make_environment("webshop", data="synthetic")
    start, found, back, nothing, again = states_of(
        environment, ["search[lamp]", "click[back to search]", "click[no such thing]", "search[lamp]"]
    )
    assert start == back == nothing and found == again and start != found
    assert not any("Turn " in state for state in (start, found))
    # an option that is chosen is part of the state
    shop = environment.unwrapped
    environment.reset(seed=0)
    environment.step(shop.completion("search[lamp]"))
    for found in shop.session.products_on_page:
        if found["options"]:
            break
    page = environment.step(shop.completion(f"click[{found['asin'].lower()}]"))[-1]
    option = next(name for name, group in shop.session.clickables().items() if group is not None)
    assert environment.step(shop.completion(f"click[{option}]"))[-1]["state"] != page["state"]


def call(name, **arguments):
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def opened(conversation, **task):
    """The state after the opening."""
    conversation.open(task, 0)
    return conversation.state


def answered(conversation, message):
    """The state after a response."""
    conversation.read(message)
    return conversation.state


def test_states_reach_the_conversations_of_tools():
    sokoban = ToolEnvironment(SokobanTools())
    assert opened(sokoban, level=ROOM) == ROOM
    moved = answered(sokoban, call("move", directions="Up"))
    assert moved != ROOM and answered(sokoban, call("move", directions="Down")) == ROOM
    shop = ToolEnvironment(WebShopTools(data="synthetic"))
    start = opened(shop, seed=3)
    assert "[button] Search [button_]" in start and answered(shop, call("search", query="lamp")) != start


def test_own_environment_of_tools_has_a_state_where_it_names_one():
    class Counter:
        def reset(self, **row):
            self.state = "0"

        def add(self):
            self.state = str(int(self.state) + 1)

    class Plain:
        def reset(self, **row): ...

        def state(self):
            """A tool of this name is no state."""

    named, plain = ToolEnvironment(Counter()), ToolEnvironment(Plain())
    assert opened(named) == "0" and answered(named, call("add")) == "1"
    assert opened(plain) is None and answered(plain, call("state")) is None
    assert opened(ToolEnvironment(), prompt="Hi") is None


def test_states_reach_the_conversation_of_a_text_environment():
    conversation = as_conversation(make_environment("sokoban", action_format="bare"))
    assert opened(conversation, level=ROOM) == ROOM
    moved = answered(conversation, {"role": "assistant", "content": "Up"})
    assert moved != ROOM and answered(conversation, {"role": "assistant", "content": "Down"}) == ROOM


def test_checker_reports_a_state_that_is_no_text():
    environment = make_environment("sokoban", action_format="bare")
    assert check_environment(environment, completions=["Up"]) == []
    step = environment.unwrapped.step
    environment.unwrapped.step = lambda action: (lambda reply: (*reply[:-1], {**reply[-1], "state": 3}))(step(action))
    problems = check_environment(environment, completions=["Up"])
    assert problems == ["`step` returned info['state'] = 3; it must be a str."]
