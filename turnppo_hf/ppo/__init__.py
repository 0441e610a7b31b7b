"""Maths: trajectories in, tensors, advantages and losses out; needs torch and no other framework."""
