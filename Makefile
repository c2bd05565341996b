# Everything happens in .venv; a fresh machine needs Python 3.11 or newer, pip and make, nothing else.
# The newest that runs and is tried; `make PYTHON=...` takes another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do $$p -c 'import ensurepip, sys; \
  sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
SHELL := /bin/bash
unexport PYTHONDONTWRITEBYTECODE  # every process would compile every module again

.PHONY: venv train test beside tests test-rest test-slow durations bench lint types contracts wheel format clean

train: .venv/core  ## Train A3C on CartPole-v1 with two worker processes until solved
	$(BIN)/shoal train a3c --env CartPole-v1 --workers 2 --until solved

# Lint, types, contracts and wheel run beside pytest, which leaves a core idle whenever a test waits.
test: .venv/dev  ## All that a change must pass
	@said=$$(mktemp); $(MAKE) --no-print-directory --keep-going beside >$$said 2>&1 & beside=$$!; \
	  $(MAKE) --no-print-directory tests; tests=$$?; \
	  wait $$beside; others=$$?; cat $$said; rm -f $$said; exit $$((tests | others))

beside: lint types contracts wheel

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

contracts: .venv/dev  ## Imports point down
	$(BIN)/lint-imports

tests: .venv/dev  # compiled with few optimisations (tests/conftest.py), longest files first (tests/spread.py)
	MALLOC_ARENA_MAX=2 $(BIN)/pytest -n 2 --dist loadfile -m "not slow"

wheel: .venv/dev  ## The wheel builds, and works outside the checkout
	$(BIN)/python tests/smoke_wheel.py

test-rest: .venv/dev  ## What tests/slow.txt leaves out of `make test`: whole trainings, and more parameters
	MALLOC_ARENA_MAX=2 $(BIN)/pytest -n 2 --dist loadfile -m rest

test-slow: test-rest  ## The same, then learning runs of minutes; these compiled as a user's
	$(UV) -e '.[dev,families]' || $(PIP) -e '.[dev,families]'
	XLA_FLAGS= $(BIN)/pytest -m "slow and not rest" --timeout 1800

durations: .venv/dev  ## Measure anew how long every file of tests takes (tests/durations.json)
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow" --record-durations

bench: .venv/dev  ## Every benchmark; results are committed
	for name in hogwild on_device cartpole startup asynchrony async_scaling robustness linear pong map_propagation presets gorila engines_actor accerl several tune population pbt collaborative federation_threats consensus inversion membership dp_utility flower; do $(BIN)/shoal bench $$name --json benchmarks/results/$$name.json; done
	$(BIN)/python benchmarks/table.py

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv installs in parallel; where it cannot be had or finds no index, pip does the same more slowly.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python

venv:
	@test -n "$(PYTHON)" || { echo "Shoal needs Python 3.11, 3.12 or 3.13, and none of them is on the PATH"; exit 2; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

.venv/core: pyproject.toml
	@test -x $(BIN)/python || $(MAKE) --no-print-directory venv
	@echo "installing Shoal into .venv (about a minute the first time)"
	@$(PIP) -e .
	@touch $@

.venv/dev: pyproject.toml
	@test -x $(BIN)/python || $(MAKE) --no-print-directory venv
	@echo "installing Shoal and its test tools into .venv (about a minute the first time)"
	@$(PIP) uv && $(UV) -e '.[dev]' || $(PIP) -e '.[dev]'
	@touch $@ .venv/core

clean:
	rm -rf .venv .venv-bench build dist runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
