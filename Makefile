# `make demo` and `make test` work on a fresh machine: they make .venv, install into it once, then run.
VENV ?= .venv
PYTHON ?= $(shell .ci/find-python 3.11 3.12 3.13)
WORKERS ?= 2
# A file of exact versions to install, as .ci/run does with the lower bounds.
CONSTRAINTS ?=
BIN := $(VENV)/bin
# -qq: pip prints errors only.
PIP = $(BIN)/python -m pip --quiet --quiet --no-input --disable-pip-version-check
INSTALL = $(PIP) install $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) -e

# The solver's loops are compiled once per machine; here, so that the first plan does not wait for it.
WARM = $(BIN)/python -c "from passes.solve import warm_up; warm_up()"

.PHONY: demo test test-rules test-full lint bench clean

demo: $(VENV)/.demo-installed
	$(BIN)/parallelizer demo

test: lint
	$(BIN)/python -m pytest -q -n $(WORKERS)

# Every rule in every legal assignment of mesh axes, on three drawn examples of each primitive (about ten minutes).
test-rules: $(VENV)/.test-installed
	TESTS=full $(BIN)/python -m pytest -q -n $(WORKERS) tests/rules

# What `make test` draws from, whole: every rule as above, every model of the zoo on both meshes.
test-full: lint
	TESTS=full $(BIN)/python -m pytest -q -n $(WORKERS)

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test-installed
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" --json; done

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis plan.html

$(BIN)/python:
	@test -n "$(PYTHON)"
	@echo "Making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv "$(VENV)"

$(VENV)/.demo-installed: pyproject.toml | $(BIN)/python
	@echo "Installing parallelizer for the demo into $(VENV)"
	@$(INSTALL) .
	@$(WARM)
	@touch $@

$(VENV)/.test-installed: pyproject.toml | $(BIN)/python
	@echo "Installing parallelizer and its test tools into $(VENV) (a few minutes the first time)"
	@$(INSTALL) ".[test]"
	@$(WARM)
	@touch $@ $(VENV)/.demo-installed
