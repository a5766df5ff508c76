# The commands for developers. They need Python 3.11 or newer (with venv) and make; the rest comes from the lock.

PYTHON ?= python3
ARGS   ?=

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo run test quick cover durations mutate vulnerabilities sbom lint format types bench bench-compare fuzz soak docs pictures grafana wheel wheel-check deb check lock clean

BIN   := .venv/bin
READY := .venv/.ready

CORE := poller/core/errors.py,poller/core/damage.py,poller/core/gaps.py,poller/core/events.py,poller/core/answers.py,poller/core/entries.py,poller/core/identity.py,poller/core/times.py,poller/core/windows.py,poller/core/density.py,poller/core/delivery.py,poller/core/reading.py,poller/core/narrowing.py,poller/core/sifting.py,poller/core/outages.py,poller/core/mapping/*,poller/core/evidence/*
# Tests mostly wait, so more of them than processors run in parallel. The workers begin with the longest tests, and tests that
# share a fixture stay in one worker (tests/order.py). A worker that dies ends the run, because a new one would never get work.
# `make test WORKERS=0`: one after the other.
WORKERS ?= 8
SIDE_BY_SIDE := --numprocesses=$(WORKERS) --dist=loadscope --no-loadscope-reorder --max-worker-restart=0

# If Python keeps no compiled files, each worker compiles all tests again: ten seconds of processor time each.
unexport PYTHONDONTWRITEBYTECODE

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
    echo "ionos-poller needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -n 1)." >&2; \
    echo "Name another one: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),setup)" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
    echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
endef

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## .venv with the locked development environment

# Made again if the lock changed, so that it has the packages of the lock and no others.
.venv/.locked: requirements-dev.lock
	$(CHECK_PYTHON)
	@echo "Making .venv from requirements-dev.lock ..."
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

$(READY): .venv/.locked pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## try the whole program on this machine, without an account
	@$(BIN)/ionos-poller demo

run: $(READY) ## run the daemon from this checkout: make run ARGS="--config my.toml"
	@$(BIN)/ionos-poller $(ARGS) run

test: $(READY) ## all tests, as fast as possible
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(COVER)

quick: $(READY) ## only tests that take less than a second each: a result in a few minutes
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --quick $(ARGS)

PAGES := --cov-report=html
cover: COVER = --cov --cov-report=term $(PAGES)
cover: test ## all tests with minimum coverage (one for all code, 100 % for the core); pages in htmlcov/
	$(BIN)/coverage report --include='$(CORE)' --fail-under=100

durations: $(READY) ## measure the time of each test, for the order of tests and for docs/testing.md
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --record-durations
	$(BIN)/python -m tests.order

mutate: $(READY) ## put small mistakes into each module, one at a time, and list those that no unit test finds: make mutate ARGS="pipeline sinks"
	$(BIN)/python -m tests.mutation $(ARGS)

sbom: $(READY) ## dist/: the list of packages in the image, with licences and hashes, as CycloneDX
	$(BIN)/python -m tests.sbom requirements.lock dist

vulnerabilities: $(READY) ## known vulnerabilities of the locked packages; says so if it cannot check
	$(BIN)/python -m tests.vulnerabilities requirements-dev.lock

lint: $(READY) ## style and security rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## fix style problems that can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

bench: $(READY) ## benchmarks: ratios against a bare loop
	$(BIN)/python -m tests.benchmarks $(ARGS)

fuzz: $(READY) ## property tests with two hundred times as many examples: make fuzz ARGS="-k hostile"
	$(BIN)/python -m pytest -q tests/property --hypothesis-profile=fuzz $(ARGS)

soak: $(READY) ## the fault harness for hours, with a report: make soak ARGS="--kills 1000"
	$(BIN)/python -m tests.faults $(ARGS)

bench-compare: $(READY) ## two saved results side by side: make bench-compare OLD=a.json NEW=b.json
	$(BIN)/python -m tests.benchmarks --compare $(OLD) $(NEW)

docs: $(READY) ## write docs/configuration.md and man/ from the model and the commands
	$(BIN)/python -m tests.generate_docs

pictures: $(READY) ## make docs/pictures/ (demo, status, tail and the page); needs Chromium: make pictures ARGS="--minutes 60"
	$(BIN)/python -m tests.pictures $(ARGS)

grafana: $(READY) ## write the dashboards and alert rules in grafana/ from their source
	$(BIN)/python -m grafana

wheel: $(READY) ## dist/: the sdist, and the wheel built from it
	@rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

wheel-check: wheel ## install the wheel in a fresh venv and use it
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.wheel_check dist

deb: wheel ## dist/: a package for the Debian or Ubuntu of this machine
	packaging/build-deb dist/*.whl $(BIN)/pip dist

check: PAGES :=
check: lint types vulnerabilities cover wheel-check sbom ## what CI runs

COMPILE := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-config \
    --custom-compile-command "make lock"

# Three locks: for the image, for building its wheel, and for development, which includes both.
# uv is outside of .venv, so that a lock that cannot be installed can still be replaced.
lock: ## lock the newest versions within our bounds, for Python 3.11 and newer, with hashes
	$(CHECK_PYTHON)
	@$(PYTHON) -m venv --clear build/lock
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.13,<0.14'
	$(COMPILE) --upgrade pyproject.toml --group dev --no-strip-extras --output-file requirements-dev.lock
	$(COMPILE) --constraint requirements-dev.lock pyproject.toml --extra firehose --extra setup --extra otlp --extra kafka --extra archive --extra postgres --output-file requirements.lock
	$(COMPILE) --constraint requirements-dev.lock --group build --output-file requirements-build.lock

clean: ## delete all that make made; state/ stays
	rm -rf .venv build dist htmlcov mutants .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
