# `make lab` opens the course, `make test` tests everything. `make help` lists the other commands.
# Everything is installed into .venv, in this folder; `make clean` removes it again.

VENV   := .venv
PY     := $(VENV)/bin/python
# The first Python of a supported version; to use another: `make lab PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11 python $(PY); do \
            "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo "$$p"; break; }; done)
# `make lab CPU=1`: torch without CUDA, a tenth of the download on Linux.
# `make setup WHEELS=wheelhouse`: without a network, from a folder made by `pip download`.
# PIP_OPTIONS: anything else that pip should be told, such as "--index-url https://mirror.example/simple".
SETUP   = $(if $(CPU),--cpu) $(if $(WHEELS),--wheels "$(WHEELS)") $(PIP_OPTIONS)
# nbval runs each notebook and compares its outputs with the stored ones, character by character.
NBVAL  := --nbval --nbval-current-env --nbval-cell-timeout 300 --nbval-sanitize-with tests/nbval.cfg
# The tests do not touch the progress of the person who runs them, and run the notebooks as they
# were built, whatever became of the files since. `make test LESSON=04` tests one lesson.
SHIPPED = home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && $(PY) -m minids course copy "$$home/lessons" $(LESSON)
PYTEST  = MINIDS_HOME="$$home" $(PY) -m pytest --rootdir . -c pyproject.toml
# One process for each core, see tests/workers.py; `make test WORKERS=` tests in a single one.
WORKERS = -p tests.workers -n logical --maxprocesses 12 --dist loadfile --no-loadscope-reorder
# ruff takes a second. `make test` runs the rest of `make lint` among the tests.
RUFF    = $(PY) -m ruff check . && \
          $(PY) -m ruff check --select F --ignore F401,F811 --config 'exclude=[]' notebooks/source

.DEFAULT_GOAL := help
.PHONY: help setup lab test test-fast test-all test-browser lessons lint bench bench-gpu clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s%s\n", $$1, $$2 }' Makefile

setup: ## create .venv and install the pinned packages, or repair what is there
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name one: make lab PYTHON=/path/to/python"; exit 2; }
	@"$(PYTHON)" minids/system/install.py $(SETUP)

lab: setup ## open the course in JupyterLab: make lab LESSON=07 ARGS="--no-browser"
	@$(PY) -m minids lab $(LESSON) $(ARGS)

test: setup ## lint, all tests, all notebooks; one lesson: make test LESSON=04
	@$(if $(LESSON),,$(RUFF))
	@$(SHIPPED) && $(PYTEST) $(NBVAL) $(if $(LESSON),tests/checks/test_checks_$(LESSON).py,$(WORKERS) tests) "$$home/lessons"

test-fast: setup ## the quick unit tests, without notebooks: about three minutes
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && $(PYTEST) $(WORKERS) -m "not slow" tests

test-all: test ## the same as test, then the teacher's edition: every solution must pass its check
	@export MINIDS_STRICT=1; $(SHIPPED) --solved && $(PYTEST) $(NBVAL) $(WORKERS) "$$home/lessons"

test-browser: setup ## a learner's day in JupyterLab, in headless Chromium: ten minutes
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -r tests/browser/requirements.txt
	@test -n "$(CHROMIUM)" || command -v chromium chromium-browser google-chrome >/dev/null || $(PY) -m playwright install chromium
	@$(PY) -m pytest --override-ini addopts= tests/browser

lessons: setup ## build both editions of all lessons, or of some: make lessons LESSONS="00 08"
	@$(PY) -m minids course build $(LESSONS)
	@$(PY) -m minids course lint

lint: setup ## check style (ruff), types (mypy, if it is configured) and lessons
	@$(RUFF)
	@! grep -q '^\[tool\.mypy\]' pyproject.toml || $(PY) -m mypy
	@$(PY) -m minids course lint

bench: setup ## benchmarks: run them on an otherwise idle machine
	@$(PY) -m pytest -s --override-ini addopts= tests/benchmarks

bench-gpu: setup ## is what a GPU computes right, and how fast is it: at most eight minutes
	@$(PY) tests/benchmarks/gpu.py $(ARGS)

clean: ## remove .venv and caches; notebooks, data, work and runs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	find notebooks teaching -name .ipynb_checkpoints -prune -exec rm -rf {} +
