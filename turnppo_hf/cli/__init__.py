"""The `turnppo` command: `main` dispatches, and each command has a module of its name."""
