"""The name of a panel in, what it is made of out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from turnppo_hf.environments import full_id
from turnppo_hf.environments.names import did_you_mean

FIRST_SEED = 1_000_000  # of the held-out levels, as everywhere
_NOT_OF_THE_TASK = ("render_mode", "levels", "data", "num_products", "split", "split_by")


@dataclass(frozen=True)
class PanelSpec:
    """How a panel is made."""

    about: str  # in a few words
    environment: str  # short name, as `make_environment` takes it
    environment_kwargs: Mapping[str, Any] = field(default_factory=dict)  # where they differ from the environment's own
    num_tasks: int = 256  # at most
    max_turn_length: int = 512  # tokens of one answer
    drawn_from: Mapping[str, Any] = field(default_factory=lambda: {"split": "test"})  # arguments for drawing the tasks
    num_products: int | None = None  # of WebShop's own files, which are needed then

    @property
    def environment_id(self) -> str:
        """The Gymnasium id."""
        return full_id(self.environment)

    def arguments(self) -> dict[str, Any]:
        """Return all arguments that shape an episode, defaults written out: a later default changes no panel."""
        spec = gymnasium.spec(self.environment_id)
        creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        defaults = {name: item.default for name, item in inspect.signature(creator).parameters.items()}
        named = {**defaults, **spec.kwargs, **self.environment_kwargs}
        if not named.get("repeat_rules"):
            named.pop("repeat_rules", None)  # it came after the first panels, whose checksums stay
        return {name: value for name, value in named.items() if name not in _NOT_OF_THE_TASK}


_BARE = {"action_format": "bare"}
_BABY = {"max_actions_per_turn": 4, "max_turns": 20}
PANELS = {
    "sokoban_6x6": PanelSpec("Sokoban, 6x6 cells, one box, up to five moves a turn", "sokoban"),
    "sokoban_8x8": PanelSpec("Sokoban, 8x8 cells, two boxes, up to five moves a turn", "sokobanlarge"),
    "sokoban_one_move": PanelSpec(
        "Sokoban, 6x6 cells, one box, one move a turn", "sokoban", {"max_actions_per_turn": 1, "max_turns": 10}
    ),
    "sokoban_5x5_bare": PanelSpec(
        "Sokoban, 5x5 cells, one box, bare words for small vocabularies such as tiny-trained's",
        "sokoban",
        {"size": 5, "max_actions_per_turn": 2, "max_turns": 6, "max_actions": 12, **_BARE},
        num_tasks=100,
        max_turn_length=8,
    ),
    "webshop_1000": PanelSpec(
        "WebShop's test goals in the shop of its 1,000 products", "webshop", num_tasks=500, num_products=1000
    ),
    "webshop_generated": PanelSpec(
        "the generated, synthetic shop", "webshop", drawn_from={"split": "test", "split_by": "product"}
    ),
    "webshop_generated_bare": PanelSpec(
        "the generated, synthetic shop, bare words for small vocabularies such as tiny-webshop's",
        "webshop",
        {"max_turns": 6, **_BARE},
        max_turn_length=24,
        drawn_from={"split": "test", "split_by": "product"},
    ),
    "minigrid_doorkey_8x8": PanelSpec(
        "MiniGrid's DoorKey, 8x8 cells",
        "minigrid",
        {"env_id": "MiniGrid-DoorKey-8x8-v0", "max_steps": 64, **_BABY},
        num_tasks=128,
    ),
    "minigrid_multiroom": PanelSpec(
        "MiniGrid's MultiRoom of two rooms",
        "minigrid",
        {"env_id": "MiniGrid-MultiRoom-N2-S4-v0", "max_steps": 40, **_BABY},
        num_tasks=128,
    ),
    "minigrid_go_to_local": PanelSpec(
        "BabyAI's GoToLocal, seen in sentences",
        "minigrid",
        {"env_id": "BabyAI-GoToLocal-v0", "observation": "sentences", "view": "full", "max_steps": 64, **_BABY},
        num_tasks=128,
    ),
}


def find_spec(name: str) -> PanelSpec:
    """
    Return the panel of a name.

    Raises:
        `ValueError`: there is none.
    """
    if name not in PANELS:
        raise ValueError(
            f"There is no panel {name!r}.{did_you_mean(name, PANELS)} No tasks belong to the name. The panels are "
            f"{', '.join(PANELS)}."
        )
    return PANELS[name]
