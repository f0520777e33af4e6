# make demo    installs into .venv, then runs a sweep on this machine and prints its results table
# make test    installs, then runs every check; as root also on a real Slurm of two nodes
# make fast    the tests that start no process
# make proofs  what takes longer; writes docs/proofs.md. With debootstrap it also runs the tests marked slurm on a second Slurm
# make mutants changes one line of the code at a time, and lists the changes that no test notices
# make gpu     on a machine with a GPU: what needs one; writes docs/gpu.md. make gpu-wheels: packages for such a machine
# make docs    builds docs/ into a site in build/site; a broken link fails

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Where Slurm must run (.ci/run), the tests cover at least this share of the code.
COVERAGE_FLOOR := 90
COVERAGE := $(if $(REQUIRE_SLURM),--cov --cov-report=term --cov-fail-under=$(COVERAGE_FLOOR))

.PHONY: demo test fast lint types layers light unit slurm proofs mutants gpu gpu-wheels docs pages clean

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
	$(BIN)/lint-imports setup.cfg

unit: $(VENV)/.installed-test compiler
	$(BIN)/pytest $(COVERAGE)

fast: $(VENV)/.installed-test
	$(BIN)/pytest -n auto -m "not process and not slurm"

# All tests but those on a real Slurm, and those alone: the two jobs of a hosted CI.
light: $(VENV)/.installed-test
	$(BIN)/pytest -m "not slurm" --ignore=tests/proofs --ignore=tests/benchmarks

slurm: $(VENV)/.installed-test
	REQUIRE_SLURM=1 $(BIN)/pytest -m slurm

proofs: $(VENV)/.installed-test compiler
	$(BIN)/python -m tests.proofs

mutants: $(VENV)/.installed-test
	$(BIN)/python -m tests.mutants

# A GPU machine may have its own Python with torch, and reach no registry: nothing is installed. Status 3: it has no GPU.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)

gpu:
	@$(GPU_PYTHON) -m tests.gpu || [ $$? -eq 3 ]

gpu-wheels:
	$(GPU_PYTHON) -m tests.gpu.wheels

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is in build/site"

# The pages that are generated from the code; tests compare them.
pages: $(VENV)/.installed-test
	$(call write,docs/config.md,-m disttrain.config.field_docs)
	$(call write,docs/records.md,-m disttrain.records.record_docs)
	$(call write,docs/results.md,-m jobs.results.result_docs)
	$(call write,docs/commands.md,-m jobs.cli.command_docs)
	$(call write,docs/schema/profile.json,-m jobs.planning.schema.yaml_schemas profile)
	$(call write,docs/schema/sweep.json,-m jobs.planning.schema.yaml_schemas sweep)
	$(call write,docs/figures/flow.svg,docs/figures/flow.py)

# An error leaves the page as it is.
write = $(BIN)/python $(2) > build-page && mv build-page $(1)

# torch.compile needs a C++ compiler and Python.h on a CPU. As root on Debian they are installed; elsewhere its tests are
# skipped where they are missing.
.PHONY: compiler
compiler: | $(VENV)/bin/pip
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v g++ && $(BIN)/python -c \
	    'import sys, sysconfig, os; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; } >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq g++ python3-dev >/dev/null; fi

# Without Debian's python3-venv a venv comes without pip: pip shows that it is complete. An installation that was
# interrupted has no stamp, and pip resumes it.
$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/pip
	@echo "installing into $(VENV): some 5 GB, mostly torch; once"
	$(BIN)/pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: setup.cfg pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
