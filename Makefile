# The commands of a checkout. They need python3, g++ and make, keep everything in .venv and build/,
# and skip whatever is up to date.
.PHONY: build demo test lint bench bench-peers wheel test-sanitize test-arm64 clean

PYTHON ?= python3
# This exact version comes as a CPU build; the newest one brings gigabytes of CUDA along.
TORCH ?= torch==2.13.0
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check -q
PY_SOURCES := python kernels tests bench setup.py
CXX_SOURCES = $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp tests/arm64/*.h tests/arm64/*.cpp)

build: $(VENV)/installed
	@$(PY) setup.py -q build_ext --inplace

# Torch first and by itself: its headers build the rest, which pip must not isolate from it.
$(VENV)/torch:
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)" numpy pybind11 setuptools wheel
	@touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	$(PIP) install --no-build-isolation -e ".[demo,test,lint]"
	@touch $@

demo: build
	@$(PY) -m lanewise demo

test: build
	@$(PY) -m pytest

lint: $(VENV)/installed
	@$(PY) -m ruff check $(PY_SOURCES)
	@$(PY) -m ruff format --check $(PY_SOURCES)
	@$(PY) -m mypy
	@$(VENV)/bin/clang-format --dry-run -Werror $(CXX_SOURCES)

# Peers from the package index, and plots.
$(VENV)/bench: $(VENV)/installed
	$(PIP) install --no-build-isolation -e ".[bench]"
	@touch $@

bench: build $(VENV)/bench
	@$(PY) -m bench

# Peers that want an environment of their own. One of them is compiled for this CPU;
# CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON" holds it to AVX2.
bench-peers: build/peers/installed
build/peers/installed: bench/peers.txt
	@test -x build/peers/bin/python || $(PYTHON) -m venv build/peers
	build/peers/bin/pip --disable-pip-version-check -q install -r bench/peers.txt
	@touch $@

wheel: build
	@$(VENV)/bin/pip wheel . --no-build-isolation --no-deps -q -w dist

# The kernels and their checks with every access and every conversion watched. The interpreter is
# not instrumented, so the runtimes are preloaded; torch leaks at exit and defines symbols twice.
SANITIZED := build/sanitize
SANITIZER_FLAGS := -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all
# One of each width, which all takes minutes to instrument: 16 lanes lowered to 8, `wide`, only where
# the CPU does not run the widest itself.
SANITIZED_TARGETS := generic avx2 neon \
                     $(shell grep -qsw avx512_bf16 /proc/cpuinfo && echo avx512bf16 || echo wide)
SANITIZER_TESTS := tests/test_guard_pages.py tests/test_rope.py tests/test_errors.py \
                   $(wildcard tests/test_*_kernel.py)

test-sanitize: $(VENV)/installed
	@LANEWISE_BUILD_TARGETS="$(SANITIZED_TARGETS)" \
	  LANEWISE_CFLAGS="$(SANITIZER_FLAGS) -O1 -g1" LANEWISE_LDFLAGS="$(SANITIZER_FLAGS)" \
	  $(PY) setup.py -q build_py --build-lib $(SANITIZED) \
	  build_ext --build-lib $(SANITIZED) --build-temp build/objects-sanitize
	@LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so) \
	  $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  PYTHONPATH=$(SANITIZED) LANEWISE_TEST_EXAMPLES=5 \
	  $(PY) -m pytest -p no:cacheprovider -m "not interpreted" $(SANITIZER_TESTS)

test-arm64:
	@bash tests/arm64/run.sh

clean:
	rm -rf build dist python/*.egg-info python/lanewise/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
