# One task runner. `make run` and `make test` need only Python 3.11-3.13, make and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SUITE ?= suites/quickstart.yaml
KERNELS := $(wildcard lmopt/arch/*.cpp lmopt/arch/*.h)

.PHONY: run test test-slow test-gpu check format docs audit clean

run: $(VENV)/.installed
	$(BIN)/lmbench run $(SUITE)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "slow and not gpu"

# On a machine with a CUDA device: the same numbers as on the CPU, the counts, decoding, a whole study.
test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('torch sees no CUDA device: lmbench doctor says why')"
	$(BIN)/python -m pytest -q -m gpu

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_docs.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(KERNELS)

docs: $(VENV)/.installed-dev
	LMBENCH_UPDATE_DOCS=1 $(BIN)/python -m pytest -q tests/test_docs.py -k documented

# Asks a public database about every pinned version: needs a network, so no test depends on it. Where nothing answers,
# `make audit AUDIT=--tolerate-silence` says so and passes, as continuous integration does.
AUDIT ?=
audit: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip-audit
	$(BIN)/python .ci/audit.py $(AUDIT)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: a range would pull gigabytes of CUDA packages onto a machine without a GPU.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pdf]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pdf,dev,hf,ray,slurm,mlflow,tensorboard,wandb]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
