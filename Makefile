# Everything runs in .venv, which is made on first use and again when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench backbones clean

demo: runs/demo/result.json  ## train with and without EGT, compare, report: runs/demo
	@echo "Report: runs/demo/report.html (remove runs/demo to train again)"

runs/demo/result.json: | $(VENV)/.installed
	$(BIN)/exitlens demo --out runs/demo --resume

test: $(VENV)/.installed  ## all tests, with branch coverage
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered

lint: $(VENV)/.installed  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src

backbones: $(VENV)/.installed  ## try every backbone: docs/backbones.md
	$(BIN)/python scripts/backbones_table.py

bench: demo  ## time the demo's bundle against the plain backbone again
	$(BIN)/exitlens bench --bundle runs/demo --batch-sizes 1,8,64

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
