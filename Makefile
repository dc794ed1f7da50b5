# The one door to everything: `make` shows what there is.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# More than two cores have: a test that waits for its processes leaves them to another. What never waits gains nothing by a third.
WORKERS ?= 3
test-unit: WORKERS = 2
TESTS ?=

# The tests start the real parts themselves, once for all workers (tests/support/parts.py); the benchmarks are given theirs.
PYTEST := $(BIN)/pytest -q --asyncio-debug
WITH_STACK := $(BIN)/python -m kalshibook_tools.stack exec --home $(VENV)/bench-stack --

.DEFAULT_GOAL := help
.PHONY: help setup up down status reset demo migrate test test-unit test-integration test-e2e bench lint fmt types check lock wheel

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2} /^##@/ {print "\n" substr($$0, 5)}' $(MAKEFILE_LIST)

##@ Run
setup: $(STAMP) ## Install everything needed into .venv, Kafka's jars, and MinIO for the tests where Go is; nothing is started
	@[ -n "$$KB_KAFKA_BROKERS" ] || $(BIN)/python -m kalshibook_tools.stack classes
	@$(BIN)/python -m tests.support.s3

up: $(STAMP) ## Run everything here until Ctrl-C; ARGS="…" goes to `kb up`
	@exec $(BIN)/kb up $(ARGS)

down: $(STAMP) ## Stop what `make up` started elsewhere
	@$(BIN)/kb down $(ARGS)

status: $(STAMP) ## Tell what runs and which gaps there are
	@$(BIN)/kb status $(ARGS)

reset: $(STAMP) ## Remove all recorded state (asks first)
	@$(BIN)/kb reset $(ARGS)

migrate: $(STAMP) ## Bring the database up to date
	@$(BIN)/kb migrate $(ARGS)

demo: $(STAMP) ## Start detached and ask the first question; `make down` ends it
	@$(BIN)/kb up --detach $(ARGS)
	@$(BIN)/kb status --json | $(BIN)/python -c 'import json, sys; s = json.load(sys.stdin); print(s["gateway"]["url"] + "/v1/markets?limit=3", s["demo_key"])' \
	  | { read -r url key; echo; curl -sS -H "X-API-Key: $$key" "$$url"; echo; }

##@ Check
test: setup lint types ## Lint, types and every test; needs no Docker
	@$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(or $(TESTS),tests)

test-unit: $(STAMP) ## The tests that need no network
	@$(PYTEST) -n $(WORKERS) --dist loadfile $(or $(TESTS),tests/unit)

test-integration: setup ## One service at a time, on the real broker, database and cache
	@$(PYTEST) -n $(WORKERS) --dist loadfile $(or $(TESTS),tests/integration tests/contract)

test-e2e: $(STAMP) ## The whole pipeline, as its users see it
	@$(PYTEST) $(or $(TESTS),tests/e2e)

lint: $(STAMP) ## Style, and who may import whom
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet . && $(BIN)/lint-imports --no-cache

fmt: $(STAMP) ## Bring the code into form
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

types: $(STAMP) ## mypy --strict
	@$(BIN)/mypy

check: test wheel ## Everything that must hold before a merge

bench: $(STAMP) ## Measure; prints a table and writes benchmarks/latest.json
	@$(WITH_STACK) $(BIN)/python -m benchmarks $(ARGS)

##@ Package
wheel: $(STAMP) ## Build the wheel into dist/
	@$(BIN)/hatchling build -t wheel

lock: ## Pin every dependency with its hashes (needs uv)
	@UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --quiet --universal --generate-hashes --no-annotate --no-emit-index-url \
	  --python-version 3.11 --all-extras -o requirements.lock pyproject.toml

# uv where it is there or can be had by pip, plain pip otherwise. The lock's hashes are checked either way.
$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
	  for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
	    $$candidate -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python=$$candidate && break; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "error: no Python 3.11 or later on the path: install one, or make setup PYTHON=/its/path" >&2; exit 1; \
	  fi; \
	  echo "making $(VENV) with $$($$python --version)"; \
	  $$python -m venv --without-pip $(VENV) || { echo "error: $$python cannot make a venv: install its venv module" >&2; exit 1; }; \
	fi; \
	if command -v uv >/dev/null; then uv=uv; \
	elif $(BIN)/python -m ensurepip >/dev/null 2>&1 && $(BIN)/python -m pip install --quiet uv 2>/dev/null; then uv=$(BIN)/uv; \
	fi; \
	echo "installing what requirements.lock pins"; \
	if [ -n "$$uv" ]; then \
	  install="$$uv pip install --quiet --python $(BIN)/python"; \
	else \
	  install="$(BIN)/python -m pip install --quiet --disable-pip-version-check"; \
	fi; \
	$$install --require-hashes -r requirements.lock; \
	$$install --no-deps --no-build-isolation --editable .; \
	[ -n "$$KB_KAFKA_BROKERS" ] || $(BIN)/python -c 'import sys; from kalshibook_tools import stack; \
	  sys.excepthook = lambda kind, error, _: print("error:", error, file=sys.stderr); stack.fetch_kafka(print)'; \
	touch $@
