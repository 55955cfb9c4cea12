"""Checkpoints that are read without running code and written atomically."""
