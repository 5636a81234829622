# make demo: install and run the sweep.  make images: Algorithm 1 on real images.  make test: lint, types, tests.
# make docs: the site.  make gpu: what takes a GPU.  Variables: PYTHON, TORCH_INDEX, SWEEP, IMAGES, PICTURES, GPU, CARRY.
PYTHON ?= python3
# PyTorch's own CPU index (see its installation page), where the pinned build would otherwise bring CUDA
TORCH_INDEX ?=
SWEEP ?= --omega 0:5
FIGURES ?=
GPU ?=
CARRY ?=
# where `make images` works; it resumes where it was stopped
IMAGES ?= runs/images
# Fashion-MNIST's four .gz files
PICTURES ?= /usr/share/datasets/fashion-mnist
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt \
       $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo images install test lint types unit coverage slow gpu gpu-wheels benchmarks notebooks figures docs clean

demo: install
	$(BIN)/python -m sims_toy.sweep $(SWEEP)

images: install
	SIMS_IMAGE=$(BIN)/sims_image scripts/images_cpu.sh "$(PICTURES)" "$(IMAGES)"

install: $(VENV)/installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints/cpu.txt
	$(PIP) -e .[fast,features]
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e .[dev]
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed-dev
	$(PIP) -e .[docs]
	@touch $@

test: lint types unit

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

unit: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

# which lines the tests reach; tracing them makes the tests slower
coverage: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal --cov --cov-report=term

slow: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal --slow

# on any machine with torch and a CUDA device (docs/gpu.md): make gpu GPU="--minutes 9 --data PICTURES"
gpu:
	PYTHON=$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) scripts/gpu_check.sh $(GPU)

# what such a machine lacks: make gpu-wheels CARRY="PICTURES PEER"
gpu-wheels:
	PYTHON=$(PYTHON) scripts/gpu_wheels.sh $(CARRY)

notebooks: $(VENV)/installed-dev
	$(BIN)/python notebooks/execute.py

# the site, in build/site; what leads nowhere fails
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

figures: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python figures/make.py $(FIGURES)

benchmarks: $(VENV)/installed-dev
	$(BIN)/python benchmarks/table.py --run

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .coverage*
