# make try     see Lamella back up, verify and restore a real disk image
# make unit    the tests of single parts, in a minute
# make test    everything the tests need, then all rules and all tests but the slow ones, in ten minutes
# make test-all  the slow ones as well, in two processes: what .ci/run runs
# make check   the rules alone: style, sizes, types, direction of imports
# make format  rewrite the source in the one layout `check` accepts
# make test-lvm  the tests of thin volumes, most of them in a guest machine (LAMELLA_GUEST_CYCLES=1000: a long fuzz)
# make test-zfs  the tests of ZFS volumes in a guest machine (LAMELLA_ZFS_ROUNDS=200: a long fuzz)
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
.PHONY: try unit test test-all test-lvm test-zfs check rules format bench fuzz torture clean \
	env-try env-dev system

try: env-try
	@$(BIN)/python tools/try.py $(TRY_ARGS)

PYTEST := $(BIN)/python -m pytest
# Two processes for two processors (tests/conftest.py says which tests stay together).
BOTH := $(PYTEST) --numprocesses 2 --no-loadscope-reorder
# What tests write they also sync, which costs nothing in memory; `make test-all` has it all on a real disk.
MEMORY := $(shell [ "$$(df --output=avail /dev/shm 2>/dev/null | tail -n 1)" -ge 4000000 ] 2>/dev/null && echo TMPDIR=/dev/shm)
QUICK := $(MEMORY) $(BOTH) -m "not slow and not long and not zfs" -o tmp_path_retention_policy=failed

unit: env-dev
	@$(QUICK) tests/unit $(PYTEST_ARGS)

test: env-dev system rules
	@$(QUICK) $(PYTEST_ARGS)

test-all: env-dev system rules
	@$(BOTH) $(PYTEST_ARGS)

test-lvm: env-dev system
	@$(BIN)/python -m pytest tests/unit/test_lvm_words.py tests/unit/test_thin_xml.py tests/property/test_thin_xml.py \
		tests/guest $(PYTEST_ARGS)

# ZFS for the guest's kernel is built first, which takes minutes once a machine. Where that was done `make test-all` runs
# twenty rounds of random changes, too.
test-zfs: env-dev system
	@$(PYTHON) tools/guest_zfs.py
	@LAMELLA_REQUIRE=lvm-guest,zfs-guest LAMELLA_GUEST_SECONDS=14400 $(PYTEST) -m "not long" tests/unit/test_zfs_stream.py tests/guest/test_zfs.py $(PYTEST_ARGS)

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
