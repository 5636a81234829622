# make demo: install and run the sweep.  make test: lint, types, tests.  Variables: PYTHON, TORCH_INDEX, SWEEP.
PYTHON ?= python3
# PyTorch's own CPU index (see its installation page), where the pinned build would otherwise bring CUDA
TORCH_INDEX ?=
SWEEP ?= --omega 0:5
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt \
       $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo install test lint types unit slow benchmarks clean

demo: install
	$(BIN)/python -m sims_toy.sweep $(SWEEP)

install: $(VENV)/installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints/cpu.txt
	$(PIP) -e .[fast]
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e .[dev]
	@touch $@

test: lint types unit

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

unit: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --cov --cov-report=term

slow: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --slow

benchmarks: $(VENV)/installed-dev
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/ensemble.py
	$(BIN)/python benchmarks/linear_response.py
	$(BIN)/python benchmarks/eta_collapse.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/metrics.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .coverage*
