# Everything a newcomer needs: `make help`. Python 3.11+, make and PyPI suffice.
PYTHON ?= python3
UV_VERSION := 0.13.8
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow mutate lint type check bench gpu docs torch-lowest torch-newest lock wheel try-wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# A fast installer, then the locked packages with their hashes, then this project in place.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; run make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

setup: $(READY)  ## create .venv with the locked packages

# These start many processes: each would compile torch anew where this is set.
demo test test-slow: export PYTHONDONTWRITEBYTECODE =

demo: $(READY)  ## train, attack and compare six arms on the embedded digits
	$(BIN)/ablation-train table=demo tracking.mode=disabled hydra/launcher=pool hydra.launcher.jobs=2
	$(BIN)/ablation-report table=demo against=at

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(READY)  ## run the slow tests too
	$(BIN)/python -m pytest -n auto --dist loadfile -m ""

mutate: $(READY)  ## change the mathematics line by line: does a test fail? modules="averages terms/kl"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[mutate]"
	$(BIN)/python -m tests.support.mutation $(modules)

lint: $(READY)  ## ruff: lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)  ## mypy --strict
	$(BIN)/mypy

check: lint type test  ## lint, type and test

# Smaller batches and fewer rounds than the figures in benchmarks/README.md have.
bench: $(READY)  ## time training steps against a plain reference step, and planning: under 10 min
	$(BIN)/python -m benchmarks.train_step --batch-size 16 --rounds 2
	$(BIN)/python -m benchmarks.boundary --batch-size 4 --rounds 2
	$(BIN)/python -m benchmarks.emr --rounds 2
	$(BIN)/python -m benchmarks.lma --rounds 3
	$(BIN)/python -m benchmarks.sweep

gpu: $(READY)  ## is this GPU right, and how fast? less than ten minutes, no downloads
	$(BIN)/ablation-doctor

docs: $(READY)  ## build the site into site/; a warning fails
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Of the versions that pyproject.toml allows, in place of the locked ones.
torch-lowest: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python "torch==2.6.*" "torchvision==0.21.*"

torch-newest: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --upgrade torch torchvision

lock: $(READY)  ## resolve requirements.lock anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --extra dev pyproject.toml --output-file requirements.lock

wheel: $(READY)  ## build dist/*.whl
	$(BIN)/uv build --quiet --wheel --out-dir dist .

try-wheel: wheel  ## install the wheel into an environment of its own and run it
	rm -rf build/wheel && $(PYTHON) -m venv build/wheel
	$(BIN)/uv pip install --quiet --python build/wheel/bin/python dist/*.whl
	cd build/wheel && bin/ablation-train table=demo scale=smoke seed=0 tracking.mode=disabled
	cd build/wheel && bin/ablation-report table=demo scale=smoke

clean:  ## remove the environment, caches and builds; runs/ and data/ stay
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
