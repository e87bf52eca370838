# PYTHON chooses the interpreter that the virtual environment is made with (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

ACTIONS ?= w-24,jw-24,none-12
DEMO ?= outputs/demo
PYTEST_FLAGS ?= -n 2 --dist loadfile

.PHONY: help demo test lint docs clean
.DEFAULT_GOAL := help

help:  ## these lines
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/' | expand -t 16

demo: $(VENV)/.installed  ## install, and drive a world: outputs/demo
	$(BIN)/lingbot-generate "actions=$(ACTIONS)" paths.output_dir=$(DEMO)

test: lint  ## lint, types and all tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev  ## the documentation: build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove what was built and driven
	rm -rf build dist outputs multirun *.egg-info .mypy_cache .pytest_cache .ruff_cache

# Stamps: installed once, again when the package's description or the pins change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt setuptools
	$(PIP) install --quiet --no-build-isolation -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt setuptools
	$(PIP) install --quiet --no-build-isolation -c constraints.txt -e ".[dev,docs,notebooks,sweeps,wandb]"
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
