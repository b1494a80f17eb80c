# Everything runs in .venv, which is made on first use and again when pyproject.toml changes.
.DEFAULT_GOAL := help
PYTHON ?= python3
PYTHONS ?= # other interpreters than those on PATH, for release-check and compat
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-full app test test-slow test-all lint bench bench-guarantees bench-relevance bench-traces pictures truth texts series static edge serving study study-quick tables check-results backbones docs release-check compat clean

demo: runs/demo/result.json  ## train with and without EGT, compare, report (about three minutes): runs/demo
	@echo "Report: runs/demo/report.html (remove runs/demo to train again)"

demo-full: runs/demo-full/result.json  ## the same on larger scenes for longer, as the documentation shows it (a quarter of an hour): runs/demo-full
	@echo "Report: runs/demo-full/report.html (remove runs/demo-full to train again)"

runs/demo/result.json: | $(VENV)/.installed
	$(BIN)/exitlens demo --out runs/demo --resume

runs/demo-full/result.json: | $(VENV)/.installed
	$(BIN)/exitlens demo --full --out runs/demo-full --resume

app: demo  ## a local page to watch the demo's two networks decide
	$(BIN)/exitlens app --bundle runs/demo --compare runs/demo/training/baseline

.PHONY: help hooks architecture

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z][a-z-]*:.*  ## / {printf "%-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

architecture: $(VENV)/.installed  ## the map of the rooms from the imports: docs/project/architecture.md
	$(BIN)/python -m scripts.architecture

hooks: $(VENV)/.installed  ## from now on, lint before every commit (pre-commit)
	$(BIN)/pip install --quiet --disable-pip-version-check 'pre-commit>=4'
	$(BIN)/pre-commit install

test: $(VENV)/.installed  ## the quick tests, in random order
	$(PYTEST) -m "not slow and not long"

test-slow: $(VENV)/.installed  ## the tests marked slow
	$(PYTEST) -m slow $$(grep -rl --include='*.py' 'mark\.slow' tests)

test-all: $(VENV)/.installed  ## all tests, those marked long, too, with branch coverage
	$(PYTEST) --cov --cov-report=term:skip-covered

lint: $(VENV)/.installed  ## format, lint, spelling and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy --strict src runtime/src demo-data/src

backbones: $(VENV)/.installed  ## try every backbone: docs/measured/backbones.md
	$(BIN)/python -m benchmarks.backbones

bench: demo-full $(VENV)/.benchmark  ## time everything against everything (an hour, nothing else running): docs/measured/performance.md
	$(BIN)/python -m benchmarks.performance
	$(BIN)/python -m benchmarks.performance.explorer
	$(BIN)/python -m benchmarks.performance.page
	$(BIN)/python -m benchmarks.check

bench-guarantees: demo-full $(VENV)/.benchmark  ## keeps count of broken promises over thousands of calibrations (an hour): docs/concepts/guarantees.md
	$(BIN)/python -m benchmarks.guarantees
	$(BIN)/python -m benchmarks.guarantees.page
	$(BIN)/python -m benchmarks.check

pictures: $(VENV)/.benchmark  ## fine-tune an ImageNet network on pictures of drawings (resumable; needs openclipart-png): docs/measured/pictures.md
	$(BIN)/python -m benchmarks.pictures
	$(BIN)/python -m benchmarks.pictures.page
	$(BIN)/python -m benchmarks.check

bench-relevance: demo-full $(VENV)/.benchmark  ## relevance maps beside captum's, pytorch-grad-cam's and torchcam's (minutes, nothing else running): docs/measured/relevance.md
	$(BIN)/python -m benchmarks.relevance --again
	$(BIN)/python -m benchmarks.relevance.page
	$(BIN)/python -m benchmarks.check

truth: $(VENV)/.benchmark  ## do maps agree and are they true, on seven tasks (resumable, hours; needs openclipart-png, dataset-fashion-mnist): docs/measured/truth.md
	$(BIN)/python -m benchmarks.truth
	$(BIN)/python -m benchmarks.truth.page
	$(BIN)/python -m benchmarks.check

texts: $(VENV)/.benchmark  ## a pretrained MiniLM on film reviews, its words and other texts (resumable, an hour): docs/measured/texts.md
	$(BIN)/python -m benchmarks.texts
	$(BIN)/python -m benchmarks.texts.page
	$(BIN)/python -m benchmarks.check

series: $(VENV)/.benchmark  ## small networks of series: answers, cost and maps (resumable, an hour): docs/measured/series.md
	$(BIN)/python -m benchmarks.series
	$(BIN)/python -m benchmarks.series.page
	$(BIN)/python -m benchmarks.check

static: $(VENV)/.benchmark  ## ours against smaller static networks of equal time, distilled (resumable, hours; the times want an idle machine): docs/measured/static.md
	$(BIN)/python -m benchmarks.static
	$(BIN)/python -m benchmarks.static time
	$(BIN)/python -m benchmarks.static.page
	$(BIN)/python -m benchmarks.check

edge: demo-full $(VENV)/.benchmark  ## exported networks: decisions, times, sizes, int8, the browser (half an hour, nothing else running): docs/guides/edge.md
	$(BIN)/python -m benchmarks.edge
	$(BIN)/python -m benchmarks.edge.page
	$(BIN)/python -m benchmarks.check

serving: demo-full $(VENV)/.benchmark  ## the server under load, beside others, in faults and under attack (an hour, nothing else running): docs/guides/serving.md
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.serving.page
	$(BIN)/python -m benchmarks.check

bench-traces: $(VENV)/.benchmark  ## compact traces: how exact, and what a million samples take (minutes, 1 GB of disk): docs/measured/traces.md
	$(BIN)/python -m benchmarks.traces
	$(BIN)/python -m benchmarks.check

study: $(VENV)/.benchmark  ## every run of the study (about 12 hours; resumable): benchmarks/results/study.csv
	$(BIN)/python -m benchmarks.study

study-quick: $(VENV)/.benchmark  ## the whole study on 96 images for one epoch: that all of it runs
	$(BIN)/python -m benchmarks.study --quick

tables: $(VENV)/.installed  ## the pages under docs from the committed results
	$(BIN)/python -m benchmarks.study.report
	$(BIN)/python -m benchmarks.performance.page
	$(BIN)/python -m benchmarks.guarantees.page
	$(BIN)/python -m benchmarks.training.page
	$(BIN)/python -m benchmarks.pictures.page
	$(BIN)/python -m benchmarks.relevance.page
	$(BIN)/python -m benchmarks.truth.page
	$(BIN)/python -m benchmarks.texts.page
	$(BIN)/python -m benchmarks.static.page
	$(BIN)/python -m benchmarks.edge.page
	$(BIN)/python -m benchmarks.serving.page
	$(BIN)/python -m benchmarks.compat.page

docs: $(VENV)/.docs  ## the documentation site, built without network and checked: build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m website.check build/site
	$(PYTEST) -m "not slow and not long" tests/website tests/test_readme.py

check-results: $(VENV)/.installed  ## every promise beside its committed figure
	$(BIN)/python -m benchmarks.check

release-check: $(VENV)/.release  ## build all distributions, look into them, install them afresh and run them (minutes, network): dist/
	$(BIN)/python -m scripts.release $(PYTHONS:%=--python %)

compat: $(VENV)/.release  ## a quick set of tests with every supported version (resumable, an hour, network): docs/project/compatibility.md
	$(BIN)/python -m benchmarks.compat $(PYTHONS:%=--python %)
	$(BIN)/python -m benchmarks.compat.page

clean:  ## remove the environment, runs, built packages and caches
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(VENV)/.installed: pyproject.toml runtime/pyproject.toml demo-data/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -e runtime -e demo-data
	touch $@

$(VENV)/.benchmark: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[benchmark]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m website.live_example
	touch $@

$(VENV)/.release: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[release]'
	touch $@
