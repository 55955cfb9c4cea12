from setuptools import setup

setup()  # The settings are in pyproject.toml.
