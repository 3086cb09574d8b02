# headgate: set up, check, demonstrate. `make help` lists the targets. Needs Linux, Python ≥ 3.11 and a C++20 compiler.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.headgate-installed
JOBS   ?= 2        # test processes; 0 runs the tests in pytest's own process
PYTEST ?=          # more arguments for pytest: make test PYTEST='-k gated_norm'
FUZZED ?= 120000   # mutated plan files for `make sanitize`
PYTHON ?=          # interpreter for the virtual environment; empty: the newest that is fit

# What the installed package is built from: a change of any of these installs it again.
NATIVE := $(shell find native \( -type d -o -type f \) ! -name '*~' ! -name '.*' 2>/dev/null)
INPUTS := pyproject.toml $(wildcard CMakeLists.txt) $(NATIVE)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-neon test-cpus test-ray neon-tools sanitize sanitize-thread stubs lint format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' Makefile
	@echo "  variables: PYTHON (interpreter), CXX (compiler), JOBS (test processes), PYTEST (arguments for pytest), FUZZED"

venv: $(STAMP) ## create .venv and install headgate into it, editable, with what development needs

demo: $(STAMP) ## gate a small network, train it, show what it saves
	$(BIN)/headgate demo

test: lint ## lint, then every test
	$(BIN)/python -m pytest -n $(strip $(JOBS)) --dist worksteal $(PYTEST)

NATIVE_TESTS := parallel_test safetensors_test plan_test rounding_test held_test layout_test shared_weights_test \
  engine_test npy_test capi_test conv_test winograd_test winograd_rule_test depthwise_test conditional_test \
  decide_test maps_test int8_test bfloat16_test training_test

test-neon: ## the engine on AArch64: native tests and whole networks, cross-compiled and emulated
test-neon: TESTS := $(NATIVE_TESTS)
test-neon: QEMU = $(or $(shell command -v qemu-aarch64 || command -v qemu-aarch64-static),qemu-aarch64) -L /usr/aarch64-linux-gnu
test-neon: neon-tools $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/neon -G Ninja -DHEADGATE_NATIVE_TESTS=ON \
	  -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/cmake/aarch64-linux-gnu.cmake
	$(BIN)/ninja -C build/neon -j $(or $(filter-out 0,$(JOBS)),1) $(TESTS) run_plan
	@for name in $(TESTS); do echo "== $$name"; $(QEMU) build/neon/native/tests/$$name || exit 1; done
	HEADGATE_RUN_PLAN="$(QEMU) build/neon/native/tests/run_plan" $(BIN)/python -m pytest tests/engine/test_neon.py

test-cpus: $(STAMP) ## native tests on CPUs with AMX, and with AVX-512 alone, which Bochs interprets
	PATH="$(CURDIR)/$(BIN):$$PATH" native/tests/bochs/run.sh build/bochs

test-ray: $(STAMP) ## studies on a Ray cluster of this machine; installs Ray into the environment
	$(BIN)/python -m pip install --quiet 'headgate[ray]'
	$(BIN)/python -m pytest tests/studies/test_on_ray.py

neon-tools:
	@for tool in aarch64-linux-gnu-g++ $(firstword $(QEMU)); do \
	  command -v $$tool >/dev/null && continue; \
	  echo "make: $$tool not found: test-neon needs a compiler and an emulator for AArch64;" \
	    "apt-get install g++-aarch64-linux-gnu qemu-user" >&2; exit 1; \
	done

sanitize: ## native tests under AddressSanitizer and UndefinedBehaviorSanitizer, and FUZZED plans loaded and run
sanitize: SANITIZERS := address,undefined
sanitize: TESTS := $(NATIVE_TESTS)
sanitize: FUZZER := plan_fuzz
sanitize-thread: ## native tests that use several threads, under ThreadSanitizer
sanitize-thread: SANITIZERS := thread
sanitize-thread: TESTS := parallel_test shared_weights_test engine_test capi_test
sanitize sanitize-thread: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/$@ -DHEADGATE_NATIVE_TESTS=ON -DHEADGATE_SANITIZE=$(SANITIZERS)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/$@ -j $(or $(filter-out 0,$(JOBS)),1) --target $(TESTS) $(FUZZER)
	@for name in $(TESTS); do echo "== $$name"; build/$@/native/tests/$$name || exit 1; done
	$(if $(FUZZER),build/$@/native/tests/$(FUZZER) $(strip $(FUZZED)))

stubs: $(STAMP) ## the extension module's committed type stubs, from the module
	$(BIN)/python -m nanobind.stubgen --quiet --module headgate._native --output-file src/headgate/_native.pyi
	$(BIN)/ruff check --silent --fix --exit-zero src/headgate/_native.pyi
	$(BIN)/ruff format --quiet src/headgate/_native.pyi

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## time the training operators and a training step
	$(BIN)/python benchmarks/training_op.py
	$(BIN)/python benchmarks/training_step.py --json benchmarks/results/training_step.json

clean: ## remove the environment, build products and caches; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# An interpreter is fit if it is ≥ 3.11, can make a virtual environment and has the headers that the extension needs.
define FIT
import sys
if sys.version_info < (3, 11): sys.exit("is older than 3.11")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("cannot make virtual environments (install its venv package, as python3-venv)")
import pathlib, sysconfig
if not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists():
    sys.exit("lacks the header Python.h (install its development package, as python3-dev)")
endef
export FIT

$(STAMP): $(INPUTS)
	@for cxx in "$${CXX:-}" c++ g++ clang++; do \
	  test -n "$$cxx" || continue; \
	  if echo 'int main() {}' | $$cxx -x c++ -std=c++20 -fsyntax-only - 2>/dev/null; then exit 0; fi; \
	  if test "$$cxx" = "$${CXX:-}"; then break; fi; \
	done; \
	echo "make: no C++20 compiler found$${CXX:+ at CXX=$$CXX}: install g++ (≥ 12) or clang++ (≥ 14), or set CXX" >&2; exit 1
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then exit 0; fi; \
	chosen=; why=; \
	for python in $(or $(strip $(PYTHON)),python3.13 python3.12 python3.11 python3); do \
	  command -v "$$python" >/dev/null 2>&1 || { why="$$why\n  $$python: not found"; continue; }; \
	  if reason=$$("$$python" -c "$$FIT" 2>&1); then chosen=$$python; break; fi; \
	  why="$$why\n  $$python: $$(echo "$$reason" | tail -n 1)"; \
	done; \
	if test -z "$$chosen"; then \
	  printf 'make: no suitable Python found, headgate needs ≥ 3.11; install one, or set PYTHON=…%b\n' "$$why" >&2; exit 1; \
	fi; \
	echo "creating $(VENV) with $$chosen ($$("$$chosen" --version))"; \
	"$$chosen" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --config-settings=cmake.define.HEADGATE_NATIVE_TESTS=ON --editable '.[dev]'
	@touch $@
