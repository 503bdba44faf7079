# make demo   build the demo catalog from nothing        make test   run all tests
# make check  linters, types, import contracts           make slow   the long tests and checks
.PHONY: demo dashboard test check slow screenshots bench-dashboard clean help
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STORE  ?= almanac

help:
	@echo "make demo         build the demo catalog in ./$(STORE) (about 5 minutes after installation)"
	@echo "make dashboard    browse and label it at http://127.0.0.1:8501"
	@echo "make test         run all tests (make slow: the long ones)"
	@echo "make check        linters, strict types, import contracts"
	@echo "make screenshots  pictures of every page into docs/screenshots"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f'Python 3.11 or newer is wanted, got {v[0]}.{v[1]}; name one with make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/almanac build demo --store $(STORE)

dashboard: $(VENV)/.installed
	$(BIN)/almanac dashboard --store $(STORE)

test: $(VENV)/.installed-dev
	@command -v chromium >/dev/null || echo "chromium is not installed: the browser tests will be skipped (Debian: apt-get install chromium)"
	$(BIN)/python -m pytest -m "not slow"

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

screenshots: $(VENV)/.installed-dev
	$(BIN)/python scripts/make_screenshots.py --store $(STORE)

bench-dashboard: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/dashboard.py --store $(STORE)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
