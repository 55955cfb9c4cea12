"""Repeated finetuning: a network that is trained on one task after another."""
