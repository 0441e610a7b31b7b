"""Environment classes of TRL as conversations: what tools return, what rewards a turn, what ends an episode."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.helpers.scripted import CountingEnvironment, ScriptedEnvironment
from tests.helpers.tools import AnsweringGenerator, Ladder, Pit, Stairs, add, call, calling_tokenizer
from turnppo_hf.environments.factory import open_environments
from turnppo_hf.environments.integrations.tools import ToolEnvironment, is_tool_environment
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.worker import EpisodePlan, Limits, collect_trajectories
from turnppo_hf.trajectory import StopReason

ROW = {"prompt": [{"role": "user", "content": "Go."}]}


def message(*calls):
    functions = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return {"role": "assistant", "content": "", "tool_calls": functions}


def opened(environment, **row):
    played = ToolEnvironment(environment)
    played.open({**ROW, **row}, 0)
    return played


def play(tokenizer, factory, answers, limits=None, row=ROW, **arguments):
    """Play one episode; return the trajectory and the generator."""
    pool, names, _ = open_environments(factory, **arguments)
    chat = Chat(calling_tokenizer(tokenizer), {"enable_thinking": False})
    chat.offer_tools(pool.tools)
    generator = AnsweringGenerator(chat.tokenizer, answers)
    plan = EpisodePlan(row, names[0], seed=0)
    [trajectory] = collect_trajectories([plan], pool, generator, chat, limits or Limits())
    return trajectory, generator


def test_tools_are_the_public_methods_after_the_functions():
    played = ToolEnvironment(Ladder(), [add])
    assert [tool.__name__ for tool in played.tools] == ["add", "climb", "look"]


def test_reset_gets_the_row_with_its_prompt_and_leaves_it_as_it_is():
    row = {"prompt": [{"role": "user", "content": "Go."}], "environment": "ladder", "level": 3}
    for routed, expected in ((False, row), (True, {"prompt": row["prompt"], "level": 3})):
        played = ToolEnvironment(Ladder(), routed=routed)
        opening, _ = played.open(row, 0)
        assert played.environment.row == expected
        assert opening == [{"role": "user", "content": "Go.Climb."}] and row["prompt"][0]["content"] == "Go."


def test_seed_is_handed_to_a_reset_that_takes_it():
    class Seeded(Ladder):
        def reset(self, seed=None):
            self.seed = seed

    class Unseeded(Ladder):
        def reset(self):
            self.seed = None

    assert [_seed_of(kind) for kind in (Seeded, Unseeded)] == [7, None]


def _seed_of(kind):
    played = ToolEnvironment(kind())
    assert played.open({"seed": 7}, 0) == ([{"role": "user", "content": ""}], "")
    return played.environment.seed


def test_blocks_of_text_are_joined_and_an_image_is_refused():
    class Showing(Ladder):
        def reset(self, kind, **row):
            return [{"type": kind, kind: "x"}]

    opening, _ = ToolEnvironment(Showing()).open({**ROW, "kind": "text"}, 0)
    assert opening[0]["content"] == [{"type": "text", "text": "Go."}, {"type": "text", "text": "x"}]
    with pytest.raises(TypeError, match=r"reset\(\) returned an image.*reads text only"):
        ToolEnvironment(Showing()).open({**ROW, "kind": "image"}, 0)


def test_growing_list_of_rewards_rewards_the_turn():
    played = opened(Stairs())
    assert [played.read(message(*calls))[1] for calls in _TWO_TURNS] == [0.5, 1.0]
    assert played.rewards_turns and not played.has_final_reward
    played.open(ROW, 0)
    # what was counted before the reset is not counted again
    assert played.read(message(("climb", {"rungs": 1})))[1] == 0.5


@pytest.mark.parametrize("kind", ["another", "same values", "shorter", "overwritten", "tuple"])
def test_rewards_that_would_be_lost_are_refused(kind):
    class Replacing(Ladder):
        def reset(self, **row):
            self.rewards = [0.5]

        def climb(self, rungs: int):
            """Go up."""
            if kind == "shorter":
                self.rewards.clear()
            elif kind == "overwritten":
                self.rewards[:] = [0.25 * rungs]
            else:
                self.rewards = {"tuple": (0.5,), "same values": [0.5]}.get(kind, [0.7, 0.5])

    with pytest.raises(ValueError, match=r"Replacing replaced `rewards`.*would be lost\. Append each reward\."):
        opened(Replacing()).read(message(("climb", {"rungs": 1})))


@pytest.mark.parametrize("kind", ["new list", "property"])
def test_rewards_that_go_on_in_another_list_count(kind):
    class Extending(Ladder):
        def reset(self, **row):
            self.kept = [0.5]

        def climb(self, rungs: int):
            """Go up."""
            self.kept = self.kept + [0.25] * rungs

        @property
        def rewards(self):
            return list(self.kept) if kind == "property" else self.kept

    played = opened(Extending())
    assert [played.read(message(("climb", {"rungs": rungs}))).reward for rungs in (1, 2)] == [0.25, 0.5]
    if kind == "property":  # nothing new is no loss
        assert played.read(message(("climb", {"rungs": 0}))).reward == 0.0


_TWO_TURNS = ([("climb", {"rungs": 1})], [("climb", {"rungs": 1}), ("climb", {"rungs": 1})])


@pytest.mark.parametrize("kind", ["attribute", "method", "coroutine"])
def test_turn_reward_rewards_the_turn(kind):
    class Paying(Ladder):
        if kind == "method":

            def _turn_reward(self):
                return self.height / 2

        elif kind == "coroutine":

            async def _turn_reward(self):
                return self.height / 2

    environment = Paying()
    if kind == "attribute":
        environment._turn_reward = 0.5
    played = opened(environment)
    assert played.rewards_turns
    assert played.read(message(("climb", {"rungs": 1})))[1] == 0.5
    assert played.read({"role": "assistant", "content": "Enough."})[1] == 0.0  # an attribute is of the last round


def test_turn_reward_that_is_not_finite_is_refused():
    environment = Ladder()
    environment._turn_reward = float("nan")
    with pytest.raises(ValueError, match="Ladder gave a turn the reward nan"):
        opened(environment).read(message(("climb", {"rungs": 1})))


@pytest.mark.parametrize("name", ["done", "finished", "terminated"])
def test_environment_that_says_so_is_over(name):
    class Quiet:
        def reset(self, **row):
            setattr(self, name, False)

        def act(self):
            """Act."""
            setattr(self, name, True)

    played = opened(Quiet())
    _, _, terminated, truncated, info = played.read(message(("act", {})))
    assert terminated and not truncated and info["tool_calls"] == 1


@pytest.mark.parametrize("name", ["done", "finished", "terminated"])
def test_end_of_tools_that_is_no_truth_value_is_refused(name):
    for end, is_over in (("False", None), ([], None), (2, None), (None, False), (1, True), (np.bool_(True), True)):
        environment = type("Odd", (Ladder,), {"reset": lambda self, **row: None, "height": 0, "done": False})()
        setattr(environment, name, end)
        played = opened(environment)
        if is_over is None:
            with pytest.raises(TypeError, match=f"`{name}` of Odd is .*would count as true.*Set it to True or False"):
                played.read(message(("look", {})))
        else:
            assert played.read(message(("look", {})))[2] is is_over


def test_method_of_that_name_is_a_tool_and_no_end():
    class Asking:
        def reset(self, **row):
            pass

        def done(self):
            """Ask."""

    assert opened(Asking()).read(message(("done", {})))[2] is False


def test_failures_are_told_and_counted():
    replies, _, _, _, info = opened(Ladder()).read(message(("fly", {}), ("climb", {}), ("look", {})))
    assert replies[0]["content"] == "{'error': 'Tool fly not found.'}"
    assert "missing 1 required positional argument" in replies[1]["content"]
    assert replies[2] == {"role": "tool", "name": "look", "content": "ground 0 below"}
    assert info["tool_calls"] == 3 and info["tool_failures"] == 2 and info["action"] == "fly(); climb(); look()"


def test_asynchronous_tools_run_side_by_side_on_one_loop():
    class Meeting:
        def reset(self, **row):
            self.waiting, self.loops = 0, []

        async def meet(self) -> str:
            """Wait for the other."""
            self.waiting += 1
            self.loops.append(asyncio.get_running_loop())
            while self.waiting < 2:  # one after the other would wait forever
                await asyncio.sleep(0)
            return "met"

    played = opened(Meeting())
    replies = played.read(message(("meet", {}), ("meet", {})))[0] + played.read(message(("meet", {})))[0]
    assert [reply["content"] for reply in replies] == ["met"] * 3
    assert len(set(played.environment.loops)) == 1


def test_gymnasium_environments_are_none_of_tools():
    assert is_tool_environment(Ladder()) and not is_tool_environment(CountingEnvironment())
    assert not is_tool_environment(object())


def test_module_loads_no_network_library():
    module = "turnppo_hf.environments.integrations.tools"
    code = f"import sys, {module}; print({{'torch', 'transformers', 'trl'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_nothing_is_sampled_after_done(tiny_tokenizer):
    trajectory, generator = play(tiny_tokenizer, Stairs, [call("climb", rungs=2)])
    assert trajectory.stop_reason is StopReason.TERMINATED and len(generator.prompts) == 2
    assert [turn.reward for turn in trajectory.turns] == [1.0, 1.0]
    assert [turn.action for turn in trajectory.turns] == ["climb(rungs=2)"] * 2
    assert [turn.observation for turn in trajectory.turns] == ["Climb.", "height 2"]


def test_result_that_does_not_fit_is_overlong(tiny_tokenizer):
    answers = [call("climb", rungs=1)]
    free, _ = play(tiny_tokenizer, Stairs, answers)
    response = len(free.turns[0].completion_ids)
    trajectory, generator = play(tiny_tokenizer, Stairs, answers, Limits(max_completion_length=response + 3))
    assert trajectory.stop_reason is StopReason.OVERLONG and len(generator.prompts) == 1
    assert trajectory.turns[0].reward == 0.5  # the tool has run
    assert len(trajectory.bootstrap_ids) == len(trajectory.turns[0].prompt_ids) + response + 3


def test_call_beyond_the_rounds_is_not_executed(tiny_tokenizer):
    limits = Limits(max_tool_calling_iterations=1)
    trajectory, _ = play(tiny_tokenizer, Stairs, [call("climb", rungs=1)], limits)
    assert trajectory.stop_reason is StopReason.TURN_LIMIT and not trajectory.is_bootstrapped(True)
    assert [turn.reward for turn in trajectory.turns] == [0.5, 0.0] and trajectory.metrics["tool_calls"] == 1


def test_answer_cut_by_its_own_limit_is_no_end_of_the_task(tiny_tokenizer):
    trajectory, _ = play(tiny_tokenizer, Stairs, ["A long story."], Limits(max_turn_length=5))
    assert trajectory.stop_reason is StopReason.CUT_RESPONSE and trajectory.turns[0].finish_reason == "length"


def test_call_cut_after_its_end_is_closed_for_the_model(tiny_tokenizer):
    text = call("climb", rungs=1)
    trajectory, generator = play(
        tiny_tokenizer,
        Stairs,
        [text + " and so on", "Up."],
        Limits(max_turn_length=len(tiny_tokenizer(text).input_ids)),
    )
    assert trajectory.turns[0].finish_reason == "length"
    read = generator.tokenizer.decode(generator.prompts[1][1])
    assert "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>" in read


def test_tools_run_in_the_thread_that_collects(tiny_tokenizer):
    class Watching(Stairs):
        def climb(self, rungs: int) -> str:
            """
            Go up.

            Args:
                rungs: How many rungs.
            """
            assert threading.current_thread() is threading.main_thread()
            return super().climb(rungs)

    trajectory, _ = play(tiny_tokenizer, Watching, [call("climb", rungs=4)])
    assert trajectory.turns[0].reward == 2.0
    # control: Gymnasium's run in threads of their own
    threads = []

    def make():
        environment = ScriptedEnvironment([("end", 0.0, True, False, {})])
        environment.step, step = (
            lambda action: threads.append(threading.current_thread()) or step(action),
            environment.step,
        )
        return environment

    play(tiny_tokenizer, make, ["Up"])
    assert threads and threads[0] is not threading.main_thread()


def test_failing_reset_ends_its_own_episode(tiny_tokenizer):
    trajectory, _ = play(tiny_tokenizer, Pit, ["x"], row=ROW)
    assert trajectory.stop_reason is StopReason.ERROR and "missing 1 required positional argument" in trajectory.error


def undescribed(a):
    """Do."""


class Bare:
    def reset(self, **row):
        pass

    def get_reward(self):
        return 0.0

    def act(self, a: int):
        pass


@pytest.mark.parametrize(
    ("tools", "message"),
    [([undescribed], "tool 'undescribed' cannot be described.*type hint"), ([Bare().act], "'act' cannot.*docstring")],
)
def test_tool_without_description_is_refused(tiny_tokenizer, tools, message):
    with pytest.raises(ValueError, match=message):
        Chat(calling_tokenizer(tiny_tokenizer)).offer_tools(tools)


def test_template_without_tools_is_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match="has no place for tool calls"):
        Chat(tiny_tokenizer).offer_tools([add])


def test_class_without_reset_is_refused():
    class Nothing:
        def act(self):
            """Act."""

    with pytest.raises(TypeError, match=r"returned Nothing, which has no reset\(\)"):
        open_environments(Nothing)
    with pytest.raises(TypeError, match=r"class Nothing has no method reset\(\)"):
        ToolEnvironment(Nothing())
