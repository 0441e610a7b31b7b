"""A plan in, a finished episode out: while it runs, an episode owns its environment, its prompt and its turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from turnppo_hf.environments.conversation import Conversation, Opening, Reply
from turnppo_hf.environments.exits import close_environment, describe_error
from turnppo_hf.environments.messages import Message, as_messages, checked_text, text_of
from turnppo_hf.environments.pool import EnvironmentPool
from turnppo_hf.generation.base import Completion
from turnppo_hf.rollout.chat import Chat, Prompt
from turnppo_hf.trajectory import StopReason, Trajectory, Turn


@dataclass(frozen=True)
class EpisodePlan:
    """What is to be played. `EpisodePlan({"seed": 7}, "turnppo_hf/Sokoban-v0", seed=7, sampling_seed=123)`."""

    task: Mapping[str, Any]  # the dataset row; its columns but prompt, environment and seed are the reset's options
    environment: str  # a name of the pool
    seed: int  # the environment is reset with it
    group: int = 0  # episodes of the same task share it
    sampling_seed: int = 0  # with the turn's number it seeds each response
    problem: str | None = None  # why it cannot be played: its episode fails with this


@dataclass(frozen=True)
class Limits:
    """What cuts an episode from outside. `None` is no limit."""

    max_turns: int | None = None
    max_turn_length: int | None = None  # tokens of one response
    max_completion_length: int = 2048  # tokens after the first prompt, as the last prompt and response hold them
    max_context: int | None = None  # tokens that the model can read at all
    max_tool_calling_iterations: int | None = None  # rounds of tool calls; a later call is not executed
    environment_timeout_s: float = 600.0  # of each reset, step or round of tool calls


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that is over, with what reward functions may look at."""

    trajectory: Trajectory
    environment: Conversation | None = None  # as the episode left it; None where it failed
    opening: tuple[Message, ...] = ()  # messages of the first prompt
    messages: tuple[Message, ...] = ()  # all later ones: responses, and what answered them and was read
    columns: Mapping[str, Any] = field(default_factory=dict)  # beside the task's, for reward functions


class RunningEpisode:
    """
    An episode under way. `reset` and `open` start it; then each turn is `take`, `read` and `advance`.

    `reset` and `read` wait for the environment and may run in any thread, one at a time. The other methods run in the
    thread of the worker. What any of them raises belongs to this episode and is passed to `fail`.

    Args:
        plan (`EpisodePlan`): What is played.
        chat (`Chat`): Renders the conversation.
        limits (`Limits`): What cuts the episode.
        needs_states (`bool`, *optional*, defaults to `False`): Whether a state that is no text fails the episode; else
            it is not recorded.
    """

    def __init__(self, plan: EpisodePlan, chat: Chat, limits: Limits, needs_states: bool = False) -> None:
        self.plan = plan
        self.environment: Conversation | None = None  # None until `reset` has taken one
        self.prompt: Prompt | None = None  # of the next response, or of the one that the environment reads
        self.working_since: float | None = None  # seconds of the clock at which the environment began what it is at
        self.is_reported = False  # whether a line was logged that the environment takes long
        self._chat, self._limits, self._needs_states = chat, limits, needs_states
        self._opening: tuple[Message, ...] = ()
        self._observation = ""  # that the next turn answers
        self._state: str | None = None  # that the next turn starts from
        self._next_state_text: str | None = None  # that the response which was read led to
        self._budget = 0  # tokens that the last prompt and response may hold together
        self._completion: Completion | None = None  # the response that the environment reads
        self._answer: Message = {}  # the same as a message
        self._turns: list[Turn] = []

    def reset(self, environments: EnvironmentPool) -> Opening:
        """
        Take an environment from the pool and start the task in it.

        Raises:
            `ValueError`: the plan cannot be played.
        """
        if self.plan.problem is not None:
            raise ValueError(self.plan.problem)
        self.environment = environments.take(self.plan.environment)
        opening = self.environment.open(self.plan.task, self.plan.seed)
        self._state = self._text_of_state(self.environment.state)
        return opening

    def open(self, opening: Opening) -> None:
        """
        Render the first prompt.

        Raises:
            `ValueError`: it leaves no room for a response.
        """
        assert self.environment is not None
        head = as_messages(self.plan.task.get("prompt"))
        self.prompt = self._chat.open(opening.messages, self.environment.tools, head)
        self._opening, self._observation = self.prompt.messages, opening.observation
        length, context = len(self.prompt.ids), self._limits.max_context
        self._budget = length + self._limits.max_completion_length
        if context is not None:
            self._budget = min(self._budget, context)
            if length >= self._budget:
                raise ValueError(
                    f"The first prompt of {self.plan.environment!r} (seed {self.plan.seed}) has {length} tokens, but "
                    f"the model reads {context} at most, so no response fits. Shorten the prompt or take a "
                    "model with a longer context."
                )

    @property
    def name(self) -> str:
        """What is played, for reports."""
        return f"The environment {self.plan.environment!r} (seed {self.plan.seed})"

    @property
    def room(self) -> int:
        """Tokens that the next response may have."""
        assert self.prompt is not None
        room = self._budget - len(self.prompt.ids)
        longest = self._limits.max_turn_length
        return room if longest is None else min(room, longest)

    @property
    def seed(self) -> int:
        """Seed of the next response."""
        # a plain sum of seeds would give neighbouring episodes the same stream at shifted turns
        key = (self.plan.sampling_seed, len(self._turns))
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])

    def take(self, completion: Completion) -> None:
        """Accept the response to the prompt, for the environment to read."""
        assert self.prompt is not None
        self._completion = completion
        self._answer = self._chat.parse(self.prompt, completion.completion_ids)

    def read(self) -> Reply:
        """Let the environment read the response."""
        assert self.environment is not None
        most = self._limits.max_tool_calling_iterations
        reply = self.environment.read(self._answer, may_call=most is None or len(self._turns) < most)
        self._next_state_text = self._text_of_state(self.environment.state)
        return reply

    def advance(self, reply: Reply) -> FinishedEpisode | None:
        """Record the turn; return the end where the episode ended with it, else None: the next prompt is rendered."""
        prompt, completion = self.prompt, self._completion
        assert prompt is not None and completion is not None
        turn = self._turn(prompt, completion, reply)
        self._turns.append(turn)
        stop, following = self._next_state(prompt, completion, reply)
        if stop is None:
            assert following is not None
            self.prompt = following
            self._observation = "\n".join(text_of(message["content"]) for message in reply.messages)
            self._state = self._next_state_text
            return None
        # what answered the last response, where the model could have read that
        read = () if stop in (StopReason.OVERLONG, StopReason.CUT_RESPONSE) else reply.messages
        return FinishedEpisode(
            self._trajectory(
                stop_reason=stop,
                # a state longer than the budget is judged by the longest prefix that the model may read
                bootstrap_ids=following.ids[: self._budget] if following is not None else None,
                metrics=_numbers(reply.info),
            ),
            self.environment,
            self._opening,
            (*prompt.messages[len(self._opening) :], self._answer, *read),
        )

    def fail(self, error: BaseException, *, closes: bool = True) -> FinishedEpisode:
        """
        End the episode because of what its environment, its template or its response raised.

        Args:
            error (`BaseException`): What was raised.
            closes (`bool`, *optional*, defaults to `True`): Whether the environment is closed; else it is at work.
        """
        message = describe_error(error)
        if closes and self.environment is not None and (problem := close_environment(self.environment)):
            message += f" (and {problem})"
        return FinishedEpisode(self._trajectory(stop_reason=StopReason.ERROR, error=message))

    def _text_of_state(self, state: Any) -> str | None:
        if state is None or isinstance(state, str):
            return None if state is None else checked_text(state, 'The state (`info["state"]`)')
        if self._needs_states:
            raise TypeError(
                f'The state (`info["state"]`) is of the type {type(state).__name__}, not text. Turns that began in '
                "one state are compared, and texts tell states apart. Return a text that equal states share, or leave "
                '"state" out: the observation counts then.'
            )
        return None

    def _turn(self, prompt: Prompt, completion: Completion, reply: Reply) -> Turn:
        text = self._chat.content(completion.completion_ids)
        return Turn(
            prompt_ids=prompt.ids,
            completion_ids=completion.completion_ids,
            sampling_logprobs=completion.sampling_logprobs,
            observation=self._observation,
            completion=text,
            action=checked_text(str(reply.info.get("action", text)), 'The action (`info["action"]`)'),
            reward=reply.reward,
            penalty=float(reply.info.get("penalty", 0.0)),
            finish_reason=completion.finish_reason,
            state=self._state,
        )

    def _next_state(
        self, prompt: Prompt, completion: Completion, reply: Reply
    ) -> tuple[StopReason | None, Prompt | None]:
        """Why the episode ends with this turn, None where it goes on; and the prompt after it, where there is one."""
        ids = completion.completion_ids
        cut = completion.finish_reason == "length"
        unfinished = cut and bool(reply.info.get("answered"))  # a last answer in words that has no end
        out_of_tokens = unfinished or (cut and len(prompt.ids) + len(ids) == self._budget)
        stop = StopReason.of_reply(reply.terminated and not unfinished, reply.truncated, reply.info)
        if stop is None and out_of_tokens:
            stop = StopReason.CUT_RESPONSE
        has_next_state = stop is None or (stop.truncated and stop is not StopReason.CUT_RESPONSE)
        following = None
        if has_next_state and reply.messages:
            following = self._chat.follow(prompt, ids, self._answer, reply.messages)
        if stop is None and self._limits.max_turns is not None and len(self._turns) >= self._limits.max_turns:
            stop = StopReason.TURN_LIMIT
        if following is not None and len(following.ids) > self._budget:
            stop = stop or StopReason.OVERLONG
        elif following is not None and len(following.ids) == self._budget:
            stop = stop or StopReason.TOKEN_LIMIT
        return stop, following

    def _trajectory(self, **outcome: Any) -> Trajectory:
        """What was played so far, and how it ended."""
        return Trajectory(
            task=dict(self.plan.task),
            environment=self.plan.environment,
            seed=self.plan.seed,
            turns=tuple(self._turns),
            group=self.plan.group,
            **outcome,
        )


def _numbers(info: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of the last `info`: what metrics can average."""
    return {
        checked_text(name, "A name in `info`"): float(value)
        for name, value in info.items()
        if isinstance(name, str) and isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating))
    }
