"""A generator that replays text and an environment that follows a script, for tests of the loop between them."""

from __future__ import annotations

import gymnasium
import numpy as np

from turnppo_hf.generation.base import Completion


class ScriptedGenerator:
    """
    Answers with given texts, episode by episode; a response longer than its room is cut like a sampled one.

    The same prompt gets the same answer however often it is submitted: after new weights, a worker submits what is
    under way once more.
    """

    exact, continuous, max_context = True, True, None

    def __init__(self, tokenizer, answers, by_seed=None):
        self.tokenizer, self.answers, self.by_seed = tokenizer, answers, by_seed
        self.pending, self.prompts, self.released, self.seeds = [], [], [], []

    def submit(self, episode, prompt_ids, *, max_new_tokens, seed):
        self.prompts.append((episode, tuple(prompt_ids)))
        self.seeds.append(seed)
        turn = self.num_turns(episode) - 1
        answers = self.answers[episode] if isinstance(self.answers, dict) else self.answers
        text = answers[min(turn, len(answers) - 1)] + self.tokenizer.eos_token
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        cut = ids[:max_new_tokens]
        reason = "stop" if len(cut) == len(ids) else "length"
        self.pending.append(Completion(episode, tuple(cut), tuple(-0.5 for _ in cut), reason))

    def num_turns(self, episode):
        """Turns of an episode that were asked for: each has a prompt of its own."""
        return len({prompt for number, prompt in self.prompts if number == episode})

    def take_completions(self, wake=None):
        # the youngest first: the order of arrival must not matter
        return [self.pending.pop()] if self.pending else []

    def release(self, episode):
        self.released.append(episode)

    def reset(self):
        self.pending.clear()

    sync = reset


class ScriptedEnvironment(gymnasium.Env):
    """Replies from a list of `(observation, reward, terminated, truncated, info)`; an exception in it is raised."""

    observation_space = gymnasium.spaces.Text(1000)
    action_space = gymnasium.spaces.Text(1000)

    def __init__(self, replies, opening="start"):
        self.replies, self.opening = list(replies), opening
        self.read, self.resets, self.closed = [], [], False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets.append((seed, options))
        self.turn = 0
        if isinstance(self.opening, Exception):
            raise self.opening
        return (self.opening, {}) if isinstance(self.opening, str) else self.opening

    def step(self, action):
        self.read.append(action)
        reply = self.replies[min(self.turn, len(self.replies) - 1)]
        self.turn += 1
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self):
        self.closed = True


class CountingEnvironment(gymnasium.Env):
    """A task that a tiny model can act in: an answer that begins with "Up" solves it, the third other one ends it."""

    observation_space = gymnasium.spaces.Text(1000)
    action_space = gymnasium.spaces.Text(1000)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turn, self.target = 0, "#" * int(np.random.default_rng(seed).integers(1, 5))
        return self.target + "P", {}

    def step(self, action):
        self.turn += 1
        word = (action.split() or [""])[0]
        solved, known = word == "Up", word in ("Up", "Down", "Left", "Right")
        info = {"solved": solved, "action": action if known else "", "penalty": 0.0 if known else -0.1}
        cut = self.turn == 3 and not solved
        if cut:
            info["truncation"] = "task_budget"
        return self.target + "_" * self.turn, 1.0 if solved else -0.1, solved, cut, info
