"""Environments step in threads: a slow one delays its own episode only, and nothing depends on who is first."""

import threading

import pytest

from tests.helpers.scripted import CountingEnvironment, ScriptedEnvironment, ScriptedGenerator
from turnppo_hf.environments.pool import EnvironmentPool
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.worker import EpisodePlan, Limits, RolloutWorker, plan_episodes
from turnppo_hf.trajectory import GenerationError, StopReason

GO_ON = ("next", -0.1, False, False, {})
SOLVED = ("end", 1.0, True, False, {"solved": True})


class Gated(ScriptedEnvironment):
    """Answers its first step only when the gate is open."""

    def __init__(self, replies, gate):
        super().__init__(replies)
        self.gate, self.is_reset = gate, threading.Event()

    def reset(self, **kwargs):
        self.is_reset.set()
        return super().reset(**kwargs)

    def step(self, action):
        assert self.gate.wait(20)
        return super().step(action)


def make_worker(environments, generator, tokenizer):
    """One environment an episode, in the order in which they are asked for."""
    built = iter(environments)
    return RolloutWorker(EnvironmentPool({"e": lambda: next(built)}), generator, Chat(tokenizer), Limits())


def played(worker, enough=None):
    return [item.trajectory for item in worker.play(enough)[0]]


def test_slow_environment_delays_its_own_episode_only(tiny_tokenizer):
    gate, ended = threading.Event(), []
    slow, fast = Gated([GO_ON, SOLVED], gate), ScriptedEnvironment([GO_ON, GO_ON, GO_ON, SOLVED])

    def note(trajectory, timing):
        ended.append(len(trajectory.turns))
        gate.set()  # the slow one answers only after the fast one has ended

    worker = make_worker([slow, fast], ScriptedGenerator(tiny_tokenizer, ["Up"]), tiny_tokenizer)
    worker.start([EpisodePlan({}, "e", seed=0)])
    assert slow.is_reset.wait(20)  # the first episode has the slow environment
    worker.start([EpisodePlan({}, "e", seed=1)])
    finished, timing = worker.play(on_finished=note)
    trajectories = [item.trajectory for item in finished]
    worker.close()
    assert ended == [4, 2]
    assert [len(item.turns) for item in trajectories] == [2, 4]  # still in the order of their start
    assert timing.wait_s >= 0 and timing.num_tokens == sum(
        len(turn.completion_ids) for item in trajectories for turn in item.turns
    )


def test_all_environments_are_at_work_at_once(tiny_tokenizer):
    barrier = threading.Barrier(6, timeout=20)  # passes only if six are inside step together

    class Meeting(CountingEnvironment):
        def step(self, action):
            barrier.wait()
            return super().step(action)

    worker = make_worker([Meeting() for _ in range(6)], ScriptedGenerator(tiny_tokenizer, ["Up"]), tiny_tokenizer)
    worker.start([EpisodePlan({}, "e", seed=number) for number in range(6)])
    assert all(item.stop_reason is StopReason.SOLVED for item in played(worker))
    worker.close()


def test_generator_that_gives_up_stops_the_rollout_and_leaves_nothing_running(tiny_tokenizer):
    class Dying(ScriptedGenerator):
        def take_completions(self, wake=None):
            if len(self.prompts) >= 3:
                raise GenerationError("gone")
            return super().take_completions(wake)

    generator = Dying(tiny_tokenizer, ["Left"])
    environments = [ScriptedEnvironment([GO_ON]) for _ in range(3)]
    worker = make_worker(environments, generator, tiny_tokenizer)
    worker.start([EpisodePlan({}, "e", seed=number) for number in range(3)])
    with pytest.raises(GenerationError, match="gone"):
        worker.play()
    assert worker.give_up() == 3 and worker.num_running == 0
    assert sorted(generator.released) == [0, 1, 2]
    worker.close()


def test_environments_of_a_rollout_that_is_given_up_are_used_again(tiny_tokenizer):
    built = []

    def build():
        built.append(ScriptedEnvironment([GO_ON]))
        return built[-1]

    pool = EnvironmentPool({"e": build})
    for _ in range(2):
        worker = RolloutWorker(pool, ScriptedGenerator(tiny_tokenizer, ["Left"]), Chat(tiny_tokenizer), Limits())
        worker.start([EpisodePlan({}, "e", seed=number) for number in range(3)])
        assert worker.give_up() == 3
        worker.close()
    assert len(built) == 3


def test_worker_with_episodes_that_wait_for_a_thread_closes(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("turnppo_hf.rollout.worker._MAX_THREADS", 1)
    gate = threading.Event()

    class Blocked(CountingEnvironment):
        def reset(self, **kwargs):
            assert gate.wait(20)
            return super().reset(**kwargs)

    worker = make_worker([Blocked()], ScriptedGenerator(tiny_tokenizer, ["Up"]), tiny_tokenizer)
    worker.start([EpisodePlan({}, "e", seed=number) for number in range(2)])
    _, queued = worker._steps
    queued.add_done_callback(lambda _: gate.set())  # it is cancelled while the first is in reset()
    closing = threading.Thread(target=worker.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive() and worker.num_left == 0 and queued.cancelled()


@pytest.mark.parametrize("continues", [True, False])
def test_batch_closes_when_enough_have_ended_and_the_rest_goes_on_or_is_dropped(tiny_tokenizer, continues):
    class Numbered(ScriptedGenerator):
        """
        Episode n takes n further turns; the one with the fewest turns so far is answered first.

        One environment is at work at a time, else several may have ended when the worker looks.
        """

        answered = None  # episode, and the prompts that it had then

        def take_completions(self, wake=None):
            started = len({episode for episode, _ in self.prompts}) == 6
            if not started or (self.answered is not None and not self.has_replied(*self.answered)):
                assert wake.wait(20)
                return []
            self.pending.sort(key=lambda item: self.num_turns(item.episode), reverse=True)
            [item] = super().take_completions(wake)
            self.answered = item.episode, self.num_turns(item.episode)
            return [item]

        def has_replied(self, episode, turns):
            return episode in self.released or self.num_turns(episode) > turns

    answers = {number: ["Left"] * number + ["Up"] for number in range(6)}
    generator = Numbered(tiny_tokenizer, answers)
    pool = EnvironmentPool({"e": LongGame})
    worker = RolloutWorker(pool, generator, Chat(tiny_tokenizer), Limits())
    plan = plan_episodes([{"seed": seed} for seed in range(6)], key=(1,), default_environment="e")
    worker.start(plan)
    first = played(worker, enough=4)
    assert [item.seed for item in first] == [0, 1, 2, 3] and worker.num_running == 2
    if not continues:
        assert worker.give_up() == 2
        assert {4, 5} <= set(generator.released)
        worker.close()
        return
    generator.reset()  # the trainer's weights change: what was under way is asked for again
    worker.sync()
    rest = played(worker)
    worker.close()
    assert [(item.seed, len(item.turns)) for item in rest] == [(4, 5), (5, 6)]
    # the same episodes without a break in between
    alone = RolloutWorker(pool, Numbered(tiny_tokenizer, answers), Chat(tiny_tokenizer), Limits())
    alone.start(plan)
    assert played(alone)[4:] == rest
    alone.close()


def test_episode_that_ends_beyond_enough_is_returned_next_and_has_all_its_turns(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("turnppo_hf.rollout.worker._GRACE_S", 20.0)  # the worker looks when all environments answered
    generator = ScriptedGenerator(tiny_tokenizer, {0: ["Left", "Up"], 1: ["Left", "Up"], 2: ["Left", "Left", "Up"]})
    generator.continuous = False
    worker = RolloutWorker(EnvironmentPool({"e": LongGame}), generator, Chat(tiny_tokenizer), Limits())
    generator.take_completions = lambda wake=None: [generator.pending.pop() for _ in list(generator.pending)]
    worker.start([EpisodePlan({}, "e", seed=number) for number in range(3)])
    [first] = played(worker, enough=1)
    assert (first.seed, len(first.turns)) == (0, 2)
    assert worker.num_running == 1 and worker.num_left == 2  # two ended at once
    worker.sync()
    assert [(item.seed, len(item.turns)) for item in played(worker)] == [(1, 2), (2, 3)]
    worker.close()


def test_sync_submits_a_pending_prompt_again_and_no_turn_is_lost(tiny_tokenizer):
    gate = threading.Event()  # opens after the break

    class Slow(LongGame):
        def reset(self, *, seed=None, options=None):
            self.seed = seed
            return super().reset(seed=seed, options=options)

        def step(self, action):
            assert self.seed != 2 or gate.wait(20)
            return super().step(action)

    class Ordered(ScriptedGenerator):
        """At the break episode 0 has ended, 1 waits for a response and 2 for its environment."""

        def take_completions(self, wake=None):
            if gate.is_set():
                return super().take_completions(wake)
            if len(self.prompts) == 3:
                for item in sorted(self.pending, key=lambda item: -item.episode):
                    if item.episode != 1:
                        self.pending.remove(item)
                        return [item]
            assert 0 in self.released or wake.wait(20)
            return []

    generator = Ordered(tiny_tokenizer, {0: ["Up"], 1: ["Left", "Left", "Up"], 2: ["Left", "Up"]})
    worker = RolloutWorker(EnvironmentPool({"e": Slow}), generator, Chat(tiny_tokenizer), Limits())
    worker.start([EpisodePlan({}, "e", seed=number, sampling_seed=number) for number in range(3)])
    [first] = played(worker, enough=1)
    assert (first.seed, len(first.turns)) == (0, 1)
    asked = len(generator.prompts)
    worker.sync()
    assert generator.prompts[asked:] == [prompt for prompt in generator.prompts[:asked] if prompt[0] == 1]
    gate.set()
    assert [(item.seed, len(item.turns)) for item in played(worker)] == [(1, 3), (2, 2)]
    assert len(set(generator.seeds)) == len(generator.seeds) - 1  # the turn that is asked for again has its old seed
    worker.close()


class LongGame(CountingEnvironment):
    """Solved by "Up", never cut."""

    def step(self, action):
        observation, reward, terminated, _, _ = super().step(action)
        return observation, reward, terminated, False, {"solved": terminated}
