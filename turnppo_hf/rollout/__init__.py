"""Episodes: environments and a sampler in, trajectories out."""
