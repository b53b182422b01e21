# make try     see Lamella back up, verify and restore a real disk image
# make unit    the tests of single parts, in a minute
# make test    everything the tests need, then all rules and all tests but the slow ones, in ten minutes
# make test-all  the slow ones as well, one after the other: what .ci/run runs
# make check   the rules alone: style, sizes, types, direction of imports
# make format  rewrite the source in the one layout `check` accepts
# make test-lvm  the tests of thin volumes, most of them in a guest machine (LAMELLA_GUEST_CYCLES=1000: a long fuzz)
# make bench   speeds and sizes beside other programs (BENCH_ARGS=...)
# make fuzz    the long searches
# make torture  random damage, kills and prunes for an hour, judged by the emergency reader (TORTURE_ARGS='--seed 7')
# make clean   remove everything that was made here
#
# PYTHON=... chooses the interpreter, PYTEST_ARGS=... is passed on.

PYTHON ?= python3
PYTEST_ARGS ?=
TRY_ARGS ?=
BENCH_ARGS ?=
TORTURE_ARGS ?= --minutes 60 --keep-going
BIN := .venv/bin

export PYTHON
# Where Debian keeps mkfs and losetup, which is not on every user's path.
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := test
.PHONY: try unit unit-first unit-second test test-first test-second test-all test-lvm check rules format bench fuzz torture clean \
	env-try env-dev system

try: env-try
	@$(BIN)/python tools/try.py $(TRY_ARGS)

# Two processes for two processors. Each has its output shown when it ends, and none is an error if it has no tests at all
# (5: PYTEST_ARGS chose others).
TWO := $(MAKE) --no-print-directory --jobs 2 --output-sync=target
PYTEST := $(BIN)/python -m pytest
# What they write they also sync, which costs nothing in memory; `make test-all` has it all on a real disk.
MEMORY := $(shell [ "$$(df --output=avail /dev/shm 2>/dev/null | tail -n 1)" -ge 4000000 ] 2>/dev/null && echo TMPDIR=/dev/shm)
QUICK := $(MEMORY) $(PYTEST) -m "not slow and not long" -o tmp_path_retention_policy=failed
UNIT_TESTS := $(wildcard tests/unit/test_*.py)
UNIT_FIRST := $(wildcard tests/unit/test_[a-q]*.py)
FOLDERS := $(sort $(dir $(wildcard tests/*/test_*.py tests/*/*/test_*.py)))
FIRST := tests/fault/ tests/unit/ tests/property/

unit: env-dev
	@$(TWO) unit-first unit-second
unit-first:
	@$(QUICK) $(UNIT_FIRST) $(PYTEST_ARGS) || [ $$? = 5 ]
unit-second:
	@$(QUICK) $(filter-out $(UNIT_FIRST),$(UNIT_TESTS)) $(PYTEST_ARGS) || [ $$? = 5 ]

test: env-dev system
	@$(TWO) rules test-first test-second
test-first:
	@$(QUICK) $(FIRST) $(PYTEST_ARGS) || [ $$? = 5 ]
test-second:
	@$(QUICK) $(filter-out $(FIRST),$(FOLDERS)) $(PYTEST_ARGS) || [ $$? = 5 ]

test-all: env-dev system rules
	@$(PYTEST) $(PYTEST_ARGS)

test-lvm: env-dev system
	@$(BIN)/python -m pytest tests/unit/test_lvm_words.py tests/unit/test_thin_xml.py tests/property/test_thin_xml.py \
		tests/guest $(PYTEST_ARGS)

check: env-dev rules

rules: env-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@NO_COLOR=1 $(BIN)/lint-imports

format: env-dev
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: env-try
	@$(BIN)/python -m bench $(BENCH_ARGS)

fuzz: env-dev
	@HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -m "long or not long" --timeout 0 $(PYTEST_ARGS)

torture: env-dev
	@$(BIN)/python -m tests.torture $(TORTURE_ARGS)

env-try:
	@tools/setup-env.sh try

env-dev:
	@tools/setup-env.sh dev

system:
	@tools/setup-env.sh system

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
