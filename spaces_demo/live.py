"""Who plays here, and in which world; a level or a wish in, the turns of an agent that plays it now, out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import gymnasium
from player import episode_view, read_replays
from shop import shop_page

from turnppo_hf.environments.webshop.environment import WebShop
from turnppo_hf.evaluation.replay import ending
from turnppo_hf.hub.agent_record import AgentRecord, resolve_environment
from turnppo_hf.hub.files import EMBEDDED_MODELS
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

if TYPE_CHECKING:
    from turnppo_hf.agent import TurnPPOAgent

SOKOBAN, SHOP, OTHER = "Sokoban", "WebShop", "other"
SYNTHETIC_NOTE = "A generated, synthetic shop: its scores compare with no published ones."

_WORLDS = {"turnppo_hf/Sokoban-v0": SOKOBAN, "turnppo_hf/SokobanLarge-v0": SOKOBAN, "turnppo_hf/WebShop-v0": SHOP}
_LOADING = threading.Lock()
_LOADED: dict[str, TurnPPOAgent] = {}


@dataclass(frozen=True)
class LiveAgent:
    """An agent that can play here, e.g. `LiveAgent("Turn-PPO (tiny)", "tiny-trained")`."""

    name: str
    model: str  # what TurnPPOAgent.from_pretrained takes; never a visitor's text
    revision: str | None = None


@dataclass(frozen=True)
class Limits:
    """What an episode of Sokoban has room for, e.g. `Limits(max_actions=12, moves_per_turn=2)`."""

    max_actions: int
    moves_per_turn: int


class StoppedError(Exception):
    """The visitor left, so the episode is not played to its end."""


def live_agents() -> dict[str, LiveAgent]:
    """Return who can play, by name: those in the package, after the one that the Space's owner names."""
    packaged = [
        LiveAgent("Turn-PPO", "tiny-trained"),
        LiveAgent("before training", "tiny"),
        LiveAgent("shopper before training", "tiny-webshop"),
    ]
    repo = os.environ.get("AGENT_REPO")
    if not repo:
        return {agent.name: agent for agent in packaged}
    taken = {*(agent.name for agent in packaged), *(replay.agent for replay in read_replays().values())}
    name = repo.rstrip("/").rpartition("/")[2]
    name = repo if name in taken else name  # else another's episodes would be shown as its own
    name = f"{repo} (yours)" if name in taken else name
    own = LiveAgent(name, repo, os.environ.get("AGENT_REVISION"))
    return {agent.name: agent for agent in [own, *packaged]}


def find_agent(name: object) -> LiveAgent:
    """
    Return the agent of a name.

    Raises:
        `ValueError`: there is none.
    """
    known = live_agents()
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"There is no agent {str(name)[:60]!r} on this page. Only the page's owner may add one. Choose one of "
            f"{', '.join(known)}."
        )
    return known[name]


def load_agent(name: str) -> TurnPPOAgent:
    """
    Load an agent once; visitors share it, as it keeps nothing of an episode.

    Raises:
        `ValueError`: there is none of that name.
    """
    chosen = find_agent(name)
    with _LOADING:
        if name not in _LOADED:
            from turnppo_hf.agent import TurnPPOAgent  # imports torch, which the Replay tab does without

            device = "cuda" if os.environ.get("SPACES_ZERO_GPU") else None
            _LOADED[name] = TurnPPOAgent.from_pretrained(chosen.model, revision=chosen.revision, device=device)
    return _LOADED[name]


def world_of(name: str) -> str:
    """
    Return `SOKOBAN`, `SHOP` or `OTHER`: where an agent plays.

    A world that cannot be built here is `OTHER`, too: there is nothing to choose in it, and playing says why.
    """
    agent = find_agent(name)
    world = _WORLDS.get(_record_of(agent).environment or "", OTHER)
    try:
        return world if world == OTHER or _environment_of(agent) else OTHER
    except ValueError:
        return OTHER


def new_world(name: str) -> Any:
    """
    Return the environment that an agent is judged in: what it reads and may answer, and how long it has.

    Raises:
        `ValueError`: there is no agent of that name, or its environment cannot be built here.
    """
    return _environment_of(find_agent(name))().unwrapped


def sokoban_agents() -> list[str]:
    """Return the agents that play Sokoban."""
    return [agent for agent in live_agents() if world_of(agent) == SOKOBAN]


def sokoban_agent(name: str = "") -> str:
    """
    Return the agent of a name that plays Sokoban, the first of them where none is named.

    Raises:
        `ValueError`: there is none of that name, or it plays something else.
    """
    if name:
        find_agent(name)
    players = sokoban_agents()
    chosen = name or players[0]
    if chosen not in players:
        raise ValueError(
            f"The agent {chosen!r} does not play Sokoban. It could not read the board. Choose one of "
            f"{', '.join(players)}."
        )
    return chosen


def limits_of(name: str) -> Limits:
    """Return what an episode of an agent that plays Sokoban has room for."""
    return _limits_of(find_agent(name))


@cache
def _limits_of(agent: LiveAgent) -> Limits:
    world = _environment_of(agent)().unwrapped
    turns = world.max_turns * world.max_actions_per_turn
    return Limits(min(world.max_actions, turns), world.max_actions_per_turn)


@cache
def _record_of(agent: LiveAgent) -> AgentRecord:
    if agent.model not in EMBEDDED_MODELS:
        return load_agent(agent.name).record
    return AgentRecord.from_folder(str(files("turnppo_hf") / "models" / EMBEDDED_MODELS[agent.model]))


@cache
def _environment_of(agent: LiveAgent) -> Callable[[], Any]:
    """Return what builds the agent's held-out environment."""
    if agent.model not in EMBEDDED_MODELS:
        return load_agent(agent.name).environment()[1]
    return resolve_environment(_record_of(agent), None, {}, model=agent.model, is_local=True)[1]


def play_live(
    name: str, seed: int, options: Mapping[str, Any] | None = None, temperature: float | None = None
) -> Iterator[dict[str, Any]]:
    """
    Play one episode and yield what the page draws: at once, after every turn, and when the critic has credited all.

    Args:
        name (`str`): One of `live_agents`.
        seed (`int`): Of the environment and the sampling.
        options (`Mapping`, *optional*): Of the environment's reset: `level` or `goal`.
        temperature (`float`, *optional*): 0 is greedy; by default the one that the agent was evaluated with.
    """
    agent = load_agent(name)
    gamma, _ = agent.record.turn_discounts
    environment, factory = agent.environment()
    if temperature is None:
        temperature = float(agent.record.evaluation.temperature or 0.0)
    steps: SimpleQueue[_Moment | None] = SimpleQueue()
    left = threading.Event()
    task = {**(options or {}), "seed": seed}
    watched = partial(_Watched, factory, agent, steps.put, left)
    is_synthetic = "WebShop" in environment and new_world(name).world.data.synthetic
    note = SYNTHETIC_NOTE if is_synthetic else ""

    def play() -> Trajectory:
        try:
            (trajectory,) = agent.play_tasks(watched, [task], temperature=temperature, name=environment)
            return agent.score([trajectory])[0]
        finally:
            steps.put(None)

    with ThreadPoolExecutor(max_workers=1) as worker:
        future = worker.submit(play)
        try:
            turns, pages = [], []
            while (moment := steps.get()) is not None:
                turns += [moment.turn] if moment.turn is not None else []
                pages += [moment.page] if moment.page is not None else []
                yield _running_view(name, environment, seed, turns, pages, moment, gamma, note)
            trajectory = future.result()
        finally:
            left.set()
    if trajectory.stop_reason is StopReason.ERROR:
        title, why = ending(trajectory)
        raise RuntimeError(f"{title}: {why}. {trajectory.error}")
    prompts = [agent.chat.tokenizer.decode(turn.prompt_ids) for turn in trajectory.turns]
    yield episode_view(trajectory, agent=name, gamma=gamma, prompts=prompts, pages=pages, note=note)


@dataclass(frozen=True)
class _Moment:
    """What is seen after a reset or a step."""

    observation: str
    page: dict[str, Any] | None  # of a shop
    turn: Turn | None  # that led here; None after the reset


class _Watched(gymnasium.Wrapper):
    """An environment that reports what happens in it while the rollout plays."""

    def __init__(
        self,
        factory: Callable[[], gymnasium.Env],
        agent: TurnPPOAgent,
        report: Callable[[_Moment], None],
        left: threading.Event,
    ) -> None:
        super().__init__(factory())
        self._agent, self._report, self._left = agent, report, left
        self._messages: list[dict[str, str]] = []

    def reset(self, **arguments: Any) -> tuple[str, dict[str, Any]]:
        observation, info = self.env.reset(**arguments)
        self._messages = [{"role": "user", "content": observation}]
        self._report(_Moment(observation, self._page(), None))
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._left.is_set():
            raise StoppedError("The visitor left, so the rest would not be seen. Start another episode.")
        seen = self._messages[-1]["content"]
        value = self._agent.values(self._messages)[-1] if self._agent.critic is not None else None
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._messages += [{"role": "assistant", "content": action}, {"role": "user", "content": observation}]
        turn = Turn(
            prompt_ids=(),
            completion_ids=(),
            sampling_logprobs=(),
            observation=seen,
            completion=action,
            action=str(info.get("action", action)),
            reward=float(reward),
            penalty=float(info.get("penalty", 0.0)),
            finish_reason="stop",
            value=value,
        )
        self._report(_Moment(observation, self._page(), turn))
        return observation, float(reward), terminated, truncated, info

    def _page(self) -> dict[str, Any] | None:
        inner = self.env.unwrapped
        return shop_page(inner.session) if isinstance(inner, WebShop) else None


def _running_view(
    name: str,
    environment: str,
    seed: int,
    turns: list[Turn],
    pages: list[dict[str, Any]],
    moment: _Moment,
    gamma: float,
    note: str,
) -> dict[str, Any]:
    """The episode so far and, as a last turn without action, what the agent looks at now."""
    waiting = Turn((), (), (), moment.observation, "", "", 0.0, 0.0, "stop")
    so_far = Trajectory({}, environment, seed, (*turns, waiting), StopReason.TURN_LIMIT)
    view = episode_view(so_far, agent=name, gamma=gamma, pages=pages, note=note, is_running=True)
    view["turns"][-1]["is_waiting"] = True
    return view
