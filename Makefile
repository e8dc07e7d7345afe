PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
LAYERS = import sys; from importlinter.cli import lint_imports_command; sys.argv = ["lint-imports"]; lint_imports_command()

.PHONY: check lint layout rules types layers knowledge tables test format docs bench

check: lint test  # everything a change must pass

lint: layout rules types layers knowledge tables

layout:
	$(PYTHON) -m ruff format --check .

rules:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

layers:
	$(PYTHON) -c '$(LAYERS)'

knowledge:
	$(PYTHON) -m mtpfix.engines.check

tables:
	$(PYTHON) docs/refresh.py --check

test:
	$(PYTHON) -m pytest -n auto

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

docs:
	$(PYTHON) docs/refresh.py

bench:
	@for script in benchmarks/*.py; do echo "$$script"; $(PYTHON) "$$script" || exit 1; done
