# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell for v in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$v -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$v; break; }; done)
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo bench test check lint reasoner clean

demo: .venv/installed
	@$(BIN)/mrsa demo $(if $(PUZZLE_SEED),--puzzle-seed $(PUZZLE_SEED))

# The comparison of the README on the embedded reasoner, a quarter of an hour; BENCH="--limit 5" for a taste.
bench: .venv/measured
	$(BIN)/mrsa bench countdown $(BENCH)

test: .venv/tested
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow"

check: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4

lint: .venv/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed; set PYTHON=/path/to/it." >&2; exit 1; fi
	@if [ -n "$(UV)" ]; then uv venv --quiet --allow-existing --python "$(PYTHON)" .venv; else "$(PYTHON)" -m venv .venv; fi

# Exact versions come from constraints.txt, ranges from pyproject.toml.
define install
	@echo "Installing $(1) ..."
	@if [ -n "$(UV)" ]; then VIRTUAL_ENV=.venv uv pip install --quiet -c constraints.txt -e "$(1)"; \
	  else $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$(1)"; fi
endef

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.[serve])
	@touch $@

.venv/measured: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.[bench])
	@touch $@

.venv/tested: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.[test])
	@touch $@ .venv/installed .venv/measured

# Train the embedded model from scratch (see training/README.md). The same command continues after a break.
reasoner: .venv/bin/python
	$(call install,.[train])
	$(BIN)/python -m training.run

clean:
	rm -rf .venv
