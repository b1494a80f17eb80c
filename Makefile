# Everything runs in .venv, which is made on first use and again when pyproject.toml changes.
.DEFAULT_GOAL := help
PYTHON ?= python3
PYTHONS ?= # other interpreters than those on PATH, for release-check and compat
VENV := .venv
BIN := $(VENV)/bin
unexport PYTHONDONTWRITEBYTECODE  # compiled tests are kept: compiling them takes as long as a tenth of them
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-full app test test-slow test-all test-ecosystem lint bench tables check-results docs release-check compat clean

demo: runs/demo/result.json  ## train with and without EGT, compare, report (two to four minutes): runs/demo
	@echo "Report: runs/demo/report.html (remove runs/demo to train again)"

demo-full: runs/demo-full/result.json  ## the same on larger scenes for longer, as the documentation shows it (a quarter of an hour): runs/demo-full
	@echo "Report: runs/demo-full/report.html (remove runs/demo-full to train again)"

runs/demo/result.json: | $(VENV)/.demo
	$(BIN)/exitlens demo --out runs/demo --resume

runs/demo-full/result.json: | $(VENV)/.installed
	$(BIN)/exitlens demo --full --out runs/demo-full --resume

app: demo $(VENV)/.installed  ## a local page to watch the demo's two networks decide
	$(BIN)/exitlens app --bundle runs/demo --compare runs/demo/training/baseline

.PHONY: help hooks architecture reference

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z][a-z-]*:.*  ## / {printf "%-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

architecture: $(VENV)/.installed  ## the map of the rooms from the imports: docs/project/architecture.md
	$(BIN)/python -m scripts.architecture

reference: $(VENV)/.installed  ## the reference of the command line from its help: docs/reference/command_line.md
	$(BIN)/python -m scripts.command_line

hooks: $(VENV)/.installed  ## from now on, lint before every commit (pre-commit)
	$(INSTALL) 'pre-commit>=4'
	$(BIN)/pre-commit install

test: $(VENV)/.test  ## the quick tests, in random order
	$(PYTEST) -m "not slow and not long" --ignore tests/ecosystem

test-slow: $(VENV)/.installed  ## the tests marked slow but not long
	$(PYTEST) -m "slow and not long" $$(grep -rl --include='*.py' --exclude-dir=ecosystem 'mark\.slow' tests)

test-all: $(VENV)/.installed  ## all tests, those marked long, too, with branch coverage
	$(PYTEST) --cov --cov-report=term:skip-covered

test-ecosystem: $(VENV)/.ecosystem  ## what works with other people's libraries, against these libraries
	$(PYTEST) tests/ecosystem

lint: $(VENV)/.installed  ## format, lint, spelling and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy --strict src runtime/src demo-data/src

bench: $(VENV)/.benchmark  ## measure, show and check one study: make bench STUDY=truth (list: make bench; resumable; nothing else running)
	$(BIN)/python -m benchmarks $(or $(STUDY),--help)

tables: $(VENV)/.installed  ## the pages under docs from the committed results
	$(BIN)/python -m benchmarks all page

docs: $(VENV)/.docs  ## the documentation site, built without network and checked: build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m website.check build/site
	$(PYTEST) -m "not slow and not long" tests/website tests/test_readme.py

check-results: $(VENV)/.installed  ## every promise beside its committed figure
	$(BIN)/python -m benchmarks all check

release-check: $(VENV)/.release  ## build all distributions, look into them, install them afresh and run them (minutes, network): dist/
	$(BIN)/python -m scripts.release $(PYTHONS:%=--python %)

compat: $(VENV)/.release  ## a quick set of tests with every supported version (resumable, an hour, network): docs/project/compatibility.md
	PYTHONS='$(PYTHONS)' $(BIN)/python -m benchmarks compat

clean:  ## remove the environment, runs, built packages and caches
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

PACKAGES := pyproject.toml runtime/pyproject.toml demo-data/pyproject.toml
# --no-compile: modules are compiled when they are first imported
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(PACKAGES) | $(VENV)/bin/pip  # each of the three environments holds the one before
	$(INSTALL) -e . -e demo-data
	touch $@

$(VENV)/.test: $(PACKAGES) | $(VENV)/bin/pip
	$(INSTALL) -e '.[test]' -e runtime -e demo-data
	touch $(VENV)/.demo $@

$(VENV)/.installed: $(PACKAGES) | $(VENV)/bin/pip
	$(INSTALL) -e '.[dev]' -e runtime -e demo-data
	touch $(VENV)/.demo $(VENV)/.test $@

$(VENV)/.benchmark: $(VENV)/.installed
	$(INSTALL) -e '.[benchmark]'
	touch $@

$(VENV)/.ecosystem: $(VENV)/.installed
	$(INSTALL) -e '.[ecosystem]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(INSTALL) -e '.[docs]'
	$(BIN)/python -m website.live_example
	touch $@

$(VENV)/.release: $(VENV)/.installed
	$(INSTALL) -e '.[release]'
	touch $@
