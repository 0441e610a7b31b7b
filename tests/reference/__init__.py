"""Slow, obvious Python straight from the formulas, on lists of floats. Imports nothing of the package under test."""
