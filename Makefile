# Holdfast. `make setup` is all that a fresh machine needs; every other target calls it first.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.setup-done

.PHONY: setup demo test test-long soak check proto bench referee format

setup: $(STAMP)

$(STAMP): requirements.lock common/pyproject.toml agent/pyproject.toml controller/pyproject.toml lab/pyproject.toml deploy/setup-machine
	deploy/setup-machine run
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e common -e agent -e controller -e lab
	touch $(STAMP)

# Regenerate requirements.lock after a change of dependencies (uv.lock itself is not committed).
lock:
	$(BIN)/uv export --quiet --no-emit-workspace --all-packages --all-extras --no-header -o requirements.lock

proto: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I holdfast_common/wire=proto --python_out=common --grpc_python_out=common --mypy_out=common --mypy_grpc_out=common $(wildcard proto/*.proto)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
