"""What the pictures of runs and episodes are made of: colors for two themes, text that stays in its place, a board."""
