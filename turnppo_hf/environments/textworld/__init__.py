"""TextWorld's generated games: the environment, and the games, made once and kept in a folder."""

from turnppo_hf.environments.textworld.environment import TextWorld

__all__ = ["TextWorld"]
