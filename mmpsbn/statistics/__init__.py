"""Confidence intervals and tables of results. They need no other package of ours."""

__all__: list[str] = []
