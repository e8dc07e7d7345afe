PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: check lint test format docs bench

check: lint test  ## everything a change must pass

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports_command; sys.argv[0] = 'lint-imports'; lint_imports_command()"
	$(PYTHON) -m mtpfix.engines.check
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
