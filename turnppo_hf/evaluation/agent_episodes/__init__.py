"""The folder of the metric `agent_episodes`, for `evaluate.load`."""
