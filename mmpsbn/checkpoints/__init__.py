"""Checkpoints: read without running code, compared with models, written whole."""
