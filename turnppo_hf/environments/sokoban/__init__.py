"""Sokoban as text: the environment, its rules, generated and published levels, and a solver."""

from turnppo_hf.environments.sokoban.environment import Sokoban

__all__ = ["Sokoban"]
