# Plain venv and pip; nothing is installed outside .venv.
#
#   make demo                                     the main job on embedded data
#   make test                                     every test
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                                                 the smaller CPU build of PyTorch

PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= 2
PYTEST_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt
DECIDES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check bench docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 10

demo: .venv/.run ## train, quantize, export, verify and report on embedded data
	$(BIN)/bitsmith demo

test: .venv/.test ## every test, doctest and snippet of the documentation
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

check: .venv/.dev ## lint, format, types, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.test ## what it costs on this machine
	$(BIN)/python benchmarks/run.py

docs: .venv/.dev ## build site/, every warning an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove the environment and everything that was built
	rm -rf .venv site build dist bitsmith-demo src/*.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bitsmith needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.run: $(DECIDES) | .venv/bin/python
	$(PIP) -e .
	@touch $@

.venv/.test: $(DECIDES) | .venv/bin/python
	$(PIP) -e ".[openvino,test]"
	@touch $@ .venv/.run

.venv/.dev: $(DECIDES) | .venv/bin/python
	$(PIP) -e ".[dev]"
	@touch $@ .venv/.test .venv/.run
