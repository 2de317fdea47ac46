# make demo · make test · make lint · make bench     (they share .venv, made at first use)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format bench dist screenshots webui-gradio clean

help:
	@echo "make demo       render a labelled grid with the bundled pipeline and hypernetworks"
	@echo "make test       run all tests"
	@echo "make test-fast  run all tests but the slow ones"
	@echo "make lint       ruff and mypy"
	@echo "make bench      run the benchmarks"
	@echo "make dist       build wheel and sdist into dist/"
	@echo "make screenshots   take the pictures of the page in docs/images anew"
	@echo "make webui-gradio  drive the pages in the gradio of both webuis"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "hnloader needs Python 3.10 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/hnloader demo --out demo-output

test: $(READY)
	$(BIN)/python -m pytest --quiet

test-fast: $(READY)
	$(BIN)/python -m pytest --quiet -m 'not slow'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks

dist: $(READY)
	$(BIN)/python -m build

screenshots: $(READY)
	HNLOADER_SCREENSHOTS=docs/images $(BIN)/python -m pytest --quiet tests/ui/test_screenshots.py

# Each gradio has an environment of its own with what it needs; all else comes from .venv, which stands behind it.
webui-gradio: $(READY)
	@set -e; for version in 3.41.2 4.40.0; do \
		place=.venv-gradio/$$version; \
		if [ ! -e $$place/.ready ]; then \
			$(BIN)/python -m venv $$place; \
			$$place/bin/python -m pip install --quiet --requirement tests/ui/gradio-$$version.txt; \
			$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
				> $$($$place/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth; \
			touch $$place/.ready; \
		fi; \
		$$place/bin/python tests/ui/in_webui_gradio.py; \
	done

clean:
	rm -rf .venv-gradio $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
