"""Tool calls go in, the texts that answer them come out: our environments as TRL's environment classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from turnppo_hf.environments.reading import check_options
from turnppo_hf.environments.sokoban.environment import RULES, Sokoban
from turnppo_hf.environments.webshop.environment import WebShop


class _Played:
    """An environment that tool methods play; what TRL offers to the model are the public methods of a subclass."""

    def __init__(self, environment: gymnasium.Env[str, str]) -> None:
        self._environment = environment
        self.rewards: list[float] = []  # of each tool call so far, format penalties included
        self.done = False
        self.state = ""  # the environment's own text for the state

    def get_reward(self) -> float:
        """Return what the episode has earned so far, for TRL's trainers; ours reads `rewards` turn by turn."""
        return sum(self.rewards)

    def _start(self, seed: int | None, row: Mapping[str, Any], **options: Any) -> str:
        check_options(row, ["seed", *options])
        given = {name: value for name, value in options.items() if value is not None}
        observation, info = self._environment.reset(seed=seed, options=given)
        self.rewards, self.done, self.state = [], False, info["state"]
        return observation

    def _act(self, answer: str) -> str:
        if self.done:
            raise ValueError("The episode is over. No further call counts.")
        observation, reward, terminated, truncated, info = self._environment.step(answer)
        self.rewards.append(float(reward) + float(info.get("penalty", 0.0)))
        self.done, self.state = terminated or truncated, info["state"]
        return observation


class SokobanTools(_Played):
    """
    Sokoban for `GRPOTrainer(environment_factory=SokobanTools)`, with the levels, rewards and limits of `Sokoban-v0`.

    A turn is one call of `move`. Unknown words cost the format penalty and a turn, as they do in `Sokoban-v0`.

    Args:
        kwargs: Arguments of [`~turnppo_hf.environments.sokoban.environment.Sokoban`].
    """

    def __init__(self, **kwargs: Any) -> None:
        self._sokoban = Sokoban(action_format="bare", **kwargs)
        super().__init__(self._sokoban)

    def reset(self, seed: int | None = None, level: Any = None, **row: Any) -> str:
        """Start the level of a dataset row: its `level`, or the one that its `seed` makes."""
        self._start(seed, row, level=level)
        most = self._sokoban.max_actions_per_turn
        return f"{RULES}Call move, with at most {most} directions at a time.\n\n{self._describe()}"

    def move(self, directions: str) -> str:
        """
        Walk on the board and push the boxes that are in the way.

        Args:
            directions: Up, Down, Left or Right, or several of them separated by spaces, walked in this order.

        Returns:
            The board afterwards, and how many directions are left.
        """
        self._act(directions)
        return self._describe()

    def _describe(self) -> str:
        left = f"You have {self._sokoban.actions_left} directions left."
        ending = "The episode is over." if self.done else left
        return f"{self._sokoban.state.render()}\n{ending}"


class WebShopTools(_Played):
    """
    WebShop for `GRPOTrainer(environment_factory=WebShopTools)`, with the shop, rewards and limits of `WebShop-v0`.

    A turn is one call of `search` or `click`. A click on what is not on the page costs the format penalty and a turn.

    Args:
        kwargs: Arguments of [`~turnppo_hf.environments.webshop.environment.WebShop`].
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(WebShop(action_format="bare", **kwargs))

    def reset(self, seed: int | None = None, goal: Any = None, **row: Any) -> str:
        """Start the wish of a dataset row: its `goal`, or the one that its `seed` draws."""
        page = self._start(seed, row, goal=goal)
        return f"You are shopping. Find what is wished for, choose its options and click on buy now.\n{page}"

    def search(self, query: str) -> str:
        """
        Search the shop.

        Args:
            query: Words that the product should have.

        Returns:
            The page with what was found.
        """
        return self._act(f"search[{query}]")

    def click(self, element: str) -> str:
        """
        Click on something that the page names.

        Args:
            element: What stands in the brackets of click[...] on the page, such as a product, an option or buy now.

        Returns:
            The page that opens.
        """
        return self._act(f"click[{element}]")
