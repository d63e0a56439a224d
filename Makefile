# Two commands on a fresh machine: `make demo` and `make test`. Both make their own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

.PHONY: demo dashboard test test-all bench check format docs clean

# torch first: its range keeps pip from picking a newer release with other accelerator packages.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.8,<2.14"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)  ## search on the embedded default, print the front and the next commands
	$(BIN)/autopeft search

dashboard: $(STAMP)  ## look at it
	$(BIN)/autopeft dashboard

test: $(STAMP)  ## everything but the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m "not slow"

test-all: $(STAMP)  ## the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)

bench: $(STAMP)  ## what packing saves against solo runs and HF Trainer; about an hour on two cores
	$(BIN)/python benchmarks/packing.py --record bench.jsonl --json bench.json

check: $(STAMP)  ## lint, format, types, layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)  ## regenerate docs/cli.md and docs/methods.md
	$(BIN)/python -m autopeft.cli.reference > docs/cli.md
	$(BIN)/python -m autopeft.cli.methods_page > docs/methods.md

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
