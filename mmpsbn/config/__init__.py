"""Configs: read, completed, and checked together with the data they name."""
