# Everything runs in ./.venv, made from pyproject.toml; nothing outside it is used.
PYTHON ?= python3
BIN := .venv/bin
# Lines that the suite has to run, in per cent; commands that tests start as processes of their own are not counted.
COVERED := 93
# Threads that wait sleep instead of spinning: on a shared machine worth a factor of several.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo steady proof proof-more test check lint types docs faults loggers package floors pythons coverage pictures clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install into .venv and run the whole pipeline on real data"
	@echo "make steady  the demo with three seeds and every set of CPU kernels that this processor has: does its claim hold?"
	@echo "make proof   does one student keep the best of every teacher? the tables of docs/proof.md: 24 trainings"
	@echo "make proof-more  its other tables: many more; stopped, it goes on"
	@echo "make test    install with test tools and run the suite"
	@echo "make faults  kills, flipped bits, full disks, two at once; and the slow tests"
	@echo "make loggers the loggers with the real Weights & Biases, MLflow and trackio, in .venv-loggers (200 MB)"
	@echo "make package sdist and wheel: built, checked, installed in an environment of their own, and tried"
	@echo "make floors  the unit tests with the oldest dependencies that are allowed, in .venv-floors"
	@echo "make pythons the unit tests with every other Python from 3.11 on that is installed, in .venv-3.*"
	@echo "make coverage the suite again, and which lines it never ran; fails below $(COVERED) %"
	@echo "make pictures  the demo and its ablation again, and from them tables and pictures for docs (needs Chromium)"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make check   lint, types, make docs, make test, make faults, make loggers and make package: exactly what CI runs"

.venv/.run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

.venv/.test: .venv/.run
	$(BIN)/python -m pip install --quiet --editable ".[demo,test,check,docs]"
	@touch $@

demo: .venv/.run
	$(BIN)/unic-pipe demo

steady: .venv/.run
	$(BIN)/python examples/proof/steady.py

.venv/.proof: .venv/.run
	$(BIN)/python -m pip install --quiet --editable ".[demo,proof]"
	@touch $@

proof: .venv/.proof
	$(BIN)/python examples/proof/run.py

proof-more: .venv/.proof
	$(BIN)/python examples/proof/run.py --more

test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal

faults: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "faults or slow"

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check cli pipeline schemas src stages tests docs

types: .venv/.test
	$(BIN)/mypy

# What it warns about is an error; nothing is loaded from a network, when it is built or when it is read.
docs: .venv/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Layered on .venv, so that PyTorch is not downloaded again; what is installed here comes first.
.venv-floors/.test: .venv/.test tests/floors.txt
	rm -rf .venv-floors
	$(BIN)/python -m venv .venv-floors
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(.venv-floors/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_packages.pth"
	.venv-floors/bin/python -m pip install --quiet --requirement tests/floors.txt
	.venv-floors/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

floors: .venv-floors/.test
	.venv-floors/bin/python -m pytest -m "not faults and not slow and not loggers and not package" tests/unit tests/golden

package: .venv/.test
	$(BIN)/python -m pytest -m package tests/unit/test_wheel.py

.venv-loggers/.test: .venv/.test pyproject.toml
	rm -rf .venv-loggers
	$(BIN)/python -m venv .venv-loggers
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(.venv-loggers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_packages.pth"
	.venv-loggers/bin/python -m pip install --quiet --editable ".[wandb,mlflow,trackio]"
	@touch $@

loggers: .venv-loggers/.test
	.venv-loggers/bin/python -m pytest -m loggers tests/unit/test_real_loggers.py

# Each environment takes PyTorch anew: several gigabytes where pip chooses its CUDA build.
pythons:
	@for minor in 11 12 13; do \
	  python=$$(command -v python3.$$minor) && $$python -c "" 2>/dev/null || { echo "python3.$$minor is not installed"; continue; }; \
	  test -x .venv-3.$$minor/bin/python || $$python -m venv .venv-3.$$minor || exit 1; \
	  .venv-3.$$minor/bin/python -m pip install --quiet --editable ".[demo,test]" || exit 1; \
	  .venv-3.$$minor/bin/python -m pytest -m "not faults and not slow and not loggers and not package" tests/unit tests/golden || exit 1; \
	done

coverage: .venv/.test
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=$(COVERED)

pictures: .venv/.test
	$(BIN)/python tests/pictures.py demo

check: lint types docs test faults loggers package

clean:
	rm -rf .venv .venv-* build site *.egg-info demo steady proof
