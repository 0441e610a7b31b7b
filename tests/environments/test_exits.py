"""An exit in code of others is that episode's error; Ctrl-C passes."""

from __future__ import annotations

import asyncio
import threading

import pytest
from transformers import TrainerState

from tests.helpers.scripted import CountingEnvironment, ScriptedEnvironment, ScriptedGenerator
from tests.helpers.tools import AnsweringGenerator, Ladder, call, calling_tokenizer
from turnppo_hf.environments import check_environment
from turnppo_hf.environments.exits import exits_as_errors
from turnppo_hf.environments.factory import open_environments
from turnppo_hf.environments.integrations.tools import ToolEnvironment, run_together
from turnppo_hf.environments.pool import EnvironmentPool
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.episode import EpisodePlan, FinishedEpisode, Limits
from turnppo_hf.rollout.rewards import Rewards
from turnppo_hf.rollout.rollout_func import play_with
from turnppo_hf.rollout.worker import RolloutWorker, collect_trajectories
from turnppo_hf.trajectory import StopReason, Trajectory

GO_ON = ("next", -0.1, False, False, {})
SOLVED = ("end", 1.0, True, False, {"solved": True})


class Halt(BaseException):
    """Of a library's own, as pytest and trio have one."""


EXITS = [SystemExit(0), SystemExit(), SystemExit("bye"), GeneratorExit(), asyncio.CancelledError(), Halt("now")]


def raiser(error):
    def raise_it(*_, **__):
        raise error

    return raise_it


def play(tokenizer, *environments):
    built = iter(environments)
    pool = EnvironmentPool({"e": lambda: next(built)()})
    plans = [EpisodePlan({}, "e", seed=number) for number in range(len(environments))]
    return collect_trajectories(plans, pool, ScriptedGenerator(tokenizer, ["Up"]), Chat(tokenizer), Limits())


@pytest.mark.parametrize("error", EXITS, ids=repr)
@pytest.mark.parametrize("place", ["factory", "reset", "step", "close"])
def test_exit_of_an_environment_ends_its_own_episode(tiny_tokenizer, error, place):
    replies = [GO_ON, RuntimeError("boom") if place == "close" else SOLVED]

    def broken():
        environment = ScriptedEnvironment(replies)
        if place == "factory":
            raise error
        setattr(environment, place, raiser(error))
        return environment

    trajectories = play(tiny_tokenizer, broken, lambda: ScriptedEnvironment([GO_ON, SOLVED]))
    assert sorted(item.stop_reason for item in trajectories) == [StopReason.ERROR, StopReason.SOLVED]
    [failed] = [item for item in trajectories if item.stop_reason is StopReason.ERROR]
    assert type(error).__name__ in failed.error and ("boom" in failed.error) is (place == "close")


@pytest.mark.parametrize("place", ["factory", "reset", "step", "close"])
def test_interrupt_of_an_environment_passes(tiny_tokenizer, place):
    def broken():
        environment = ScriptedEnvironment([RuntimeError("boom")])
        if place == "factory":
            raise KeyboardInterrupt
        setattr(environment, place, raiser(KeyboardInterrupt()))
        return environment

    with pytest.raises(KeyboardInterrupt):
        play(tiny_tokenizer, broken)


def test_environment_whose_step_was_interrupted_is_closed_and_the_others_are_used_again(tiny_tokenizer):
    broken, sound = ScriptedEnvironment([]), ScriptedEnvironment([GO_ON])
    broken.step = raiser(KeyboardInterrupt())
    built = iter([broken, sound])
    pool = EnvironmentPool({"e": lambda: next(built)})
    generator = ScriptedGenerator(tiny_tokenizer, ["Up"])
    worker = RolloutWorker(pool, generator, Chat(tiny_tokenizer), Limits())
    worker.start([EpisodePlan({}, "e", seed=number) for number in range(2)])
    with pytest.raises(KeyboardInterrupt):
        worker.play()
    assert worker.give_up() == 2
    worker.close()
    assert broken.closed and not sound.closed and pool._idle["e"][0].environment is sound
    pool.close()
    assert sound.closed


def test_interrupt_waits_for_no_environment_and_none_comes_back_to_a_closed_pool(tiny_tokenizer):
    gate, inside = threading.Event(), threading.Event()

    class Hanging(CountingEnvironment):
        closed = threading.Event()

        def step(self, action):
            inside.set()
            assert gate.wait(20)
            return super().step(action)

        def close(self):
            self.closed.set()

    pool = EnvironmentPool({"e": Hanging})
    worker = RolloutWorker(pool, ScriptedGenerator(tiny_tokenizer, ["Up"]), Chat(tiny_tokenizer), Limits())
    worker.start([EpisodePlan({}, "e", seed=0)])
    worker._wake.wait = raiser(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        worker.play()
    assert inside.wait(20)
    worker.close()  # it would not return if it waited
    pool.close()
    assert worker.num_left == 0 and not Hanging.closed.is_set()
    gate.set()
    assert Hanging.closed.wait(20)


class Exiting(Ladder):
    """Its tools leave in every way there is."""

    def climb(self, rungs: int) -> str:
        """
        Go up.

        Args:
            rungs: How many rungs.
        """
        exec("import sys; sys.exit(0)")

    async def look(self) -> str:
        """Look down."""
        raise SystemExit(0)

    async def ask(self) -> str:
        """Ask in a task of its own."""
        return await asyncio.ensure_future(self.look())

    async def stop(self) -> str:
        """Cancel itself."""
        raise asyncio.CancelledError


def tool_message(*names):
    calls = [
        {"type": "function", "function": {"name": n, "arguments": {"rungs": 1} if n == "climb" else {}}} for n in names
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def test_exit_of_a_tool_is_its_result_and_the_event_loop_lives_on():
    played = ToolEnvironment(Exiting())
    played.open({"prompt": "Go."}, 0)
    reply = played.read(tool_message("climb", "look", "ask", "stop"))
    texts = {item["name"]: item["content"] for item in reply.messages}
    assert texts["climb"] == texts["look"] == texts["ask"] == "{'error': 'SystemExit: 0'}"
    assert texts["stop"] == "{'error': 'CancelledError'}"
    assert reply.info["tool_failures"] == 4

    async def alive():
        await asyncio.sleep(0)
        return 1

    assert run_together([alive()]) == [1]


def test_interrupt_of_a_tool_passes_and_the_event_loop_lives_on():
    async def interrupted():
        raise KeyboardInterrupt

    async def alive():
        return 1

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_together([interrupted(), alive()])
    assert run_together([alive()]) == [1]


def test_coroutines_are_cancelled_where_the_waiting_is_interrupted(monkeypatch):
    ended, begun = threading.Event(), threading.Event()

    async def long():
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    def interrupt(self, timeout=None):
        assert begun.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_together([long()])
    assert ended.wait(20)


@pytest.mark.parametrize("kind", ["tool", "turn reward", "final reward"])
def test_exit_in_an_episode_of_tools(tiny_tokenizer, kind):
    class Odd(Exiting if kind == "tool" else Ladder):
        if kind == "turn reward":

            async def _turn_reward(self):
                raise SystemExit(0)

        def get_reward(self):
            return raiser(SystemExit(0))() if kind == "final reward" else 1.0

    pool, names, _ = open_environments(Odd)
    chat = Chat(calling_tokenizer(tiny_tokenizer), {"enable_thinking": False})
    chat.offer_tools(pool.tools)
    worker = RolloutWorker(pool, AnsweringGenerator(chat.tokenizer, [call("climb", rungs=4), "Done."]), chat, Limits())
    worker.start([EpisodePlan({"prompt": [{"role": "user", "content": "Go."}]}, names[0], seed=0)])
    [trajectory] = Rewards(state=TrainerState)(worker.play()[0])
    if kind == "tool":
        assert trajectory.stop_reason is StopReason.TERMINATED and trajectory.turns[1].observation.count("SystemExit")
    else:
        assert trajectory.stop_reason is StopReason.ERROR and "SystemExit: 0" in trajectory.error
    worker.close()


def finished():
    [trajectory] = [Trajectory({"prompt": "Go."}, "e", 0, (), StopReason.SOLVED)]
    return [FinishedEpisode(trajectory, ToolEnvironment(), ({"role": "user", "content": "Go."},), ({"content": ""},))]


@pytest.mark.parametrize("kind", ["function", "coroutine", "iterator"])
def test_exit_of_a_reward_function_fails_the_episodes_that_it_has_no_reward_for(monkeypatch, kind):
    monkeypatch.setattr("turnppo_hf.rollout.rewards._completion_ids", lambda _: [])

    def judge(**_):
        raise SystemExit(0)

    async def judge_later(**_):
        raise SystemExit(0)

    def judge_in_parts(**_):
        yield judge()

    function = {"function": judge, "coroutine": judge_later, "iterator": judge_in_parts}[kind]
    [failed] = Rewards(function, state=TrainerState)(finished())
    assert failed.stop_reason is StopReason.ERROR
    assert f"reward function {function.__name__!r} raised" in failed.error and "SystemExit: 0" in failed.error
    with pytest.raises(KeyboardInterrupt):
        Rewards(raiser(KeyboardInterrupt()), state=TrainerState)(finished())


def test_exit_of_a_rollout_function_is_an_error_of_the_run(tiny_tokenizer):
    with pytest.raises(RuntimeError, match="`rollout_func` raised SystemExit: 0"):
        play_with(raiser(SystemExit(0)), [EpisodePlan({"prompt": "Go."}, "e", seed=0)], Chat(tiny_tokenizer))


@pytest.mark.parametrize("error", EXITS, ids=repr)
def test_exit_of_a_factory_is_an_error_before_the_training(error):
    with pytest.raises(RuntimeError, match=f"The environment factory of .* raised {type(error).__name__}.*Raise an"):
        open_environments(raiser(error))


def test_pool_closes_all_and_reports_what_one_raises(caplog):
    environments = [ScriptedEnvironment([]) for _ in range(3)]
    environments[2].close = raiser(SystemExit(0))
    environments[1].close = raiser(OSError("gone"))
    built = iter(environments)
    pool = EnvironmentPool({"e": lambda: next(built)})
    for taken in [pool.take("e") for _ in range(3)]:
        pool.give_back("e", taken)
    pool.close()
    assert environments[0].closed and "OSError: gone" in caplog.text and "SystemExit: 0" in caplog.text


@pytest.mark.parametrize("place", ["reset", "step", "after the end"])
def test_checker_reports_an_exit(place):
    class Odd(CountingEnvironment):
        def reset(self, **kwargs):
            return raiser(SystemExit(0))() if place == "reset" else super().reset(**kwargs)

        def step(self, action):
            return raiser(SystemExit(0))() if place == "step" else super().step(action)

    problems = check_environment(Odd(), completions=["Up"])
    assert any("raised SystemExit: 0" in problem for problem in problems) is (place != "after the end")
    with pytest.raises(KeyboardInterrupt):
        environment = Odd()
        environment.step = raiser(KeyboardInterrupt())
        environment.reset = lambda **_: ("start", {})
        check_environment(environment, completions=["Up"])


def test_exits_become_errors_and_exceptions_stay():
    with pytest.raises(RuntimeError, match="The judge raised Halt, which would end") as caught:
        with exits_as_errors("The judge"):
            raise Halt
    assert isinstance(caught.value.__cause__, Halt)
    for error in (KeyError("x"), KeyboardInterrupt(), StopIteration(1)):
        with pytest.raises(type(error)):
            with exits_as_errors("The judge"):
                raise error


def test_training_outlives_the_exits_of_what_the_model_wrote(make_trainer):
    class Python(CountingEnvironment):
        def reset(self, *, seed=None, options=None):
            self.bad = seed % 4 == 0
            return super().reset(seed=seed, options=options)

        def step(self, action):
            exec("exit()" if self.bad else "pass")
            return super().step(action)

    trainer = make_trainer(Python, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1 and trainer.state.log_history[0]["episodes/failed"] == 2
    errors = {item.error for item in trainer._last_trajectories if item.stop_reason is StopReason.ERROR}
    assert errors == {"SystemExit: None"}
