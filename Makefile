# `make demo`, `make test` and `make setup` need Python 3.11 to 3.13 with venv, and nothing else.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup demo browser test test-all benchmarks clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "tfcausal needs Python 3.11, 3.12 or 3.13; none was found. Set PYTHON=/path/to/python."; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing tfcausal and its pinned dependencies into $(VENV) (a few minutes the first time)."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

# A second `make demo` goes on with the first one, or shows its table.
demo: setup
	@if $(BIN)/tfcausal run configs/quickstart.yaml --dry-run | cmp -s - runs/quickstart/run.yaml; \
	then $(BIN)/tfcausal run --resume runs/quickstart; \
	else $(BIN)/tfcausal run configs/quickstart.yaml; fi

# The browser in which the tests walk through the explorer; see the script.
browser: setup
	$(BIN)/python scripts/install_browser.py

# Every process of the tests takes up to 6 GiB. The walks through the explorer wait for a browser that needs the machine
# for itself; without one they fail, when all other tests have run.
PROCESSES ?= 2
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	-$(BIN)/python scripts/install_browser.py
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --ignore tests/apps
	$(BIN)/python -m pytest tests/apps

# The slow tests, too: every network of keras.applications.
test-all: test
	$(BIN)/python -m pytest -m slow

benchmarks: setup
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/wbp.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/effects.py
	$(BIN)/python benchmarks/effect_maps.py
	$(BIN)/python benchmarks/attacks.py
	$(BIN)/python benchmarks/bf16.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/explorer.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/demo.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
