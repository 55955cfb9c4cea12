"""Repeated finetuning of a detector, on one task after another."""
