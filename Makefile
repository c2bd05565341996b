# Everything happens in .venv; a fresh machine needs Python 3.11, pip and make, nothing else.
PYTHON ?= python3.11
BIN := .venv/bin
SHELL := /bin/bash

.PHONY: train test test-slow bench lint types contracts tests wheel format clean

train: .venv/core  ## Train A3C on CartPole-v1 with two worker processes until solved
	$(BIN)/shoal train a3c --env CartPole-v1 --workers 2 --until solved

test: .venv/dev lint types contracts tests wheel  ## All that a change must pass

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

contracts: .venv/dev  ## Imports point down
	$(BIN)/lint-imports

tests: .venv/dev  # programs are compiled with few optimisations: most of the time of a clean checkout is compiling
	XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/pytest -n 2 --dist loadfile -m "not slow"

wheel: .venv/dev  ## The wheel builds, and works outside the checkout
	$(BIN)/python tests/smoke_wheel.py

test-slow: .venv/dev  ## Learning runs of minutes
	$(BIN)/pytest -m slow

bench: .venv/dev  ## Every benchmark; results are committed
	for name in hogwild on_device cartpole startup asynchrony async_scaling robustness linear pong map_propagation presets gorila; do $(BIN)/shoal bench $$name --json benchmarks/results/$$name.json; done
	$(BIN)/python benchmarks/table.py

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/core: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing Shoal into .venv (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing Shoal and its test tools into .venv (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ .venv/core

clean:
	rm -rf .venv .venv-bench build dist runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
