# Each target sets up what it needs: a virtual environment in $(VENV) and, where it may, Debian packages.
# `make PYTHON=python3.13 VENV=.venv313 test` tries another interpreter.

PYTHON ?= python3
VENV ?= .venv
# More than the cores: tests of processes mostly wait.
TEST_WORKERS ?= 4
# More arguments for pytest, as in: make pytest ARGS="tests/core -x"
ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin

# Tests start hundreds of interpreters: without files of byte code each of them would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo docs test lint format types pytest bench install clean distclean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(VENV)/.demo  ## Watch four gunicorn workers share five connections while processes are killed
	$(BIN)/mppool demo $(DEMO_ARGS)

test: lint types pytest  ## Everything that CI runs

lint: $(VENV)/.test  ## ruff, its formatter, and the layers between modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg

format: $(VENV)/.test  ## Write the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.test  ## mypy --strict
	$(BIN)/mypy --strict mppool

pytest: $(VENV)/.test  ## The tests alone
	$(BIN)/python -m compileall -q mppool tests benchmarks
	$(BIN)/pytest -n $(TEST_WORKERS) $(ARGS)

docs: $(VENV)/.docs  ## The documentation as a site, in build/site; warnings are errors
	$(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/.bench  ## Figures beside those of other pools, measured in one run
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

install: $(VENV)/.test  ## Only the virtual environment with everything for development

clean:  ## Remove what tools have left, but not the virtual environment
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .tox *.egg-info
	find mppool tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## The same, and the virtual environment
	rm -rf $(VENV)

# A stamp for each target: pip runs again only when pyproject.toml changed. Groups of dependencies need pip 25.1.
PIP := $(BIN)/python -m pip install --quiet
FEATURES := sqlalchemy,django,psycopg,asyncpg,aioodbc,mssql,odbc,azure,cli,prometheus,opentelemetry,redis,demo

$(VENV)/.demo: pyproject.toml $(BIN)/python
	tools/system-packages demo
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.test: pyproject.toml $(BIN)/python
	tools/system-packages test
	$(PIP) 'pip>=25.1'
	$(PIP) --editable '.[$(FEATURES)]' --group test
	touch $@

$(VENV)/.docs: pyproject.toml $(BIN)/python
	$(PIP) 'pip>=25.1'
	$(PIP) --editable '.[sqlalchemy,psycopg,mssql,odbc,azure,prometheus,opentelemetry]' --group docs
	touch $@

$(VENV)/.bench: pyproject.toml $(BIN)/python
	$(PIP) 'pip>=25.1'
	$(PIP) --editable '.[sqlalchemy,psycopg,asyncpg]' --group bench
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "mppool needs Python 3.10 or newer: make PYTHON=<interpreter> ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/system-packages venv
	$(PYTHON) -m venv $(VENV)
