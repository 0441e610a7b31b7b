"""Calls with a limit on their time: interrupted in the main thread, abandoned elsewhere; a process always ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from transformers import TrainerState

from turnppo_hf.environments import time_limit
from turnppo_hf.environments.exits import describe_error
from turnppo_hf.environments.integrations.tools import ToolEnvironment, run_together
from turnppo_hf.environments.threads import DaemonThreads
from turnppo_hf.environments.time_limit import TimedOutError, TimeIsUp, call_within
from turnppo_hf.rollout.rewards import Rewards

LIMIT_S = 0.2


def in_thread(call):
    """Call in another thread than the main one; return what was returned or raised."""
    found = []

    def run():
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    return found[0]


def stubborn():
    """Catch everything once, as a loop with a bare except does."""
    try:
        threading.Event().wait()
    except BaseException:
        threading.Event().wait()


@pytest.mark.parametrize("hang", [lambda: threading.Event().wait(), lambda: time.sleep(3600), stubborn])
def test_call_that_hangs_is_interrupted_in_the_main_thread(monkeypatch, hang):
    monkeypatch.setattr(time_limit, "_AGAIN_S", 0.1)
    with pytest.raises(TimedOutError, match=r"timed out: no answer within 0\.2 s \(`environment_timeout_s`\).*Raise"):
        call_within(hang, LIMIT_S, "It")
    assert call_within(lambda: 7, LIMIT_S, "It") == 7


def test_busy_call_is_interrupted_in_the_main_thread():
    def spin():
        while True:
            pass

    with pytest.raises(TimedOutError):
        call_within(spin, LIMIT_S, "It")


def test_call_that_hangs_is_abandoned_in_another_thread():
    gate = threading.Event()
    try:
        assert isinstance(in_thread(lambda: call_within(gate.wait, LIMIT_S, "It")), TimedOutError)
    finally:
        gate.set()
    assert in_thread(lambda: call_within(lambda: 7, LIMIT_S, "It")) == 7
    error = in_thread(lambda: call_within(lambda: int("x"), LIMIT_S, "It"))
    assert isinstance(error, ValueError)


def test_own_errors_and_interrupts_pass():
    def raiser(error):
        raise error

    for error in (TimeoutError("own"), KeyboardInterrupt(), SystemExit(3), TimeIsUp()):
        with pytest.raises(type(error)):
            call_within(lambda error=error: raiser(error), 20.0, "It")


def test_limit_within_a_limit_is_the_one_that_counts():
    def slow():
        return call_within(lambda: threading.Event().wait(), LIMIT_S, "inner")

    with pytest.raises(TimedOutError, match=r"within 0\.2 s"):
        call_within(slow, 20.0, "outer")
    assert call_within(lambda: call_within(lambda: 3, 20.0, "inner"), 20.0, "outer") == 3


def test_what_takes_a_minute_is_named_once(monkeypatch, caplog):
    monkeypatch.setattr(time_limit, "PATIENCE_S", 0.05)
    call_within(lambda: time.sleep(0.2), 20.0, "The environment 'e' (seed 7)")
    in_thread(lambda: call_within(lambda: time.sleep(0.2), 20.0, "The environment 'f' (seed 8)"))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" has not answered")[0] for line in lines] == [
        "The environment 'e' (seed 7)",
        "The environment 'f' (seed 8)",
    ]


class Hanging:
    """Its tools hang, each in its own way."""

    def reset(self, **row):
        return "Go."

    def wait(self) -> str:
        """Wait."""
        threading.Event().wait()

    async def hold(self) -> str:
        """Hold the event loop."""
        threading.Event().wait(3.0)

    async def sleep(self) -> str:
        """Wait without holding it."""
        await asyncio.sleep(3600)


@pytest.mark.parametrize("tool", ["wait", "sleep", "hold"])
def test_tool_that_hangs_is_no_result_but_an_error(tool):
    played = ToolEnvironment(Hanging())
    played.open({"prompt": "Go."}, 0)
    calls = [{"type": "function", "function": {"name": tool, "arguments": {}}}]
    with pytest.raises(TimedOutError):
        call_within(lambda: played.read({"role": "assistant", "content": "", "tool_calls": calls}), LIMIT_S, "It")

    async def alive():
        return 1

    assert call_within(lambda: run_together([alive()]), 20.0, "It") == [1]


def test_reward_function_that_hangs_for_all_is_given_up(monkeypatch):
    from tests.environments.test_exits import finished

    monkeypatch.setattr("turnppo_hf.rollout.rewards._completion_ids", lambda _: [])

    def judge(**_):
        threading.Event().wait()

    [trajectory] = Rewards(judge, state=TrainerState, timeout_s=LIMIT_S)(finished())
    assert "'judge' raised TimedOutError: timed out" in trajectory.error


def test_threads_that_hang_are_replaced_and_counted_again():
    threads, gate, meeting = DaemonThreads(1, "test"), threading.Event(), threading.Event()
    hung = threads.submit(gate.wait)
    waiting = threads.submit(lambda: 7)
    assert not waiting.done()
    threads.abandon(hung)
    assert waiting.result(20) == 7
    gate.set()
    hung.result(20)
    hung.add_done_callback(lambda _: meeting.set())
    assert meeting.wait(20) and threads.most == 1
    threads.shutdown()


def test_error_without_a_text_is_described():
    class Mute(Exception):
        def __str__(self):
            raise ZeroDivisionError

    assert describe_error(Mute()) == "Mute: its text cannot be made (ZeroDivisionError)"
    assert describe_error(ValueError("caf\ud83d")) == "ValueError: caf\\ud83d"


ENDS = """
import threading
from turnppo_hf.environments.threads import DaemonThreads
from turnppo_hf.environments.time_limit import TimedOutError, call_within
threads = DaemonThreads(4, "test")
begun = threading.Event()
threads.submit(lambda: begun.set() or threading.Event().wait())
assert begun.wait(20)
try:
    call_within(lambda: threading.Event().wait(), 0.1, "It")
except TimedOutError:
    print("ended", flush=True)
"""


def test_process_ends_while_an_environment_hangs():
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "ended\n" and not done.stderr


def test_threads_are_used_again_and_end_with_their_pool():
    threads = DaemonThreads(64, "counted")
    for _ in range(50):
        for future in [threads.submit(time.sleep, 0) for _ in range(3)]:
            future.result(20)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("counted")]
    assert 1 <= len(mine) <= 6  # three at work, and three that have answered and are not idle yet
    del threads
    for thread in mine:
        thread.join(20)
        assert not thread.is_alive()
