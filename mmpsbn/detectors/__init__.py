"""Detectors: built from configs, and run on images to compare them."""
