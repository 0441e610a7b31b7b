"""Registers the environments with Gymnasium; a name and its arguments go in, a checked text environment comes out."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from turnppo_hf.environments.checker import check_environment
from turnppo_hf.environments.exits import failures_as_errors
from turnppo_hf.environments.integrations.adapt import adapt, check_text_environment
from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.environments.reading import check_arguments, creator_of
from turnppo_hf.redaction import check_unmasked, remember_secrets

if TYPE_CHECKING:
    from turnppo_hf.environments.integrations.trl_classes import SokobanTools, WebShopTools

__all__ = ["SokobanTools", "WebShopTools", "adapt", "check_environment", "full_id", "make_environment"]


def __getattr__(name: str) -> Any:
    # loaded at first use, so that the registration of the ids needs neither environment
    if name not in ("SokobanTools", "WebShopTools"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.integrations.trl_classes"), name)


def _register(name: str, entry_point: str, namespace: str = "turnppo_hf", **kwargs: Any) -> None:
    # Gymnasium's checker would refuse completions outside the sampled alphabet, and its order check is our own.
    gymnasium.register(
        f"{namespace}/{name}", entry_point, kwargs=kwargs, disable_env_checker=True, order_enforce=False
    )


_register("Sokoban-v0", "turnppo_hf.environments.sokoban.environment:Sokoban")
_register("SokobanLarge-v0", "turnppo_hf.environments.sokoban.environment:Sokoban", size=8, num_boxes=2)
_register("MiniGrid-v0", "turnppo_hf.environments.minigrid.environment:MiniGrid")
_register("TextWorld-v0", "turnppo_hf.environments.textworld.environment:TextWorld")
_register("WebShop-v0", "turnppo_hf.environments.webshop.environment:WebShop")
_register("Server-v0", "turnppo_hf.environments.integrations.openenv:OpenEnvSession", namespace="openenv")


def full_id(name: str) -> str:
    """Return the id that a short name stands for, such as `"turnppo_hf/WebShop-v0"` for `"webshop"`; others stay."""
    short = {known.removeprefix("turnppo_hf/").rpartition("-v")[0].lower(): known for known in _own_ids()}
    return short.get(name.lower(), name)


def default_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of one of our environments, with what they are where nothing is passed; {} of no id."""
    spec = gymnasium.registry.get(full_id(name))
    creator = None if spec is None else creator_of(spec.entry_point)
    if spec is None or creator is None:
        return {}
    return {**{name: item.default for name, item in inspect.signature(creator).parameters.items()}, **spec.kwargs}


def make_environment(name: str, **kwargs: Any) -> gymnasium.Env[str, str]:
    """
    Make an environment; the error for a wrong name or argument names the nearest one.

    Args:
        name (`str`):
            Gymnasium id, e.g. `"turnppo_hf/Sokoban-v0"` or, for one of ours, `"sokoban"`; `"module:id"` imports
            `module` first, which registers it. `"textarena/TowerOfHanoi-v0"` is a game of TextArena,
            `"openenv/Server-v0"` with the argument `server` an OpenEnv server.
        kwargs:
            Arguments of the environment's constructor.
    Returns:
        `gymnasium.Env`: without passive checker; with the `TimeLimit` its own registration asks for, if any.
    Raises:
        `ValueError`: unknown id or argument, or an argument's value is out of range.
        `TypeError`: observations or actions of the environment are no `gymnasium.spaces.Text`.
        [`~turnppo_hf.trajectory.EnvironmentFailedError`]: its code has a mistake, or would have ended the process.
    """
    check_unmasked(kwargs, "--environment_kwargs, or the arguments of make_environment")
    remember_secrets(kwargs)
    spec = find_environment(name, kwargs)
    with failures_as_errors(f"The environment {name!r}"):
        environment = gymnasium.make(spec, disable_env_checker=True, **kwargs)
        check_text_environment(environment, name)
    return environment


def find_environment(name: str, arguments: Iterable[str]) -> EnvSpec:
    """
    Find an environment's registration and check that it takes some arguments, without making it.

    Args:
        name (`str`): As of `make_environment`, which raises the same of a name and of an argument.
        arguments (`Iterable[str]`): Their names.
    """
    module, _, environment_id = full_id(name).rpartition(":")
    if module:
        try:
            with failures_as_errors(f"The module of the environment {name!r}", passing=(ModuleNotFoundError,)):
                importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"The module of the environment {name!r} cannot be imported: {error}. It is what registers the id. "
                "Install it, or correct the part before the colon."
            ) from error
    namespace, _, game = environment_id.rpartition("/")
    if namespace == "textarena" and environment_id not in gymnasium.registry:
        _register(game, "turnppo_hf.environments.integrations.textarena:TextArenaGame", namespace, game=game)
    spec = gymnasium.registry.get(environment_id)
    if spec is None:
        own = _own_ids()
        hint = did_you_mean(f"turnppo_hf/{environment_id.rpartition('/')[2]}", own, cutoff=0.8)
        hint = hint or did_you_mean(environment_id, gymnasium.registry)
        raise ValueError(
            f"Unknown environment {name!r}.{hint} No episode can be played without it. Registered here: "
            f"{', '.join(own)}; write 'module:id' for one that a module of yours registers."
        )
    with failures_as_errors(f"The environment {name!r}"):
        check_arguments(spec.id, spec.entry_point, arguments)
    return spec


def _own_ids() -> list[str]:
    return [known for known in gymnasium.registry if known.startswith("turnppo_hf/")]
