"""The model card: facts of a run in, text and pictures out, merged with what its author wrote."""
