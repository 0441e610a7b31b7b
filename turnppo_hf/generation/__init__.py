"""The sampler: token ids in, token ids and their log-probs out."""
