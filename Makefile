# Everything runs in .venv, which `make` builds. `make PYTHON=python3.12 demo` uses another Python.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
DATASET_PACKAGE := dataset-fashion-mnist
TESTS := --dist loadfile --no-loadscope-reorder
FULL ?=
REPLAY ?=

.DEFAULT_GOAL := help
.PHONY: help install data demo test test-all test-processes test-exhaustive lint types format docs screenshots bench bench-search reference clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## Build .venv with all packages for users and developers

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3-venv; \
	    else echo "Python lacks its venv module: sudo apt-get install python3-venv"; exit 2; fi; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev]'
	@touch $@

data: install ## Find or download the images, or install the system's dataset package if the download cannot be reached
	@$(BIN)/fmnist-search data 2>/dev/null || { \
	    if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq $(DATASET_PACKAGE); \
	    else echo "The images cannot be downloaded; run: sudo apt-get install $(DATASET_PACKAGE)"; exit 2; fi; \
	    $(BIN)/fmnist-search data; }

demo: data ## Run a real search on Fashion-MNIST (studies/quick.toml): some minutes on two cores
	$(BIN)/fmnist-search search studies/quick.toml

test: data ## Run the fast tests, which takes some minutes
	$(BIN)/python -m pytest -n 2 $(TESTS)

test-all: test ## Also run the slow tests: servers, browsers, killed processes, `mlflow run` in a new environment
	$(BIN)/python -m pytest -n 3 $(TESTS) -m "slow and not exhaustive" --durations=25  # these often wait for servers, so that two cores have work for three

test-processes: data ## Run the fast and slow tests of commands with each command in a process of its own, but for those marked in_process
	TEST_COMMANDS_IN_PROCESSES=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/integration -m "not exhaustive"

test-exhaustive: data ## Run the tests that repeat slow ones with more rounds, or time commands
	$(BIN)/python -m pytest -n 2 $(TESTS) -m exhaustive

lint: install ## Check style and the layers of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: install ## Check types
	$(BIN)/mypy

format: install ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## Write the files generated from the code: schema and keys of study files, pages and recipes of presets
	$(BIN)/fmnist-search studies schema > studies/schema.json
	$(BIN)/fmnist-search studies keys > docs/study-keys.md
	$(BIN)/fmnist-search models page > docs/models.md
	$(BIN)/fmnist-search models recipes studies/recipes

screenshots: demo ## Take the screenshots of docs/mlflow.md again, from the study of `make demo`; needs Chromium
	$(BIN)/python -m docs.screenshots

bench: data ## Measure speed against a typical script and training loop: under 15 minutes on two cores; FULL=--full measures more
	$(BIN)/python -m benchmarks.throughput --save $(FULL)
	$(BIN)/python -m benchmarks.packing --save $(FULL)
	$(BIN)/python -m benchmarks.memory --save
	$(BIN)/python -m benchmarks.time_to_accuracy --save $(FULL)
	$(BIN)/python -m benchmarks.study --save $(FULL)
	$(BIN)/python -m benchmarks.report --write

bench-search: install ## Replay searches on recorded learning curves, with seeds that chose no setting; REPLAY="--running 2" on two workers
	$(BIN)/python -m benchmarks.curves replay $(REPLAY)

reference: data ## Train the published networks as their authors did; FULL=--full includes those that take days on a CPU
	$(BIN)/python -m benchmarks.reference --save $(FULL)
	$(BIN)/python -m benchmarks.report --write

clean: ## Remove .venv and caches, but no studies or results
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
