# Everything runs in .venv, which `make` builds itself. `make PYTHON=python3.12 demo` takes another Python.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
DATASET_PACKAGE := dataset-fashion-mnist
TESTS := -n 2 --dist loadfile
FULL ?=

.DEFAULT_GOAL := help
.PHONY: help install data demo test test-all lint types format docs screenshots bench bench-search reference clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## Build .venv with everything that users and developers need

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3-venv; \
	    else echo "Python lacks its venv module: sudo apt-get install python3-venv"; exit 2; fi; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev]'
	@touch $@

data: install ## Find or download the images; from the system's dataset package where the download is out of reach
	@$(BIN)/fmnist-search data 2>/dev/null || { \
	    if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq $(DATASET_PACKAGE); \
	    else echo "The images cannot be downloaded; run: sudo apt-get install $(DATASET_PACKAGE)"; exit 2; fi; \
	    $(BIN)/fmnist-search data; }

demo: data ## Run a real search on real Fashion-MNIST (studies/quick.toml), some minutes on two cores
	$(BIN)/fmnist-search search studies/quick.toml

test: data ## Run the tests that take minutes
	$(BIN)/python -m pytest $(TESTS)

test-all: test ## Run the slow tests as well: servers, browsers, `mlflow run` in a fresh environment
	$(BIN)/python -m pytest $(TESTS) -m slow

lint: install ## Check style and the rooms' arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: install ## Check types
	$(BIN)/mypy

format: install ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## Write what is generated from the code: the schema and the keys of study files, the presets
	$(BIN)/fmnist-search studies schema > studies/schema.json
	$(BIN)/fmnist-search studies keys > docs/study-keys.md
	$(BIN)/fmnist-search models page > docs/models.md
	$(BIN)/fmnist-search models recipes studies/recipes

screenshots: demo ## Take the pictures of docs/mlflow.md anew, of the study of `make demo`; needs Chromium
	$(BIN)/python -m docs.screenshots

bench: data ## Measure speed against the usual script and loop, under 15 minutes on two cores; FULL=--full measures more
	$(BIN)/python -m benchmarks.throughput --save $(FULL)
	$(BIN)/python -m benchmarks.packing --save $(FULL)
	$(BIN)/python -m benchmarks.memory --save
	$(BIN)/python -m benchmarks.time_to_accuracy --save $(FULL)
	$(BIN)/python -m benchmarks.study --save $(FULL)
	$(BIN)/python -m benchmarks.report --write

bench-search: install ## Replay searches against recorded learning curves, and say which finds the best networks soonest
	$(BIN)/python -m benchmarks.curves replay

reference: data ## Train the published networks as their authors did; FULL=--full trains those as well that take a CPU days
	$(BIN)/python -m benchmarks.reference --save $(FULL)
	$(BIN)/python -m benchmarks.report --write

clean: ## Remove .venv and caches; studies and their results stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
