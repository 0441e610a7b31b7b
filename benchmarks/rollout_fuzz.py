"""
Random replies of environments, and random completions, in batches of episodes that are played side by side.

    python benchmarks/rollout_fuzz.py [--cases 10000] [--seed 0]

The oracles share no code with the package. A reply that is none (`is_reply`) fails its own episode with a message, any
other lets it go on with its reward, and the sane episode of each batch comes out the same in all of them. Sampled ids
stand unchanged in the trajectory, whatever they decode to, and nothing that a model writes fails its episode, calls of
tools in every form included. Nothing is raised, and no batch takes longer than config_fuzz's `LIMIT_S`.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import trl
from config_fuzz import HALVES, JUNK, Judge, run_kinds
from transformers import AutoTokenizer

from turnppo_hf.environments.integrations.tools import ToolEnvironment
from turnppo_hf.environments.pool import EnvironmentPool
from turnppo_hf.generation.base import Completion
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.episode import EpisodePlan, Limits
from turnppo_hf.rollout.worker import collect_trajectories
from turnppo_hf.trajectory import StopReason, Trajectory

BATCH = 10  # episodes beside the sane one


class Odd(gymnasium.Env[str, str]):
    """Replies with what it was given, two turns long."""

    def __init__(self, opening: Any, reply: Any) -> None:
        self.opening, self.reply, self.turn = opening, reply, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Return the opening."""
        self.turn = 0
        return self.opening

    def step(self, action: str) -> Any:
        """Return the reply, then a sane end."""
        self.turn += 1
        return self.reply if self.turn == 1 else ("over", 1.0, True, False, {"solved": True})


def draw_reply(rng: random.Random) -> tuple[Any, Any]:
    """Draw an opening and a reply, now and then odd in a place or two."""
    opening: list[Any] = ["look", {}]
    reply: list[Any] = ["next", 0.5, False, False, {"penalty": -0.1, "action": "go", "state": "s", "x": 1.0}]
    texts = ("", "a" * 5000, "<|im_start|>system", "\x00", "☃", *HALVES, "x\ud800y", "\u202e", "{{ 1 }}", "{% raw %}")
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind = rng.random()
        if kind < 0.15:
            opening[rng.randrange(2)] = rng.choice((*JUNK, *texts))
        elif kind < 0.3:
            reply[0] = rng.choice((*texts, *JUNK))
        elif kind < 0.6:
            reply[rng.randrange(1, len(reply))] = rng.choice(
                (*JUNK, np.float32(1), np.bool_(False), np.array([1, 2]), 1 + 0j)
            )
        elif kind < 0.9 and isinstance(reply[-1], dict):
            key = rng.choice(("penalty", "action", "state", "solved", "truncation", "x", HALVES[0], 7))
            reply[-1] = {**reply[-1], key: rng.choice((*JUNK, *texts, np.float32(-1), np.nan))}
        elif kind < 0.95:
            return tuple(opening), tuple(reply[: rng.randrange(5)])
        else:
            return rng.choice((tuple(opening), *JUNK)), rng.choice((list(reply), None, RuntimeError("planted"), *JUNK))
    return tuple(opening), tuple(reply)


def is_text(value: Any) -> bool:
    """Whether something is a text without halves of characters."""
    return isinstance(value, str) and not re.search(r"[\ud800-\udfff]", value)


def is_number(value: Any) -> bool:
    """Whether something is a finite real number."""
    real = isinstance(value, int | float | np.number | np.bool_) and not isinstance(
        value, complex | np.complexfloating
    )
    return bool(real and (not isinstance(value, int) or abs(value) < 2**1023) and math.isfinite(value))


def is_reply(opening: Any, reply: Any) -> bool:
    """Whether an episode goes on from these."""
    if not (isinstance(opening, tuple) and len(opening) == 2 and is_text(opening[0]) and isinstance(opening[1], dict)):
        return False
    if not (isinstance(reply, tuple) and len(reply) == 5 and isinstance(reply[0], str) and isinstance(reply[4], dict)):
        return False
    _, reward, terminated, truncated, info = reply
    if not is_text(reply[0]) and not (is_number(terminated) and terminated):  # what ends an episode is not read
        return False
    flags = (terminated, truncated)
    if not all(isinstance(flag, bool | np.bool_) or (is_number(flag) and flag in (0, 1)) for flag in flags):
        return False
    if any(flags):  # the numbers of the last info are averaged, as floats
        if not all(is_number(x) for name, x in info.items() if isinstance(name, str) and isinstance(x, int)):
            return False
    solved, truncation = info.get("solved"), info.get("truncation")
    if solved is not None and not (is_number(solved) and solved in (0, 1)):
        return False
    if truncated and isinstance(truncation, str) and truncation not in ("task_budget", "time_limit"):
        return False
    penalty = info.get("penalty", 0.0)
    fine = is_number(reward) and is_number(penalty) and penalty <= 0
    state, action = info.get("state"), str(info.get("action", ""))
    return fine and (not isinstance(state, str) or is_text(state)) and is_text(action)


class Fixed:
    """A generator that replays ids, in turn, for each episode."""

    exact, continuous, max_context = True, True, None

    def __init__(self, answers: list[list[tuple[int, ...]]]) -> None:
        self.answers, self.pending, self.taken = answers, list[Completion](), Counter[int]()

    def submit(self, episode: int, prompt_ids: Any, *, max_new_tokens: int, seed: int) -> None:
        """Queue the episode's next answer."""
        answers = self.answers[episode]
        ids = answers[min(self.taken[episode], len(answers) - 1)][:max_new_tokens]
        self.taken[episode] += 1
        self.pending.append(Completion(episode, ids, (-0.5,) * len(ids), "stop"))

    def take_completions(self, wake: Any = None) -> list[Completion]:
        """Return one answer."""
        return [self.pending.pop()] if self.pending else []

    def release(self, episode: int) -> None:
        """Nothing is kept."""

    def reset(self) -> None:
        """Drop what is queued."""
        self.pending.clear()

    sync = reset


def judge_replies(rng: random.Random, chat: Chat, sane: list[Any]) -> list[tuple[str, Any]]:
    """Play a batch, the first of it sane, the others odd."""
    drawn = [(("look", {}), ("next", 0.5, False, False, {})), *(draw_reply(rng) for _ in range(BATCH))]
    factories = {str(number): lambda pair=pair: Odd(*pair) for number, pair in enumerate(drawn)}
    plans = [EpisodePlan({}, name, seed=1, group=int(name)) for name in factories]
    limits = Limits(max_completion_length=1 << 16)
    ids = tuple(chat.tokenizer("Up", add_special_tokens=False)["input_ids"])
    played = collect_trajectories(plans, EnvironmentPool(factories), Fixed([[ids]] * len(drawn)), chat, limits)
    problem = differs(sane, played[0], StopReason.SOLVED)
    found = []
    for (opening, reply), episode in zip(drawn[1:], played[1:], strict=True):
        failed, expected = episode.stop_reason is StopReason.ERROR, is_reply(opening, reply)
        verdict = problem or ("refused" if failed else "accepted")
        if failed == expected or (failed and len(episode.error or "") < 15):
            verdict = f"failed {failed}, sane {expected}: {episode.error}"
        elif (
            not failed
            and isinstance(reply, tuple)
            and not math.isclose(episode.turns[0].reward, float(reply[1]), rel_tol=1e-6)
        ):
            verdict = f"the reward {episode.turns[0].reward}"
        found.append((verdict, (opening, reply)))
    return found


def differs(sane: list[Any], episode: Trajectory, end: StopReason) -> str:
    """Return what is wrong with the sane episode of a batch, "" where it is the one of the first batch."""
    sane.append((episode.stop_reason, [(turn.prompt_ids, turn.completion_ids, turn.reward) for turn in episode.turns]))
    del sane[1:-1]
    return "" if sane[0] == sane[-1] and episode.stop_reason is end else f"the sane episode {sane[-1]}"


# completions


class Tower:
    """TRL's protocol: one tool, which raises where it is given no number."""

    def reset(self, **row: Any) -> str:
        """Start."""
        self.height, self.done = 0, False
        return "Climb."

    def climb(self, rungs: int) -> str:
        """
        Go up.

        Args:
            rungs: How many rungs.
        """
        self.height += rungs
        self.done = self.height >= 4
        return f"height {self.height}"

    def get_reward(self) -> float:
        """Return the height."""
        return float(self.height)


def draw_ids(rng: random.Random, tokenizer: Any) -> tuple[int, ...]:
    """Draw ids of the whole vocabulary, special ones included, or those of a text with calls in every form."""
    if rng.random() < 0.5:
        return tuple(rng.randrange(len(tokenizer)) for _ in range(rng.choice((1, 2, 5, 40))))
    calls = [
        '{"name": "climb", "arguments": {"rungs": 2}}',
        '{"name": "climb", "arguments": {"rungs": "2"}}',
        '{"name": "fly"}',
    ]
    calls += [
        '{"name": 7, "arguments": []}',
        '{"name": "climb", "arguments": "x"}',
        "[" * 1500,
        "{" * 300,
        '{"name": "climb"',
        "null",
        "1e999",
    ]
    calls += [
        '{"name": "climb", "arguments": {"rungs": NaN}}',
        '{"name": "climb", "arguments": {"self": 1}}',
        '{"name": "reset", "arguments": {}}',
    ]
    texts = [
        "<tool_call>\n",
        "\n</tool_call>",
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "<|im_end|>",
        "<|im_start|>system\n",
        " Up ",
        "☃",
    ]
    text = "".join(rng.choice(calls if rng.random() < 0.4 else texts) for _ in range(rng.choice((1, 3, 3, 9))))
    if rng.random() < 0.4:
        text = f"<tool_call>\n{rng.choice(calls)}\n</tool_call>"
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])[:2000] or (0,)


def judge_completions(rng: random.Random, chat: Chat, sane: list[Any], *, tools: bool) -> list[tuple[str, Any]]:
    """Play a batch whose answers are anything, beside one that is sane."""
    right = '<tool_call>\n{"name": "climb", "arguments": {"rungs": 4}}\n</tool_call>' if tools else "Up"
    ids = tuple(chat.tokenizer(right, add_special_tokens=False)["input_ids"])
    answers = [[ids], *([draw_ids(rng, chat.tokenizer) for _ in range(3)] for _ in range(BATCH))]
    reply = ("next", 0.5, False, False, {})
    build: Callable[[], Any] = (lambda: ToolEnvironment(Tower())) if tools else (lambda: Odd(("look", {}), reply))
    pool = EnvironmentPool({"e": build}, {"e": ()} if tools else None)
    plans = [EpisodePlan({}, "e", seed=1, group=number) for number in range(len(answers))]
    limits = Limits(max_turns=3, max_completion_length=1 << 16)
    played = collect_trajectories(plans, pool, Fixed(answers), chat, limits)
    problem = differs(sane, played[0], StopReason.TERMINATED if tools else StopReason.SOLVED)
    if played[0].metrics.get("tool_calls", 0) != tools:
        problem = f"the sane episode {played[0].metrics}"
    found = []
    for given, episode in zip(answers[1:], played[1:], strict=True):
        sampled = [turn.completion_ids for turn in episode.turns]
        verdict = "accepted" if episode.stop_reason is not StopReason.ERROR else "refused"
        if problem or sampled != given[: len(sampled)]:
            verdict = problem or f"other ids: {sampled}"
        elif verdict == "refused":
            verdict = f"failed: {episode.error}"
        elif any(not math.isfinite(turn.reward) for turn in episode.turns):
            verdict = "a reward that is not finite"
        found.append((verdict, [chat.tokenizer.decode(one) for one in given[: len(sampled)]]))
    return found


def make_chats() -> tuple[Chat, Chat]:
    """Return the packaged actor's chat, and one whose template calls tools."""
    plain = AutoTokenizer.from_pretrained(str(find_model("tiny")))
    calling = AutoTokenizer.from_pretrained(str(find_model("tiny")))
    calling.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    calling.chat_template = template.read_text(encoding="utf-8")
    chat = Chat(calling)
    chat.offer_tools(ToolEnvironment(Tower()).tools)
    return Chat(plain), chat


def make_judges() -> dict[str, Judge]:
    """Return what draws and judges a batch of each kind."""
    plain, calling = make_chats()
    sane: dict[str, list[Any]] = {"replies": [], "text": [], "calls": []}  # the first and the last such episode

    def judge_texts(rng: random.Random) -> list[tuple[str, Any]]:
        with_tools = rng.random() < 0.5
        kept = sane["calls" if with_tools else "text"]
        return judge_completions(rng, calling if with_tools else plain, kept, tools=with_tools)

    return {"observations": lambda rng: judge_replies(rng, plain, sane["replies"]), "completions": judge_texts}


if __name__ == "__main__":
    raise SystemExit(run_kinds(make_judges(), __doc__))
