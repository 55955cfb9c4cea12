# make demo        set up, train and evaluate a psBN detector, show its detections
# make test        set up, run all tests
# make test-STACK  the same with another file of requirements/stacks
# make quick       set up, run the tests that take less than about 5 seconds
# make coverage    set up, run all tests, report the lines that no test ran
# make lint        check style, docstrings, spelling, imports and types
# make docs        set up, build the documentation into build/site (Python >= 3.11)
#
# Another Python (3.10 to 3.12): make PYTHON=python3.12 demo

export STACK ?= default
VENV = $(if $(filter default,$(STACK)),.venv,.venv-$(STACK))

PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && echo $$python && break; done)

.PHONY: demo test quick coverage lint format docs setup

demo: setup
	@$(VENV)/bin/python tools/demo.py

PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: setup
	@$(PYTEST)

quick: setup
	@$(PYTEST) -m 'not slow'

coverage: setup
	@$(PYTEST) --cov --cov-report=term

test-%:
	@$(MAKE) --no-print-directory test STACK=$*

lint:
	@test -x .venv-lint/bin/ruff || $(PYTHON) -m venv .venv-lint
	@.venv-lint/bin/python -m pip install -q --disable-pip-version-check -r requirements/lint.txt
	@.venv-lint/bin/ruff check .
	@.venv-lint/bin/ruff format --check --quiet . || { echo "Not formatted; run: make format"; exit 1; }
	@.venv-lint/bin/codespell -D - -D .codespell.txt .
	@! grep -rnEif .phrases.txt --include='*.md' --include='*.py' --include='*.ipynb' --include='*.txt' --include='*.toml' --include='*.sh' --include=Makefile --exclude='.*.txt' --exclude-dir='.venv*' --exclude-dir=build --exclude-dir=data --exclude-dir=work_dirs . || { echo "Use the words of PyTorch's documentation instead."; exit 1; }
	@.venv-lint/bin/lint-imports --no-logo > .venv-lint/imports.log || { cat .venv-lint/imports.log; exit 1; }
	@.venv-lint/bin/mypy $(if $(wildcard $(VENV)/bin/python),--python-executable $(VENV)/bin/python)

format:
	@.venv-lint/bin/ruff check -q --select I --fix .
	@.venv-lint/bin/ruff format -q .

docs: setup
	@$(VENV)/bin/python -m pip install -q --no-deps -r requirements/docs.txt
	@$(VENV)/bin/python -m mkdocs build --strict

setup:
	@test -n "$(PYTHON)" || { echo "No Python 3.10, 3.11 or 3.12 was found; install one (Debian: apt install python3 python3-venv python3-dev)."; exit 1; }
	@$(PYTHON) tools/setup_env.py
