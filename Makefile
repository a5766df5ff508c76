# Everything a developer does here. Needs Python 3.11 or newer (with venv) and make; the rest comes from the lock.

PYTHON ?= python3
ARGS   ?=

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo run test quick cover durations mutate vulnerabilities sbom lint format types bench bench-compare fuzz soak docs pictures grafana wheel wheel-check deb check lock clean

BIN   := .venv/bin
READY := .venv/.ready

CORE := poller/core/errors.py,poller/core/damage.py,poller/core/gaps.py,poller/core/events.py,poller/core/answers.py,poller/core/entries.py,poller/core/identity.py,poller/core/times.py,poller/core/windows.py,poller/core/density.py,poller/core/delivery.py,poller/core/reading.py,poller/core/narrowing.py,poller/core/sifting.py,poller/core/outages.py,poller/core/mapping/*,poller/core/evidence/*
# Tests wait more than they work, so that more of them than there are processors run side by side. The workers take the longest
# first, and what shares a fixture stays together (tests/order.py). A worker that dies ends the run: a new one
# would wait for work for ever. `make test WORKERS=0`: one after the other.
WORKERS ?= 8
SIDE_BY_SIDE := --numprocesses=$(WORKERS) --dist=loadscope --no-loadscope-reorder --max-worker-restart=0

# Where Python keeps nothing of what it has compiled, each worker prepares all tests anew: ten seconds of processor time each.
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

# Made anew whenever the lock changed, so that it holds what the lock says and nothing else.
.venv/.locked: requirements-dev.lock
	$(CHECK_PYTHON)
	@echo "Making .venv from requirements-dev.lock ..."
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

$(READY): .venv/.locked pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## the whole thing on this machine, no account needed
	@$(BIN)/ionos-poller demo

run: $(READY) ## the daemon from this checkout: make run ARGS="--config my.toml"
	@$(BIN)/ionos-poller $(ARGS) run

test: $(READY) ## all tests, as fast as they go
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(COVER)

quick: $(READY) ## those of them that take less than a second each: an answer in a few minutes
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --quick $(ARGS)

PAGES := --cov-report=html
cover: COVER = --cov --cov-report=term $(PAGES)
cover: test ## the same with the coverage floors: one for all, and all of the core; pages to browse in htmlcov/
	$(BIN)/coverage report --include='$(CORE)' --fail-under=100

durations: $(READY) ## what each test takes, for the order in which they run and for docs/testing.md
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --record-durations
	$(BIN)/python -m tests.order

mutate: $(READY) ## small mistakes put into each module, one at a time: which does no unit test find? make mutate ARGS="pipeline sinks"
	$(BIN)/python -m tests.mutation $(ARGS)

sbom: $(READY) ## dist/: what the image installs, with licences and hashes, in CycloneDX's form
	$(BIN)/python -m tests.sbom requirements.lock dist

vulnerabilities: $(READY) ## known ones in what the lock names; says so where it cannot ask
	$(BIN)/python -m tests.vulnerabilities requirements-dev.lock

lint: $(READY) ## style and security rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## mend what can be mended without thinking
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

bench: $(READY) ## ratios against a bare loop
	$(BIN)/python -m tests.benchmarks $(ARGS)

fuzz: $(READY) ## property tests on two hundred times as many examples: make fuzz ARGS="-k hostile"
	$(BIN)/python -m pytest -q tests/property --hypothesis-profile=fuzz $(ARGS)

soak: $(READY) ## the fault harness for hours, with a report: make soak ARGS="--kills 1000"
	$(BIN)/python -m tests.faults $(ARGS)

bench-compare: $(READY) ## two saved results side by side: make bench-compare OLD=a.json NEW=b.json
	$(BIN)/python -m tests.benchmarks --compare $(OLD) $(NEW)

docs: $(READY) ## docs/configuration.md and man/, from the model and the commands
	$(BIN)/python -m tests.generate_docs

pictures: $(READY) ## docs/pictures/: demo, status, tail and the page at work; needs Chromium: make pictures ARGS="--minutes 60"
	$(BIN)/python -m tests.pictures $(ARGS)

grafana: $(READY) ## grafana/: dashboards and alert rules, from their source beside them
	$(BIN)/python -m grafana

wheel: $(READY) ## dist/: the sdist, and the wheel built from it
	@rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

wheel-check: wheel ## install that wheel in a fresh venv and use it
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.wheel_check dist

deb: wheel ## dist/: a package for the Debian or Ubuntu that this runs on
	packaging/build-deb dist/*.whl $(BIN)/pip dist

check: PAGES :=
check: lint types vulnerabilities cover wheel-check sbom ## what CI runs

COMPILE := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-config \
    --custom-compile-command "make lock"

# Three locks: what the image installs, what builds its wheel, and what development needs, which holds both.
# uv lives outside .venv: a lock that does not install must not keep itself from being mended.
lock: ## newest versions our bounds allow, for Python 3.11 and up, with hashes
	$(CHECK_PYTHON)
	@$(PYTHON) -m venv --clear build/lock
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.13,<0.14'
	$(COMPILE) --upgrade pyproject.toml --group dev --no-strip-extras --output-file requirements-dev.lock
	$(COMPILE) --constraint requirements-dev.lock pyproject.toml --extra firehose --extra setup --extra otlp --extra kafka --extra archive --extra postgres --output-file requirements.lock
	$(COMPILE) --constraint requirements-dev.lock --group build --output-file requirements-build.lock

clean: ## all that make made; state/ stays
	rm -rf .venv build dist htmlcov mutants .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
