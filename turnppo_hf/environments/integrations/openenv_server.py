"""An environment goes in; a server of OpenEnv's own library that plays it, one session a client, comes out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

try:
    from fastapi import FastAPI
    from openenv.core.env_server import Action, Environment, Observation, State, create_app
except ImportError as error:
    raise ImportError(
        f"OpenEnv's server cannot be imported ({error}), so nothing can be served. Install it with "
        '`pip install "turnppo-hf[openenv]"`.'
    ) from error

from turnppo_hf.environments.exits import exits_as_errors


class TextAction(Action):  # type: ignore[misc]
    """What the model wrote. `TextAction(text="<answer>Up</answer>")`."""

    text: str


class TextObservation(Observation):  # type: ignore[misc]
    """What the model reads next; `metadata` is the environment's `info`."""

    text: str


class ServedEnvironment(Environment[TextAction, TextObservation, State]):  # type: ignore[misc]
    """
    A text environment behind OpenEnv's interface.

    `done` is terminated or truncated; `metadata["truncation"]` is which, as `step` of the environment does.

    Args:
        make (`Callable[[], gymnasium.Env]`): Makes the environment.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, make: Callable[[], gymnasium.Env[str, str]]) -> None:
        super().__init__()
        with exits_as_errors("The environment"):
            self._environment = make()
        self._state = State()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> TextObservation:
        """Starts an episode; other arguments than OpenEnv's are the environment's options."""
        with exits_as_errors("The environment's reset()"):
            text, info = self._environment.reset(seed=seed, options=options or None)
        self._state = State(episode_id=episode_id or str(uuid.uuid4()))
        return TextObservation(text=text, metadata=_plain(info))

    def step(self, action: TextAction, timeout_s: float | None = None, **_: Any) -> TextObservation:
        """Plays one turn."""
        with exits_as_errors("The environment's step()"):
            text, reward, terminated, truncated, info = self._environment.step(action.text)
        self._state.step_count += 1
        if truncated and not terminated:
            info = {"truncation": "time_limit", **info}
        done = terminated or truncated
        return TextObservation(text=text, reward=float(reward), done=done, metadata=_plain(info))

    @property
    def state(self) -> State:
        """The episode's id and how many turns were played."""
        return self._state

    def close(self) -> None:
        """Closes the environment."""
        with exits_as_errors("The environment's close()"):
            self._environment.close()


def openenv_app(name: str, make: Callable[[], gymnasium.Env[str, str]], max_sessions: int = 256) -> FastAPI:
    """
    Makes OpenEnv's server of an environment.

    Args:
        name (`str`): What it is called.
        make (`Callable[[], gymnasium.Env]`): Makes the environment of one session.
        max_sessions (`int`, *optional*, defaults to `256`): Clients at a time.
    Returns:
        `FastAPI`: the application, with OpenEnv's routes.
    """

    def make_served() -> ServedEnvironment:
        return ServedEnvironment(make)

    return create_app(make_served, TextAction, TextObservation, env_name=name, max_concurrent_envs=max_sessions)


def serve(name: str, make: Callable[[], gymnasium.Env[str, str]], host: str, port: int, max_sessions: int) -> None:
    """
    Serves an environment until it is interrupted.

    Args:
        name, make, max_sessions: See `openenv_app`.
        host (`str`): Every client that reaches it may play.
        port (`int`): Where to listen.
    """
    import uvicorn

    uvicorn.run(openenv_app(name, make, max_sessions), host=host, port=port, access_log=False)


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold of it; NumPy's numbers and arrays become Python's."""
    plain: dict[str, Any] = json.loads(json.dumps(info, default=lambda item: getattr(item, "tolist", item.__str__)()))
    return plain
