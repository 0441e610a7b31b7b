"""Environments of others made playable: Gymnasium, TRL classes and tools, OpenEnv, TextArena."""
