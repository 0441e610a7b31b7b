"""Metrics for Hugging Face's `evaluate`: folders that `evaluate.load` reads. Their maths are this package's own."""

from __future__ import annotations

from importlib.resources import files

AGENT_EPISODES = str(files("turnppo_hf.evaluation") / "agent_episodes")  # what `evaluate.load` takes
