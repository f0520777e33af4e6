# make demo   installs into .venv, then runs the main job: a sweep on this machine, and its results table
# make test   installs, then runs every check; as root also on a real Slurm of two nodes
# make proofs what takes longer; writes docs/proofs.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint types layers unit proofs clean

demo: $(VENV)/.installed
	$(BIN)/sweep submit sweeps/quickstart.yaml --cluster local --wait
	$(BIN)/sweep collect quickstart --cluster local

test: lint types layers unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

layers: $(VENV)/.installed-test
	$(BIN)/lint-imports --no-logo --config setup.cfg

unit: $(VENV)/.installed-test
	$(BIN)/pytest

proofs: $(VENV)/.installed-test
	$(BIN)/python -m tests.proofs

# Without Debian's python3-venv a venv comes without pip: pip is what says that it is whole. An installation that was
# interrupted has no stamp, and pip goes on from where it was.
$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/pip
	@echo "installing into $(VENV): some 5 GB, mostly torch; once"
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
