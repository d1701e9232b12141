# `make demo` and `make test` need only python3 (3.11 or newer, with venv) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO := demo
DEMO_AUDIO := demo-audio

.PHONY: help demo demo-audio test lint gpu-check clean check-python

help:
	@echo "make demo        simulate genomes, train, evaluate, classify, draw (under 4 minutes)"
	@echo "make demo-audio  synthesise notes, train, generate, draw (under 3 minutes)"
	@echo "make test        set up .venv and run the tests"
	@echo "make lint        ruff, pyright, import-linter"
	@echo "make gpu-check   the tests marked gpu and the GPU benchmarks (CUDA, under 9 minutes)"
	@echo "make clean       remove .venv, $(DEMO) and $(DEMO_AUDIO)"

check-python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "mambakit needs Python 3.11 or newer; '$(PYTHON)' was not found. Install it, or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mambakit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }

$(BIN)/python: | check-python
	$(PYTHON) -m venv $(VENV)

# The tested versions; `make CONSTRAINTS= ...` takes the newest instead.
CONSTRAINTS ?= -c constraints.txt

$(VENV)/.install: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing mambakit into $(VENV) (PyTorch is large: this takes one to several minutes)" >&2
	$(PIP) install $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.install-test: $(VENV)/.install
	$(PIP) install $(CONSTRAINTS) -e '.[test,peers,tensorboard]'
	@touch $@

$(VENV)/.install-dev: $(VENV)/.install-test
	$(PIP) install $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: $(VENV)/.install
	$(BIN)/python -m mambapipelines demo --out $(DEMO)

demo-audio: $(VENV)/.install
	$(BIN)/python -m mambapipelines demo-audio --out $(DEMO_AUDIO)

test: $(VENV)/.install-test
	$(BIN)/python -m pytest -n auto --maxprocesses 8 $(PYTEST_ARGS)

lint: $(VENV)/.install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Runs in whatever Python holds a CUDA build of torch: make gpu-check GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
GPU_OUT ?= gpu-check
gpu-check:
	mkdir -p $(GPU_OUT)
	timeout 300 $(GPU_PYTHON) -m pytest -m gpu -q -n 4 --dist loadgroup --timeout 280
	timeout 90 $(GPU_PYTHON) kernels/bench/scan_gpu.py --out $(GPU_OUT)
	timeout 140 $(GPU_PYTHON) kernels/bench/model_gpu.py --out $(GPU_OUT)

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO_AUDIO)
