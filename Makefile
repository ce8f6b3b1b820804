# Everything runs in ./.venv, made from pyproject.toml; nothing outside it is used.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint types faults clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install into .venv and run the whole pipeline on real data (about 4 minutes on 2 cores)"
	@echo "make test    install with test tools and run the suite (about 9 minutes on 2 cores)"
	@echo "make faults  kills, flipped bits, full disks, two at once (about 6 minutes on 2 cores)"
	@echo "make check   lint, types, make test and make faults: exactly what CI runs"

.venv/.run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

.venv/.test: .venv/.run
	$(BIN)/python -m pip install --quiet --editable ".[demo,test,check]"
	@touch $@

demo: .venv/.run
	$(BIN)/unic-pipe demo

test: .venv/.test
	$(BIN)/python -m pytest

faults: .venv/.test
	$(BIN)/python -m pytest -m faults tests/faults

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check cli pipeline schemas stages tests unic_pipe.py

types: .venv/.test
	$(BIN)/mypy

check: lint types test faults

clean:
	rm -rf .venv build *.egg-info demo
