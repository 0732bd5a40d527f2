# Every target does its own set-up: .venv from the hash-locked files, once.
# PYTHON=python3.13 chooses the interpreter (3.11 or newer); WORKERS=N the number of workers.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
WORKERS ?= 2
NAMES ?=
UV ?= uv
PYTEST_ARGS ?=

VENV_PYTHON := .venv/bin/python
# The scripts of the two images have the same names, so mypy sees the worker's in a run of its own.
CODE := certs shared/common services/controller services/worker/jobcluster_worker tools tests bench
IMAGE_SCRIPTS := $(wildcard services/worker/*.py)
.DEFAULT_GOAL := help
.PHONY: help setup setup-run python demo start stop up down images test test-e2e test-limits nemesis bench certs proto lint types lock

help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

python:
	@$(if $(PYTHON),true,echo "Python 3.11 or newer (with venv) is needed: make PYTHON=…" >&2; exit 1)

setup: python ## .venv with all that development needs (done once)
	@$(PYTHON) tools/setup.py dev

setup-run: python
	@$(PYTHON) tools/setup.py run

demo: setup-run ## a controller and 2 workers as plain processes run real jobs over HTTP; nothing is left
	@$(VENV_PYTHON) -m tools.demo

start: setup-run ## the same cluster in the background: make start WORKERS=2; then `source build/env`
	@$(VENV_PYTHON) -m tools.cluster start --workers $(WORKERS)

stop: setup-run ## stops what `make start` started; jobs, tokens and worker ids are kept
	@$(VENV_PYTHON) -m tools.cluster stop

up: python ## the cluster in containers: make up WORKERS=3; then `source build/env`
	@$(PYTHON) -m tools.compose_env up --workers $(WORKERS)

down: python ## ends what `make up` started; jobs and tokens are kept
	@$(PYTHON) -m tools.compose_env down

images: ## builds the images of controller and worker
	@docker compose build

test: setup ## unit and integration tests, and e2e where a container engine answers (JOBCLUSTER_E2E=required: always)
	@$(VENV_PYTHON) -m tools.test_lanes $(PYTEST_ARGS)

test-e2e: setup ## compose.yaml with real containers; fails where no container engine answers
	@$(VENV_PYTHON) -m pytest tests/e2e $(PYTEST_ARGS)

test-limits: setup ## limits and isolation on a cgroup v2 kernel: this one, else one in user-mode Linux; LIMITS_N=200: more often
	@$(VENV_PYTHON) -m tests.limits.run $(PYTEST_ARGS)

nemesis: setup ## a load of jobs while servers are killed and frozen, then a checker; NEMESIS_SEED, NEMESIS_SECONDS
	@$(VENV_PYTHON) -m pytest tests/nemesis $(PYTEST_ARGS)

bench: setup ## measures beside bare baselines of the same run; bench/results/latest.jsonl and a table
	@$(VENV_PYTHON) -m bench

certs: setup-run ## CA, certificates and tokens in certs/out; NAMES=a,b adds names of the HTTPS port
	@$(VENV_PYTHON) certs/make_certs.py --names "$(NAMES)"

proto: setup ## generates the Python code of shared/proto in place
	@$(VENV_PYTHON) tools/generate_proto.py

types: setup ## mypy, strict, on code and tests
	@$(VENV_PYTHON) -m mypy $(CODE)
	@$(if $(IMAGE_SCRIPTS),$(VENV_PYTHON) -m mypy $(IMAGE_SCRIPTS))

lint: setup types ## generated code up to date, ruff, mypy, the arrows between the rooms
	@$(VENV_PYTHON) tools/generate_proto.py --check
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@.venv/bin/lint-imports

lock: setup-run ## makes the hash-locked files anew with uv: make lock UV=/path/to/uv
	@$(VENV_PYTHON) tools/lock.py --uv $(UV)
