# Two commands on a fresh machine with Python >= 3.10 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo
BIN := $(VENV)/bin

.PHONY: help setup demo test lint format clean

help:
	@echo "make demo    train on the embedded images and sounds, evaluate at other resolutions, write a WAV (about 6 minutes)"
	@echo "make test    run the tests"
	@echo "make lint    check style"
	@echo "make setup   make the virtual environment in $(VENV) (done by the others when needed)"

setup: $(VENV)/.made

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .pytest_cache .ruff_cache $(OUT)
