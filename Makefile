# Every habit of the project is one command here, the same for a person and for CI.
#   EXTRAS=dev,slurm  which extras of pyproject.toml `make setup` installs
#   PYTHON=python3.12 which interpreter makes .venv

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup quickstart test test-slow test-vllm check format clean

EXTRAS ?= dev
BIN := .venv/bin
STAMP := .venv/.set-up

UV := $(shell command -v uv 2>/dev/null)
# The first interpreter that is new enough; a pyenv shim of a version that is not active fails and is passed over.
PYTHON ?= $(firstword $(foreach name,python3 python python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.version_info >= (3, 11) and print(sys.executable)' 2>/dev/null)))

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install the project into it, if anything changed

$(STAMP): pyproject.toml constraints.txt
ifneq ($(UV),)
	test -x $(BIN)/python || "$(UV)" venv --seed --python "$(or $(PYTHON),>=3.11)" .venv
	"$(UV)" pip install --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'
else
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; install it, or uv, or say make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv || { rm -rf .venv && $(MAKE) --no-print-directory .venv-without-ensurepip; }
	$(BIN)/python -m pip install -c constraints.txt -e '.[$(EXTRAS)]'
endif
	@touch $@

# Debian and Ubuntu keep ensurepip in a package of its own; the pip of the system can fill the environment instead.
.PHONY: .venv-without-ensurepip
.venv-without-ensurepip:
	@echo "$(PYTHON) has no ensurepip (on Debian and Ubuntu: the package python3-venv); trying its pip instead"
	"$(PYTHON)" -m venv --without-pip .venv
	"$(PYTHON)" -m pip --python $(BIN)/python install pip || { rm -rf .venv; \
		echo "$(PYTHON) can make no environment; install python3-venv, or uv, and try again" >&2; exit 1; }

quickstart: setup ## Watch a small model learn arithmetic: 2 minutes on 2 CPU cores, no network
	$(BIN)/python -m grpo.train experiment=quickstart

test: setup ## Run the tests (15 minutes on 2 cores)
	$(BIN)/python -m pytest

test-slow: setup ## Run the tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow

test-vllm: setup ## Run the engine's contract on vLLM's CPU build, in an environment of its own
	$(BIN)/python -m tests.vllm_environment

check: setup ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: setup ## Format, and fix what lint can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove what can be made again; outputs/ and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
