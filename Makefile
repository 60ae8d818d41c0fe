# Needs Python 3.11 or later, a C++ compiler, make and a package index. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
# Another torch than the pinned one: make test TORCH=torch==2.10.0 VENV=.venv-2.10
TORCH ?= $(shell sed -n '/^torch==/p' constraints.txt)
PYTEST_ARGS ?=
# Processes the tests are shared out to, files whole; 0 is this one alone, which a debugger needs.
WORKERS ?= auto
DEMO_ARGS ?=
# Options all benchmarks have: make bench BENCH_ARGS=--quick shows within minutes whether they run.
BENCH_ARGS ?=
# make test-gpu GPU_ARGS=attention runs only the C++ tests of that name.
GPU_ARGS ?=
# The Python of the GPU targets, which install nothing: they need torch >= 2.11, transformers, numpy, pluggy and pytest.
GPU_PYTHON ?= $(firstword $(wildcard $(VENV)/bin/python) $(PYTHON))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.inc' -o -name '*.h')
BENCHMARKS ?= $(sort $(wildcard benchmarks/bench_*.py))
GPU_BENCHMARKS ?= $(patsubst %,benchmarks/bench_%.py,attention masked_lm_loss train_step)
# With what a GPU's scripts exit where there is none.
NO_GPU := 77
PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml)))
# Plugins are installed beside the environment, so that the other tests see tunecore alone.
PLUGIN_SITE := $(VENV)/plugin-site

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint types test-native test-cuda-emulated build-cuda build-cuda-if-nvcc test-gpu \
    test-python test-plugins test-slow test-faults bench bench-gpu clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /  \1\t/p' Makefile | expand -t 16

setup: $(VENV)/.installed ## make .venv and install tunecore with all that the tests need

$(VENV)/.created: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tunecore needs Python 3.11 or later; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml setup.py $(SOURCES)
	sed 's/^torch==.*/$(TORCH)/' constraints.txt > $(VENV)/constraints.txt
	$(PIP) install -c $(VENV)/constraints.txt -e '.[test]'
	@touch $@

demo: setup ## pretrain and fine-tune on text that ships with Python (minutes on two cores)
	$(BIN)/tunecore demo $(DEMO_ARGS)

# pytest comes last, so that its closing line is the last word.
test: lint types test-native test-cuda-emulated build-cuda-if-nvcc test-plugins ## lint, types, C++ and CUDA tests, plugins, pytest
	@$(MAKE) --no-print-directory test-python

lint: setup ## ruff
	$(BIN)/ruff check .

types: setup ## mypy, strict, on tunecore/
	$(BIN)/mypy

test-native: setup ## C++ tests
	$(BIN)/python csrc/tests/run.py

test-cuda-emulated: setup ## tests of the CUDA kernels on the CPU: no nvcc, no GPU
	$(BIN)/python csrc/tests/run_cuda.py

build-cuda: setup ## tunecore/libtunecore_cuda.so by nvcc; CUDA_ARCHS="90" for one compute capability
	$(BIN)/python csrc/build_cuda.py

# One architecture, to see that nvcc takes the sources; twice the kernels would take twice the minutes.
build-cuda-if-nvcc: setup
	@CUDA_ARCHS="$${CUDA_ARCHS:-90}" $(BIN)/python csrc/build_cuda.py --if-nvcc

test-gpu: ## tests of the CUDA kernels on the GPU at hand, under compute-sanitizer too; error 77 where there is none
	@$(GPU_PYTHON) csrc/tests/run_gpu.py $(GPU_ARGS)

test-python: setup ## pytest
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-plugins: setup ## install each package of plugins/ as a stranger would, and run its tests
	@for plugin in $(PLUGINS); do \
	    echo "== $$plugin" && rm -rf $(PLUGIN_SITE) && \
	    $(PIP) install -q --no-deps --target $(PLUGIN_SITE) ./$$plugin && \
	    PYTHONPATH=$(PLUGIN_SITE) $(BIN)/python -m pytest -c pyproject.toml --rootdir $$plugin $$plugin/tests || exit 1; \
	done

test-slow: setup ## tests that take minutes
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-faults: setup ## every fault on real runs, then a table (half an hour or more; TUNECORE_FAULTS_SCALE=10 for a night)
	@mkdir -p build && rm -f build/faults.jsonl
	$(BIN)/python csrc/tests/run.py --processors
	TUNECORE_FAULTS_RECORD=$(CURDIR)/build/faults.jsonl $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m faults $(PYTEST_ARGS); \
	    failed=$$?; $(BIN)/python tests/faults/record.py build/faults.jsonl; exit $$failed

bench: setup ## every benchmark, each beside its peer in one run; one that fails does not stop the others
	$(PIP) install -q -c $(VENV)/constraints.txt -e '.[bench]'
	@failed=; for benchmark in $(BENCHMARKS); do \
	    echo "== $$benchmark"; $(BIN)/python $$benchmark $(BENCH_ARGS) || failed="$$failed $$benchmark"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

bench-gpu: ## attention, vocabulary loss and training step on the GPU at hand, limits first; error 77 where there is none
	@failed=; for benchmark in $(GPU_BENCHMARKS); do \
	    echo "== $$benchmark"; PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(GPU_PYTHON) $$benchmark --device cuda $(BENCH_ARGS); status=$$?; \
	    test $$status != $(NO_GPU) || exit $$status; test $$status = 0 || failed="$$failed $$benchmark"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean: ## remove what was built
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(PLUGIN_SITE)
	rm -f tunecore/_C*.so tunecore/libtunecore_cuda.so $(VENV)/.installed
	find tunecore tests plugins benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)
