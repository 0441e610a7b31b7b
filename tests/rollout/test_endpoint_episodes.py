"""A model behind an endpoint: whatever it answers, or does not, is a turn or an error that is counted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.helpers.openai_server import FakeServer, fake_server, refuses
from turnppo_hf.environments import make_environment
from turnppo_hf.evaluation.outcome import Outcome
from turnppo_hf.trajectory import GenerationError, StopReason, Trajectory

pytest.importorskip("openai", reason='needs the client: pip install "turnppo-hf[openai]"')
from turnppo_hf.generation.endpoint import MAX_LOST, ChatEndpoint
from turnppo_hf.rollout import endpoint_episodes
from turnppo_hf.rollout.endpoint_episodes import play_over_endpoint

BARE = {"size": 5, "max_actions_per_turn": 2, "max_turns": 3, "max_actions": 6, "action_format": "bare"}
WORLD = partial(make_environment, "turnppo_hf/Sokoban-v0", **BARE)
LEVELS = ["######\n#@$ .#\n######", "######\n#.$@ #\n######", "######\n# @$.#\n######"]
TASKS = [{"seed": number, "level": level} for number, level in enumerate(LEVELS)]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with fake_server(lambda messages: "Left" if "_X" in messages[-1]["content"] else "Right") as running:
        yield running


def endpoint_of(server: FakeServer, behaviour: str, **settings: Any) -> tuple[ChatEndpoint, list[float]]:
    waits: list[float] = []
    given = {"max_tokens": 8, "timeout_s": 20.0, "retries": 1, "sleep": waits.append, **settings}
    return ChatEndpoint(server.url, behaviour, **given), waits


def play(server: FakeServer, behaviour: str, **settings: Any) -> tuple[list[Trajectory], dict[str, int]]:
    endpoint, _ = endpoint_of(server, behaviour, **settings)
    played = play_over_endpoint(endpoint, WORLD, TASKS, max_parallel_episodes=2)
    return played, endpoint.summary()


def test_good_answers_play_whole_conversations(server: FakeServer) -> None:
    server.bodies.clear()
    played, counts = play(server, "good")
    assert [item.stop_reason for item in played].count(StopReason.SOLVED) >= 1
    assert counts["requests"] == sum(len(item.turns) for item in played) and counts["failed"] == 0
    assert counts["completion_tokens"] == 2 * counts["requests"]
    longest = max((body["messages"] for body in server.bodies), key=len)
    assert [message["role"] for message in longest] == ["user", "assistant"] * (len(longest) // 2) + ["user"]
    assert {(body["max_tokens"], body["temperature"]) for body in server.bodies} == {(8, 0.0)}
    assert all("seed" not in body for body in server.bodies)


@pytest.mark.parametrize(("behaviour", "empty"), [("empty", True), ("null", True), ("prose", False)])
def test_no_answer_and_prose_are_invalid_turns(server: FakeServer, behaviour: str, empty: bool) -> None:
    played, counts = play(server, behaviour)
    outcomes = [Outcome.of(item) for item in played]
    assert [(item.turns, item.invalid_turns, item.stop_reason) for item in outcomes] == 3 * [(3, 3, "task_budget")]
    assert counts["empty"] == (9 if empty else 0) and counts["failed"] == 0


def test_content_in_parts_is_read(server: FakeServer) -> None:
    played, _ = play(server, "parts")
    assert played[0].turns[0].completion == "Up Up"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("broken", "status 500: .*out of memory"),
        ("html", "no completion"),
        ("garbled", "Error"),
        ("choiceless", "no completion"),
        ("wrong", "no text"),
        ("cut", "Error"),
        ("gone", "Error"),
    ],
)
def test_endpoint_that_fails_makes_episodes_errors(server: FakeServer, behaviour: str, words: str) -> None:
    played, counts = play(server, behaviour)
    for item in played:
        assert item.stop_reason is StopReason.ERROR and item.turns == ()
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(item.error)
    assert counts["requests"] == 6 and counts["repeated"] == 3 and counts["failed"] == 6


@pytest.mark.parametrize("behaviour", ["silent", "trickle"])
def test_endpoint_that_is_slow_makes_episodes_errors(server: FakeServer, behaviour: str) -> None:
    played, counts = play(server, behaviour, timeout_s=0.5, retries=0)
    assert all("no answer within 0.5 s" in str(item.error) for item in played)
    assert counts["failed"] == counts["requests"] == 3


def test_busy_endpoint_is_asked_again_after_the_time_it_names(server: FakeServer) -> None:
    server.asked.clear()
    endpoint, waits = endpoint_of(server, "busy")
    played = play_over_endpoint(endpoint, WORLD, TASKS[:1])
    assert played[0].error is None and played[0].turns
    assert waits == [7.0] * len(played[0].turns) and endpoint.counts.repeated == len(waits)


def test_some_episodes_that_fail_do_not_stop_the_others(server: FakeServer) -> None:
    odd = [refuses(WORLD().reset(seed=0, options={"level": level})[0]) for level in LEVELS]
    assert len(set(odd)) == 2  # control: the server refuses some and not all
    played, counts = play(server, "half")
    assert [item.stop_reason is StopReason.ERROR for item in played] == [bool(item) for item in odd]
    assert counts["failed"] == sum(odd)


def test_guard_of_requests_holds_and_the_rest_are_errors(server: FakeServer) -> None:
    server.bodies.clear()
    played, counts = play(server, "empty", max_requests=4)
    assert counts["requests"] == len(server.bodies) == 4
    lost = [item for item in played if item.stop_reason is StopReason.ERROR]
    assert lost and all("no request is left of --max_requests 4" in str(item.error) for item in lost)


def test_guard_counts_repeated_requests(server: FakeServer) -> None:
    server.bodies.clear()
    play(server, "broken", max_requests=3, retries=5)
    assert len(server.bodies) == 3


def test_full_context_cuts_the_episode(server: FakeServer) -> None:
    played, _ = play(server, "short")
    assert {item.stop_reason for item in played if item.stop_reason is not StopReason.SOLVED} == {StopReason.OVERLONG}


def test_other_name_of_the_token_limit_is_found(server: FakeServer) -> None:
    played, counts = play(server, "renamed", retries=0)
    assert all(item.error is None for item in played)
    assert "max_completion_tokens" in server.bodies[-1] and counts["failed"] == 0


@pytest.mark.parametrize(("behaviour", "words"), [("denied", "does not accept the key"), ("unknown", "or model")])
def test_endpoint_that_refuses_everything_is_one_error(
    server: FakeServer, behaviour: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-no-known-form-0123")
    with pytest.raises(GenerationError, match=words) as refused:
        play(server, behaviour)
    assert "0123" not in str(refused.value)
    assert server.keys[-1] == "Bearer a-key-of-no-known-form-0123"


def test_endpoint_that_is_not_there_is_one_error() -> None:
    with fake_server() as gone:
        pass
    endpoint = ChatEndpoint(gone.url, "m", max_tokens=8, retries=0)
    with pytest.raises(GenerationError, match=r"has answered none of \d+ requests"):
        play_over_endpoint(endpoint, WORLD, [{"seed": 0, "level": LEVELS[0]}] * (MAX_LOST + 5))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "127.0.0.1:80"}, "is no address"),
        ({"model": " "}, "has no name"),
        ({"timeout_s": 0.0}, "--request_timeout"),
        ({"timeout_s": float("nan")}, "--request_timeout"),
        ({"retries": -1}, "--retries"),
        ({"max_requests": 0}, "--max_requests"),
    ],
)
def test_settings_that_allow_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    given = {"url": "http://127.0.0.1/v1", "model": "m", "max_tokens": 8, **settings}
    with pytest.raises(ValueError, match=words):
        ChatEndpoint(given.pop("url"), given.pop("model"), **given)


def test_environment_that_fails_fails_its_episode_only(server: FakeServer) -> None:
    endpoint, _ = endpoint_of(server, "good")
    tasks = [{"seed": 0, "level": "nonsense"}, TASKS[0]]
    bad, good = play_over_endpoint(endpoint, WORLD, tasks)
    assert bad.stop_reason is StopReason.ERROR and good.error is None and good.turns


def test_seed_is_sent_where_answers_are_sampled(server: FakeServer) -> None:
    server.bodies.clear()
    play(server, "good", temperature=0.7)
    assert all(isinstance(body["seed"], int) and body["temperature"] == 0.7 for body in server.bodies)


def test_turns_of_neighbouring_episodes_have_seeds_of_their_own():
    seeds = [endpoint_episodes._sampling_seed(seed, turn) for seed in range(40) for turn in range(25)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
    assert endpoint_episodes._sampling_seed(3, 1) == endpoint_episodes._sampling_seed(3, 1)
