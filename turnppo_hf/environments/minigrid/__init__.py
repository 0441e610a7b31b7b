"""MiniGrid and BabyAI as text: the environment, the package's worlds, what is shown of them, and players."""

from turnppo_hf.environments.minigrid.environment import MiniGrid

__all__ = ["MiniGrid"]
