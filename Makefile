# Two commands start from nothing but Python >= 3.11 and make:
#   make up     sets up and brings the endpoint up on this machine
#   make test   sets up and runs every check, the end-to-end tests on the real engine included
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
IMAGE  ?= localhost/sovereign-ai:0.1.0
BASE   ?= localhost/debian-base:12

.PHONY: up test check setup setup-dev e2e bench image clean

up: setup
	@$(BIN)/sovereign up $(ARGS)

test: check e2e

check: setup-dev
	$(BIN)/ruff check -q src tests benchmarks tools
	$(BIN)/ruff format --check -q src tests benchmarks tools
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -m "not engine" -n auto

e2e: setup-dev
	$(BIN)/pytest -m engine -v

bench: setup-dev
	$(BIN)/python benchmarks/gateway_vs_engine.py

# The control plane's image, for Kubernetes; its base is made once, on this machine.
image:
	@command -v buildah > /dev/null || { echo "make image: buildah is missing: apt-get install buildah debootstrap" >&2; exit 1; }
	@buildah inspect --type image $(BASE) > /dev/null 2>&1 || [ $(BASE) != localhost/debian-base:12 ] || image/base.sh
	PYTHON=$(PYTHON) image/wheels.sh
	buildah build --pull-never --build-arg BASE=$(BASE) -t $(IMAGE) .

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/pyvenv.cfg
	@$(BIN)/python -m pip install --disable-pip-version-check -q -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/pyvenv.cfg
	@$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) .test-home build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
