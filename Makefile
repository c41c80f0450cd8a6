# Every target makes the virtual environment it needs; nothing but Python >= 3.11 and make has to be there.
# A mirror or a folder of wheels is chosen as for any pip: PIP_INDEX_URL, PIP_FIND_LINKS or pip.conf.
#
#   make demo ARGS=--json               options for the command behind a target
#   make check PYTHON=/opt/bin/python3  another interpreter

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that is new enough; looked for only while .venv is made.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# From fast to slow, so that what is broken shows early.
TESTS := tests/unit tests/property tests/conformance tests/hygiene tests/e2e tests/chaos
ARGS ?=

.PHONY: help
help: ## Say what each target does.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 14

.PHONY: demo
demo: $(STAMP) ## Defer, run, kill and recover real work on this machine.
	$(BIN)/adjourn demo $(ARGS)

.PHONY: test
test: $(STAMP) ## Run every test, the fast ones first (under 10 minutes).
	$(BIN)/python -m pytest $(TESTS) $(ARGS)

.PHONY: check
check: $(STAMP) ## Lint, check types, run the unit tests and the examples of the docs (under a minute).
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build
	$(BIN)/python proto/generate.py --image build/api.binpb
	$(BIN)/buf lint build/api.binpb --config proto/buf.yaml --path adjourn/v1
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit tests/hygiene

.PHONY: bench
bench: $(STAMP) ## Measure throughput, latency, memory; figures go to build/bench.json.
	@mkdir -p build
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: proto
proto: $(STAMP) ## Generate client/adjourn/v1 from proto/.
	$(BIN)/python proto/generate.py

# No index host may stand in a lock: where packages come from is the business of who installs them.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-annotate --no-header --no-emit-package adjourn

.PHONY: lock
lock: $(STAMP) ## Write requirements/ anew from pyproject.toml; ARGS=--upgrade takes newer releases.
	$(LOCK) pyproject.toml --extra dev --output-file requirements/dev.txt $(ARGS)
	$(LOCK) pyproject.toml --extra service --constraint requirements/dev.txt --output-file requirements/service.txt
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		| $(LOCK) - --constraint requirements/dev.txt --output-file requirements/build.txt

.PHONY: clean
clean: ## Remove the virtual environment and everything that was built.
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find client service tests proto -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: adjourn needs Python 3.11 or newer, and none was found;" \
		"install one or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "make: adjourn needs Python 3.11 or newer," \
		"and $(PYTHON) is not; name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@
