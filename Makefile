# Holdfast. `make setup` is all that a fresh machine needs; every other target calls it first.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.setup-done
WORKERS ?= 3  # on two cores: these wait as well as they work
LONG_WORKERS ?= 3  # they wait more than they work
SECONDS ?= 600
SEED ?= 1

.PHONY: setup setup-tests demo test test-long coverage soak check proto bench bench-index bench-plan bench-controller referee format lock

setup: $(STAMP)

$(STAMP): requirements.lock common/pyproject.toml agent/pyproject.toml controller/pyproject.toml lab/pyproject.toml deploy/setup-machine
	PYTHON="$(PYTHON)" deploy/setup-machine run
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e common -e agent -e controller -e lab
	touch $(STAMP)

setup-tests: setup
	PYTHON="$(PYTHON)" deploy/setup-machine test

# The main job, end to end, on the lab: see demo/run. KEEP=1 leaves it standing, SABOTAGE=1 must fail.
demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python demo/run.py

# Everything that fits into ten minutes on two cores. What fails beside others is tried once more alone, and
# named by pytest both times: a test that passes only then depends on time and wants mending.
test: setup-tests
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not long" --durations=15 || $(BIN)/python -m pytest -q -m "not long" --last-failed

# What takes longer: every step killed, every rule broken, every call refereed, a restored VM booted.
test-long: setup-tests
	$(BIN)/python -m pytest -q -n $(LONG_WORKERS) --dist worksteal -m long --durations=15 || $(BIN)/python -m pytest -q -m long --last-failed
	$(MAKE) --no-print-directory referee

# Branch coverage of the repository engine: what is missing, by line; less than 95 % fails. Branches alone are told as well.
coverage: setup-tests
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -n $(WORKERS) -m "not long and not repeats" tests/common/repository tests/agent/pipelines
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage json --quiet -o build/coverage/report.json
	PYTHONPATH=tests $(BIN)/python -m support.branch_coverage build/coverage/report.json

# Random kills, crashes with failing calls, damages, and seeds of the simulation: each for as long as SECONDS, from SEED on.
soak: setup-tests
	HOLDFAST_SOAK_SECONDS=$(SECONDS) HOLDFAST_SOAK_SEED=$(SEED) $(BIN)/python -m pytest -q -s tests/together/soak.py tests/together/soak_crash_states.py tests/common/repository/damage_soak.py tests/simulation/soak.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	deploy/check-generated

proto: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I holdfast_common/wire=proto --python_out=common --grpc_python_out=common --mypy_out=common --mypy_grpc_out=common $(wildcard proto/*.proto) 2>/dev/null

# Ours beside the newest restic and borg, which it builds first (Go 1.25 or newer is needed).
bench: setup
	PYTHON="$(PYTHON)" deploy/setup-machine bench
	PYTHONPATH=tests $(BIN)/python -m benchmarks.bench

# The index with 100 million chunks, and the 10,000th incremental beside the tenth: an hour, 8 GB in FOLDER.
bench-index: setup
	PYTHONPATH=tests $(BIN)/python -m benchmarks.index_at_scale $(if $(FOLDER),--folder $(FOLDER))
	PYTHONPATH=tests $(BIN)/python -m benchmarks.many_points $(if $(FOLDER),--folder $(FOLDER))

referee: setup-tests
	$(BIN)/python tests/referee/run.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Regenerate requirements.lock after a change of dependencies (uv.lock itself is not committed).
lock: setup
	$(BIN)/uv lock --quiet
	$(BIN)/uv export --quiet --no-emit-workspace --all-packages --all-extras --no-header -o requirements.lock

# A plan of a week over 10,000 VMs: seconds on one core, and memory.
bench-plan: setup-tests
	PYTHONPATH=tests $(BIN)/python -m benchmarks.plan_at_scale

# A thousand agents on one controller: memory, heartbeats, transitions, and all back after a crash. Five minutes.
bench-controller: setup-tests
	PYTHONPATH=tests $(BIN)/python -m benchmarks.controller_load
