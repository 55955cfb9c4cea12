# make demo   set up, train and evaluate a psBN detector, show its detections
# make test   set up, run all tests
#
# Another Python (3.10 to 3.12): make PYTHON=python3.12 demo

PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && echo $$python && break; done)

.PHONY: demo test setup

demo: setup
	@.venv/bin/python tools/demo.py

test: setup
	@.venv/bin/python -m pytest

setup:
	@test -n "$(PYTHON)" || { echo "No Python 3.10, 3.11 or 3.12 was found; install one (Debian: apt install python3 python3-venv python3-dev)."; exit 1; }
	@$(PYTHON) tools/setup_env.py
