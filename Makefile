# `make lab` opens the course, `make test` tests everything. `make help` lists the other commands.
# Everything is installed into .venv, in this folder; `make clean` removes it again.

VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
# The first Python of a supported version; to use another: `make lab PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11 python; do \
            "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo "$$p"; break; }; done)
# `make lab CPU=1`: torch without CUDA, a tenth of the download on Linux.
PIP_OPTIONS := $(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu)
# nbval runs each notebook and compares its outputs with the stored ones, character by character.
NBVAL  := --nbval --nbval-current-env --nbval-cell-timeout 300 --nbval-sanitize-with tests/nbval.cfg
# The tests do not touch the progress of the person who runs them, and run the notebooks as they
# were built, whatever became of the files since. `make test LESSON=04` tests one lesson.
SHIPPED = home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && $(PY) -m minids course copy "$$home/lessons" $(LESSON)
PYTEST  = MINIDS_HOME="$$home" $(PY) -m pytest --rootdir . -c pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help setup lab test test-fast test-all lessons lint bench clean

help: ## print this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## create .venv and install the pinned packages

$(READY): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name one: make lab PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments (no ensurepip)."; \
	  echo "On Debian and Ubuntu: sudo apt install python3-venv. Or name another Python: make lab PYTHON=/path/to/python"; exit 2; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version), once: the download of torch takes minutes on a slow line ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@start=$$(date +%s); \
	  $(PY) -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -r requirements.txt && \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e . && \
	  echo "Ready after $$(( $$(date +%s) - start )) s; $(VENV) takes $$(du -sh $(VENV) | cut -f1)."
	@touch $@

lab: $(READY) ## open the course in JupyterLab (ARGS="--no-browser" and the like are passed on)
	@$(PY) -m jupyterlab --ServerApp.root_dir=. notebooks/00_start_here.ipynb $(ARGS)

test: $(if $(LESSON),$(READY),lint) ## lint, all tests, all notebooks; one lesson: make test LESSON=04
	@$(SHIPPED) && $(PYTEST) $(NBVAL) $(if $(LESSON),tests/checks/test_checks_$(LESSON).py,tests) "$$home/lessons"

test-fast: $(READY) ## the quick unit tests, without notebooks: two to four minutes
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && $(PYTEST) -m "not slow" tests

test-all: test ## the same as test, then the teacher's edition: every solution must pass its check
	@export MINIDS_STRICT=1; $(SHIPPED) --solved && $(PYTEST) $(NBVAL) "$$home/lessons"

lessons: $(READY) ## build both editions of all lessons, or of some: make lessons LESSONS="00 08"
	@$(PY) -m minids course build $(LESSONS)
	@$(PY) -m minids course lint

lint: $(READY) ## check style (ruff), types (mypy, if it is configured) and lessons
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff check --select F --ignore F401,F811 --config 'exclude=[]' notebooks/source
	@! grep -q '^\[tool\.mypy\]' pyproject.toml || $(VENV)/bin/mypy
	@$(PY) -m minids course lint

bench: $(READY) ## benchmarks: run them on an otherwise idle machine
	@$(PY) -m pytest -s --override-ini addopts= tests/benchmarks

clean: ## remove .venv and caches; notebooks, data and runs/ stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	find notebooks teaching -name .ipynb_checkpoints -prune -exec rm -rf {} +
