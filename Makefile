# Everything a user or a maintainer runs. `make run` and `make test` are the two commands of the README.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run cluster install check test properties simulate compatibility chaos bench clean

run: install
	$(BIN)/tidelog start

# Three brokers on this machine, without containers.
cluster: install
	@$(BIN)/tidelog cluster start

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-test.lock
	@touch $@

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/architecture

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m "not compatibility and not chaos"

# The property tests with examples nobody has seen yet.
properties: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m "not compatibility and not chaos" --hypothesis-profile=search $$(grep -rlE "^@given|RuleBasedStateMachine" tests)

# Simulated clusters with the seeds 0 to SEEDS - 1.
SEEDS ?= 1000
simulate: $(VENV)/.installed-test
	$(BIN)/python -m tests.simulation --seeds 0-$$(($(SEEDS) - 1))

compatibility: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m compatibility

chaos: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m chaos

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks $(if $(ROWS),--rows $(ROWS))

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .cache
