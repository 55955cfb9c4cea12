"""Timings and comparisons, run from the root of the repository."""
