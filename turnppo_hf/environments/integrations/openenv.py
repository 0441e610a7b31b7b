"""The URL or a client of an OpenEnv server goes in; a Gymnasium environment, one session an episode, comes out."""

from __future__ import annotations

import functools
import json
import string
import time
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gymnasium
import httpx2
from gymnasium.error import ResetNeeded

from turnppo_hf.environments.conversation import TRUNCATIONS
from turnppo_hf.environments.reading import read_end

try:
    from openenv.core import EnvClient, GenericEnvClient, SyncEnvClient
    from pydantic import TypeAdapter
    from websockets.exceptions import ConnectionClosed
except ImportError as error:
    raise ImportError(
        f"OpenEnv cannot be imported ({error}), so its environments cannot be played. Install it with "
        '`pip install "turnppo-hf[openenv]"`.'
    ) from error

_Result = TypeVar("_Result")

_LOST = (ConnectionError, ConnectionClosed, EOFError)
_NOT_SHOWN = ("done", "reward", "metadata")  # fields of an observation that are not what the model reads
_RETRY_S, _LONGEST_RETRY_S = 0.5, 4.0  # the pause doubles: hundreds that wait leave the server time to start
_SCHEMA_TIMEOUT_S = 10.0
_SCHEMES = ("http://", "https://", "ws://", "wss://")


class OpenEnvSession(gymnasium.Env[str, str]):
    """
    ## Description
    An environment behind an OpenEnv server (https://github.com/huggingface/OpenEnv), played through its client.
    `environment_factory=lambda: EchoEnv(base_url="http://localhost:8000")` is adapted to it, and
    `make_environment("openenv/Server-v0", server="http://localhost:8000")` makes one without the client's package.

    Every episode is a session of its own: `reset` opens one, the end closes it, and nothing is left of an earlier
    episode.

    ## Action Space
    `Text`: what the model wrote. It becomes the only text field of the server's action, or what `parse_action` makes
    of it.

    ## Observation Space
    `Text`: the only field of the server's observation, or all of them, one a line, or what `render` makes of it.
    `done`, `reward` and `metadata` are not shown.

    ## Rewards
    The server's reward of the step; none counts as 0.

    ## Starting State
    The server's. It gets the seed and the options; it ignores what it has no argument for.

    ## Episode End
    Terminated when the server returns `done`, unless its metadata name a `truncation` (see Information). A server that
    is restarted, or a connection that breaks, loses the session's state; the episode cannot go on from it, and
    playing the actions again would only lead to the same state where everything depends on the seed. `step` therefore
    raises `ConnectionError`, which ends this episode as an error. The next `reset` opens a new session, and waits for
    the server if it has to.

    ## Information
    The metadata of the server's observation. `solved`, `penalty`, `action`, `state` and `truncation` mean what they
    mean in the environments of this package, which `turnppo openenv-serve` serves with them.

    ## Arguments
        server (`str` or `openenv.core.EnvClient`):
            URL of a server, or a client that is not connected; needed. Its `message_timeout_s` limits a step.
        parse_action (`Callable[[str], Any]`, *optional*):
            Makes the client's action of whatever text the model wrote.
        render (`Callable[[Any], str]`, *optional*):
            Makes the text that the model reads of the client's observation.
        patience_s (`float`, *optional*, defaults to `60.0`):
            Seconds that a session may take to open: while the server restarts or is full.
    """

    def __init__(
        self,
        server: Any = None,
        parse_action: Callable[[str], Any] | None = None,
        render: Callable[[Any], str] | None = None,
        patience_s: float = 60.0,
    ) -> None:
        self._client = _client_of(server)
        self.patience_s = patience_s
        self._parse_action = parse_action or self._text_action()
        self._render = render or text_of_observation
        self._session: object | None = None  # the connection that holds the episode's state
        self.observation_space = gymnasium.spaces.Text(1 << 20, min_length=0, charset=string.printable)
        self.action_space = gymnasium.spaces.Text(1 << 16, min_length=0, charset=string.printable)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """
        Opens a session and starts an episode in it.

        Raises:
            `ConnectionError`: no session could be opened within `patience_s`.
            `RuntimeError`: the server's own error, or an episode that is over before its first turn.
        """
        super().reset(seed=seed)
        given = {name: value for name, value in (options or {}).items() if value is not None}
        if seed is not None:
            given["seed"] = seed
        result = self._patiently(lambda: self._open(given))
        if self._is_over(result):
            self._end_session()
            raise RuntimeError(
                f"The OpenEnv server {self._client.base_url} returned `done` after reset({given}). There is no turn "
                "to play. Give the server a task that is not over."
            )
        return self._render(result.observation), _metadata(result)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """
        Plays one turn.

        Raises:
            `gymnasium.error.ResetNeeded`: the episode is over or not begun.
            `ConnectionError`: the session was lost, and the episode with it.
            `TimeoutError`: the server took longer than the client's `message_timeout_s`.
            `RuntimeError`: the server's own error.
            `TypeError`: its `done` is no truth value.
        """
        if self._session is None:
            raise ResetNeeded("There is no session, so it takes no step. Call `reset()` to open one.")
        session, self._session = self._session, None
        message = self._parse_action(action)
        try:
            result = self._client.step(message)
        except TimeoutError:
            raise
        except Exception as error:
            if isinstance(error, _LOST) or self._connection() is not session:
                raise self._lost() from error
            raise
        # the client opens a connection anew where it finds it closed, and steps an environment that was not reset
        if self._connection() is not session:
            raise self._lost()
        self._session = session
        info = _metadata(result)
        is_over = self._is_over(result)
        is_cut = is_over and info.get("truncation") in TRUNCATIONS
        if is_over:
            self._end_session()
        reward = 0.0 if result.reward is None else float(result.reward)
        return self._render(result.observation), reward, is_over and not is_cut, is_cut, info

    def close(self) -> None:
        """Closes the session and the client's own thread."""
        self._session = None
        self._client.close()

    def _is_over(self, result: Any) -> bool:
        told = f"The OpenEnv server {self._client.base_url} returned `done` as"
        return read_end(told, result.done, "Let it return true or false.")

    def _open(self, given: Mapping[str, Any]) -> Any:
        self._end_session()
        self._client.connect()
        result = self._client.reset(**given)
        self._session = self._connection()
        return result

    def _end_session(self) -> None:
        self._session = None
        self._client.disconnect()

    def _connection(self) -> object | None:
        # the only trace of a new connection that OpenEnv 0.10 leaves; to be replaced once it reports one itself
        connection: object | None = self._client.async_client._ws
        return connection

    def _lost(self) -> ConnectionError:
        return ConnectionError(
            f"The session with the OpenEnv server {self._client.base_url} was lost, and the state of the episode with "
            "it; the server was stopped or restarted, or the connection broke. The episode ends here; the next one "
            "opens a new session."
        )

    def _patiently(self, call: Callable[[], _Result]) -> _Result:
        """Call again while the server cannot be reached or is full, up to `patience_s`."""
        deadline, pause = time.monotonic() + self.patience_s, _RETRY_S
        while True:
            try:
                return call()
            except (*_LOST, httpx2.TransportError, RuntimeError) as error:
                is_full = "CAPACITY_REACHED" in str(error)
                if isinstance(error, RuntimeError) and not is_full:
                    raise
                if time.monotonic() + pause > deadline:
                    advice = (
                        "It has no session left: raise its `max_concurrent_envs` to the number of episodes that are "
                        "played at a time."
                        if is_full
                        else "Start it, or correct the URL; `patience_s` is the time to wait for it."
                    )
                    raise ConnectionError(
                        f"The OpenEnv server {self._client.base_url} opened no session within {self.patience_s:g} s "
                        f"({error}). {advice}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY_S)

    def _text_action(self) -> Callable[[str], Any]:
        """Find the text field of the action: in the client's type, or where it has none in the server's schema."""
        action_type = _action_type(type(self._client.async_client))
        if action_type is None:
            schema = self._patiently(lambda: _served_action_schema(str(self._client.base_url)))
            field = _text_field(schema, f"the server {self._client.base_url}")
            return lambda text: {field: text}
        field = _text_field(TypeAdapter(action_type).json_schema(), action_type.__name__)
        return lambda text: action_type(**{field: text})


def _client_of(server: Any) -> SyncEnvClient[Any, Any, Any]:
    if isinstance(server, str) and server.startswith(_SCHEMES):
        server = GenericEnvClient(base_url=server)
    if isinstance(server, EnvClient):
        return server.sync()
    if isinstance(server, SyncEnvClient):
        return server
    raise ValueError(
        f"`server` is {server!r:.80}, neither the address of an OpenEnv server nor a client of one, so no session "
        'could be opened. Give an address such as "http://localhost:8000".'
    )


@functools.cache  # of a URL, as a run opens hundreds of sessions with one server; failures are not kept
def _served_action_schema(base_url: str) -> Mapping[str, Any]:
    """Ask a server what its actions are made of."""
    url = f"{base_url.replace('ws', 'http', 1) if base_url.startswith('ws') else base_url}/schema"
    reply = httpx2.get(url, timeout=_SCHEMA_TIMEOUT_S)
    if reply.status_code != httpx2.codes.OK:
        raise TypeError(
            f"{url} answers with {reply.status_code} and does not describe an action of this server. The model's "
            "text cannot become one. Pass OpenEnvSession(client, parse_action=...), or the server's own client."
        )
    try:
        schema = reply.json()["action"]
    except (ValueError, KeyError, TypeError):  # no JSON, or another server's
        schema = None
    if not isinstance(schema, Mapping):
        raise TypeError(
            f"{url} answers, but not with the schema of an action, so it is no OpenEnv server, and nothing can be "
            "played there. Correct the address."
        )
    return schema


def text_of_observation(observation: Any) -> str:
    """
    Returns what a model reads of an OpenEnv observation.

    Args:
        observation (`Any`): Text, a mapping, a dataclass or a pydantic model.
    Returns:
        `str`: its only field, or all fields but `done`, `reward` and `metadata`, one a line.
    """
    if isinstance(observation, str):
        return str(observation)
    fields = {name: value for name, value in _fields(observation).items() if name not in _NOT_SHOWN}
    if len(fields) == 1:
        return _shown(*fields.values())
    return "\n".join(f"{name}: {_shown(value)}" for name, value in fields.items())


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _fields(observation: Any) -> Mapping[str, Any]:
    if isinstance(observation, Mapping):
        return observation
    if hasattr(observation, "model_dump"):
        return dict(observation.model_dump())
    return dict(vars(observation))


def _metadata(result: Any) -> dict[str, Any]:
    metadata = result.metadata
    if metadata is None and not isinstance(result.observation, str):
        metadata = _fields(result.observation).get("metadata")
    return dict(metadata or {})


def _action_type(client_type: type[Any]) -> type[Any] | None:
    """Return the `A` of a client that is declared as `EnvClient[A, ...]`, unless it is a mapping."""
    for parent in client_type.__mro__:
        for base in getattr(parent, "__orig_bases__", ()):
            action_type, *_ = typing.get_args(base) or (None,)
            origin = typing.get_origin(base)
            if isinstance(origin, type) and issubclass(origin, EnvClient) and isinstance(action_type, type):
                return None if typing.get_origin(action_type) or issubclass(action_type, dict) else action_type
    return None


def _text_field(schema: Mapping[str, Any], owner: str) -> str:
    """
    Find the field that a model's text goes to.

    Raises:
        `TypeError`: there is none, there are several, or others are needed as well.
    """
    fields = {name: field for name, field in schema.get("properties", {}).items() if name != "metadata"}
    texts: list[str] = [name for name, field in fields.items() if field.get("type") == "string"]
    needed = [name for name in schema.get("required", ()) if name in fields]
    if len(texts) > 1:
        texts = [name for name in texts if name in needed]
    if len(texts) != 1 or set(needed) - set(texts):
        raise TypeError(
            f"An action of {owner} has the fields {', '.join(fields) or '(none)'}, and the model writes one text. It "
            "is not clear what belongs where. Return OpenEnvSession(client, parse_action=...) from the environment "
            "factory; the function gets the text and returns the action."
        )
    return texts[0]
