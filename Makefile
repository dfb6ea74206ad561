# `make` lists the targets. Everything that is built, installed for the tests or written by them
# goes under target/; only `fix` changes the tree.

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
PLUGIN := $(TARGET)/release/stek_share.so
VENV   := $(TARGET)/autest-venv
DENY   := $(or $(shell command -v cargo-deny),$(TARGET)/tools/bin/cargo-deny)
DENY_VERSION := 0.20.2
CARGO_MUTANTS := $(or $(shell command -v cargo-mutants),$(TARGET)/tools/bin/cargo-mutants)
CARGO_MUTANTS_VERSION := 27.1.0

# Where Traffic Server looks for plugins: what it says itself, else where Debian puts them.
PLUGINDIR ?= $(or $(shell traffic_layout info 2>/dev/null | sed -n 's/^PLUGINDIR: //p'),\
                  $(shell dpkg -L trafficserver 2>/dev/null | grep -m 1 '/modules$$'),\
                  /usr/lib/trafficserver/modules)

INSTALLED = $(DESTDIR)$(strip $(PLUGINDIR))/stek_share.so

# Where the command goes.
BINDIR ?= /usr/local/bin
STEKCTL := $(TARGET)/release/stekctl
INSTALLED_STEKCTL = $(DESTDIR)$(strip $(BINDIR))/stekctl

# The tests that need no Traffic Server: units, documentation examples apart, and clusters of nodes.
CLUSTER_TESTS := $(patsubst tests/%.rs,--test %,$(wildcard tests/cluster*.rs)) \
                 $(patsubst tests/%/main.rs,--test %,$(wildcard tests/cluster*/main.rs))

# For the tests that load the plugin into a real Traffic Server.
export STEK_SHARE_SO = $(PLUGIN)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help deps build build-own-openssl build-tests demo test test-quick verify-all rust-version \
        reproducible fix autest prove prove-rotation prove-million prove-restarts prove-network prove-clients \
        deps-clients soak simulate prove-model prove-traces mutants measure deny deny-tool deny-advisories install uninstall absolute man \
        check-fresh package rpm package-arm64 release package-check package-check-trixie \
        container container-check \
        check-examples clean deps-bench bench bench-quick bench-compare bench-scale fuzz prove-attack \
        panics valgrind sanitize mutants-core mutants-tool

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

deps: ## install what building and testing need (Debian 12; root or sudo)
	@tools/deps.sh $(VENV)

build: ## the plugin, target/release/stek_share.so, and the command, target/release/stekctl
	cargo build --release --locked -p stek_share -p stekctl
	@cp --remove-destination $(TARGET)/release/libstek_share.so $(PLUGIN)

# Where docs/support.md says what that means. perl builds OpenSSL.
build-own-openssl: ## the plugin with an OpenSSL of its own inside, for hosts linked with BoringSSL
	cargo build --release --locked -p stek_share --features own-openssl \
	    --target-dir $(TARGET)/own-openssl
	@cp --remove-destination $(TARGET)/own-openssl/release/libstek_share.so \
	    $(TARGET)/own-openssl/stek_share.so
	@echo "$(TARGET)/own-openssl/stek_share.so"

demo: deps build ## three Traffic Servers on this machine share a key, before your eyes
	cargo run --release --locked -p testkit --bin demo -- $(PLUGIN)

test: deps build build-tests ## lints, documentation and all tests, with real Traffic Servers; ends with a result
	@tools/test.sh \
	    "format=cargo fmt --all --check" \
	    "lints=$(CLIPPY)" \
	    "docs=RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items --locked" \
	    "scripts=shellcheck tools/*.sh tests/examples/*.sh .ci/run packaging/debian/prerm packaging/debian/postrm packaging/debian/postinst packaging/container/stek-ready" \
	    "servers=RUST_TEST_THREADS=$(AT_ONCE) $(CARGO_TEST) $(IN_TURNS:%=--test %)" \
	    "+reload=RUST_TEST_THREADS=$(AT_ONCE) $(CARGO_TEST) --test reload" \
	    "+patient=$(CARGO_TEST) $(PATIENT:%=--test %)" \
	    "cargo=$(CARGO_TEST) --lib --bins $(OTHERS:%=--test %)" \
	    "autest=$(MAKE) --no-print-directory autest" \
	    "examples=$(MAKE) --no-print-directory check-examples" \
	    "~seeds=$(SIMULATION) --seeds 250 --until-broken" \
	    "~late-votes=$(SIMULATION) --late-votes --from 201 --seeds 40 --until-broken" \
	    "~resets=$(SIMULATION) --resets --from 301 --seeds 40 --until-broken" \
	    "~computing=$(CARGO_TEST) $(COMPUTING:%=--test %)" \
	    "~fuzz=$(MAKE) --no-print-directory fuzz EXECUTIONS=2500000 SEED=1"

CARGO_TEST := cargo test --workspace --locked --no-fail-fast
# Test programs that only compute; whose tests of real servers bound by themselves how many of them go on
# at once (testkit's `turns`), so that they may have more threads than there are processors; that wait for
# what a server does once or twice a minute, or for one command after another; and all others, as cargo
# finds them. `make panics` has its own.
COMPUTING := rules seeds
IN_TURNS := ats fleet
PATIENT := demo killed memory stub_host
OTHERS := $(filter-out $(COMPUTING) $(IN_TURNS) $(PATIENT) reload panics,$(sort $(basename $(notdir \
    $(wildcard tests/*.rs tests/*/tests/*.rs stekctl/tests/*.rs) \
    $(patsubst %/main.rs,%,$(wildcard tests/*/main.rs tests/*/tests/*/main.rs stekctl/tests/*/main.rs))))))
# Tests that are begun at once where they wait for their turns.
AT_ONCE := 8

# As build-tests leaves it.
SIMULATION := $(TARGET)/debug/simulation

CLIPPY := cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

build-tests:
	cargo test --workspace --locked --no-run --quiet
	@tools/fuzz.sh $(TARGET)/fuzz build

test-quick: ## units and clusters of nodes; no Traffic Server needed
	cargo test --workspace --lib --locked $(CLUSTER_TESTS)

# What `make test` has no time for. The first steps want what may have to be fetched.
verify-all: test ## besides: cargo-deny, the promised compiler, one file from two folders; half an hour more
	@tools/test.sh \
	    "crates=$(MAKE) --no-print-directory deny" \
	    "rust-version=$(MAKE) --no-print-directory rust-version" \
	    "reproducible=$(MAKE) --no-print-directory reproducible"

RUST_VERSION = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

rust-version: ## whether the compiler that Cargo.toml promises takes the code, if rustup has it
	@if rustup run $(RUST_VERSION) rustc --version 2>/dev/null; then \
	    CARGO_TARGET_DIR=$(TARGET)/rust-version \
	        rustup run $(RUST_VERSION) cargo check --workspace --all-targets --locked; \
	else echo "not tried: rustup toolchain install $(RUST_VERSION)"; fi

reproducible: ## the last commit built in two folders gives one plugin and one command; some 8 minutes
	@tools/reproducible.sh $(TARGET)/reproducible

fix: ## format, and apply what clippy can fix; changes the tree
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

autest: ## the AuTest tests with the built plugin (after deps and build)
	@tools/autest.sh $(VENV) $(TARGET)/autest $(PLUGIN)

prove: ## all of the long proofs on one commit, going on where it was interrupted; PIECES=2 SEEDS=5000 FROM=1; root
	@tools/prove.sh $(TARGET)/proof $(STEPS)

prove-rotation: build ## the rotation tests in full: 10 s interval, 20 rotations; some 8 minutes
	STEK_ROTATION_INTERVAL=10 STEK_ROTATION_COUNT=20 STEK_ROTATION_RATE=30 \
	    cargo test --locked --test rotation -- --nocapture

prove-million: build ## a million strict offers over rotations, half of them while servers fail; some 30 minutes
	STEK_ROTATION_INTERVAL=10 STEK_ROTATION_COUNT=20 STEK_ROTATION_RATE=$(or $(RATE),800) \
	    STEK_ROTATION_OFFERS=$(or $(OFFERS),500000) cargo test --locked --test rotation -- --nocapture

prove-restarts: build ## the restart tests in full: 100 single ones, 50 of a majority or all; some 9 minutes
	STEK_RESTARTS=100 STEK_RESTART_ROUNDS=50 cargo test --locked --test restarts -- --nocapture

prove-network: build ## parted, slow and lossy networks in network namespaces (root); some 3 minutes
	cargo test --locked --test network -- --ignored --nocapture --test-threads=1
	cargo test --locked --test cluster -- --ignored --nocapture --exact \
	    network::a_slow_network_that_loses_one_piece_in_twenty

deps-clients: ## what `make prove-clients` needs besides: GnuTLS, NSS, Go, Java, Node.js, Chromium
	@tools/deps.sh $(VENV) clients

prove-clients: deps-clients build ## TLS clients of others resume on three servers as on one; some 2 minutes
	cargo test --locked --test clients -- --ignored --nocapture

soak: build ## an hour of faults under load, in network namespaces (root); MINUTES=5, SEED=1
	cargo run --locked -q -p testkit --bin soak -- --minutes $(or $(MINUTES),60) \
	    --out $(TARGET)/soak $(if $(SEED),--seed $(SEED))

simulate: ## seeds of the simulation: SEEDS=10000 FROM=1 LATE_VOTES=1 RESETS=1 FOUNDINGS=1 LARGE=1; SEED=7 for the story of one; FAST=1 TWICE=1
	$(if $(FAST),tools/profiled.sh $(TARGET)/profiled)
	SIMULATE_AGAIN='make simulate SEED={}' \
	    $(if $(FAST),$(TARGET)/profiled/simulation,cargo run --profile simulation --locked -q -p simulation --) \
	    $(if $(LATE_VOTES),--late-votes) $(if $(RESETS),--resets) \
	    $(if $(FOUNDINGS),--foundings) $(if $(LARGE),--large) $(if $(TWICE),--twice) \
	    $(if $(SEED),--seed $(SEED) --log,--seeds $(or $(SEEDS),1000) --from $(or $(FROM),1))

prove-model: ## core's rules of agreement through all orders of events, as deep as MINUTES=30 go; some 10 GB
	cargo run --locked -q -p model -- $(or $(MINUTES),30)

prove-traces: ## put faults back, and run seeds until a promise is broken or what servers do is refused; SEEDS=300
	@SEEDS=$(SEEDS) FROM=$(FROM) tools/traces.sh $(TARGET)/traces

fuzz: ## fuzz what reads bytes from outside; EXECUTIONS=100000000 or MINUTES=60, TARGETS="list conf"
	@tools/fuzz.sh $(TARGET)/fuzz

prove-attack: ## 100 million executions of the fuzz targets, 100,000 connections of strangers; half an hour
	@$(MAKE) --no-print-directory fuzz
	STEK_ADVERSARIAL_CONNECTIONS=100000 cargo test --locked --test adversarial -- --nocapture

panics: ## a panic in every callback and task of the plugin, in real Traffic Servers; some 4 minutes
	env -u STEK_SHARE_SO CARGO_TARGET_DIR=$(TARGET)/fail-points \
	    cargo test --locked --features fail-points --test panics -- --nocapture

valgrind: ## the unsafe part and a real Traffic Server under memcheck; some 10 minutes
	@tools/deps.sh $(VENV) valgrind
	@tools/valgrind.sh $(TARGET)

sanitize: ## unit tests with the address sanitizer, which finds leaks too; some 5 minutes
	@tools/sanitize.sh $(TARGET)/sanitize

mutants-core: mutants-tool ## change core in every way that cargo-mutants knows; some three hours
	@tools/mutants_core.sh $(TARGET)/mutants-core $(CARGO_MUTANTS) $(ARGS)

# Some two minutes of compiling.
mutants-tool:
	@test -x $(CARGO_MUTANTS) || cargo install --locked --version $(CARGO_MUTANTS_VERSION) \
	    --root $(TARGET)/tools --target-dir $(TARGET)/tools/build cargo-mutants

mutants: ## put known faults into a copy of the last commit; tests must catch each (debug builds)
	@tools/mutants.sh $(TARGET)/mutants

deps-bench: ## what `make bench` needs besides: Redis, caddy, ATS's experimental plugins
	@tools/deps.sh $(VENV) bench

# Part of a bench is a look back: the earlier figures are kept to be compared with.
bench: deps-bench build ## this plugin and its rivals, measured side by side, into docs/benchmarks.md; some 25 minutes
	@cp docs/benchmarks.json $(TARGET)/bench-before.json 2>/dev/null || true
	cargo run --locked -q -p testkit --bin measure -- bench \
	    --json docs/benchmarks.json --report docs/benchmarks.md

bench-quick: build ## this plugin and plain Traffic Server in under three minutes
	cargo run --locked -q -p testkit --bin measure -- bench --quick --json $(TARGET)/bench-quick.json

bench-compare: ## what has become worse beyond noise; OLD=target/bench-before.json NEW=docs/benchmarks.json
	cargo run --locked -q -p testkit --bin measure -- compare \
	    $(or $(OLD),$(TARGET)/bench-before.json) $(or $(NEW),docs/benchmarks.json)

bench-scale: ## fleets of up to 200 servers without Traffic Server, into docs/scale.json; SERVERS=5,20; some 7 minutes
	cargo build --release --locked -p standalone_node
	STEK_SHARE_LONE=$(TARGET)/release/standalone_node cargo run --locked -q -p testkit --bin measure -- scale \
	    $(if $(SERVERS),--servers $(SERVERS)) --json docs/scale.json

measure: build ## cold start, spread, idle cost, failover, size; WHAT="spread idle", ARGS="--runs 3"
	cargo run --locked -q -p testkit --bin measure -- $(or $(WHAT),all) \
	    --json $(TARGET)/measure.json $(ARGS)

deny: deny-tool ## licences, duplicates and sources of all crates, as deny.toml has it
	$(DENY) --offline --locked check licenses bans sources

deny-advisories: deny-tool ## known faults of crates; fetches the RustSec database
	$(DENY) --locked check advisories

# Some four minutes of compiling, hence not part of `make test`, which has tests/crates.rs.
deny-tool:
	@test -x $(DENY) || cargo install --locked --version $(DENY_VERSION) \
	    --root $(TARGET)/tools --target-dir $(TARGET)/tools/build cargo-deny

install: absolute ## plugin and command to where they are looked for (DESTDIR, PLUGINDIR, BINDIR)
	@test -f "$(PLUGIN)" && test -f "$(STEKCTL)" || \
	    { echo "nothing to install yet: make build" >&2; exit 1; }
	@install -D -m 0644 "$(PLUGIN)" "$(INSTALLED)" && \
	    install -D -m 0755 "$(STEKCTL)" "$(INSTALLED_STEKCTL)" || \
	    { echo "may you write there? 'sudo make install', or set DESTDIR, PLUGINDIR or BINDIR" >&2; \
	      exit 1; }
	@echo "installed $(INSTALLED)"
	@echo "installed $(INSTALLED_STEKCTL)"

uninstall: absolute ## take them away again
	rm -f "$(INSTALLED)" "$(INSTALLED_STEKCTL)"

man: ## stekctl's man pages, in target/man (after build)
	@mkdir -p $(TARGET)/man
	@$(STEKCTL) man $(TARGET)/man
	@echo "man pages in $(TARGET)/man"

# An empty PLUGINDIR, for instance from a command that failed, would mean the root directory.
absolute:
	@case "$(strip $(PLUGINDIR))" in /*) ;; \
	    *) echo "PLUGINDIR has to be an absolute path, not '$(strip $(PLUGINDIR))'" >&2; exit 1 ;; esac
	@case "$(strip $(BINDIR))" in /*) ;; \
	    *) echo "BINDIR has to be an absolute path, not '$(strip $(BINDIR))'" >&2; exit 1 ;; esac

check-examples: ## haproxy, Kubernetes, Prometheus files and manuals, each by its own checker (after deps)
	@tools/check-examples.sh $(VENV)

package: ## the Debian package, looked at by lintian, in target/package
	@tools/deps.sh $(VENV) packaging
	cargo build --release --locked -p stek_share -p stekctl
	@tools/package.sh $(TARGET)/package $(TARGET)/release/libstek_share.so \
	    $(TARGET)/release/stekctl "$(strip $(PLUGINDIR))"

rpm: ## the RPM for Enterprise Linux 9 and Fedora, from the same build, in target/rpm
	@tools/deps.sh $(VENV) packaging
	cargo build --release --locked -p stek_share -p stekctl
	@tools/rpm.sh $(TARGET)/rpm $(TARGET)/release/libstek_share.so $(TARGET)/release/stekctl

package-arm64: build ## both packages for arm64, built here, tried under emulation
	@tools/deps.sh $(VENV) arm64
	@tools/cross.sh $(TARGET) "$(strip $(PLUGINDIR))" $(TARGET)/release/stekctl

release: package rpm package-arm64 ## all packages, what they are made of, and checksums, in target/dist
	@tools/release.sh $(TARGET)/dist $(TARGET)/package/*.deb $(TARGET)/rpm/*.rpm \
	    $(TARGET)/package-arm64/*.deb $(TARGET)/rpm-aarch64/*.rpm

package-check: package ## install, run, upgrade and remove it in a Debian 12 made from nothing (root)
	@tools/package-check.sh $(TARGET)/package-check $(TARGET)/package/*.deb

package-check-trixie: package ## install it in a Debian 13 made from nothing, where no Traffic Server is packaged (root)
	@tools/package-check-trixie.sh $(TARGET)/package-check-trixie $(TARGET)/package/*.deb

container: package ## the container images, by docker, podman or buildah; see packaging/kubernetes
	@tools/container.sh $(TARGET)/container $(TARGET)/package/*.deb

container-check: package ## build them with buildah and run three as pods would be (root; downloads packages)
	@tools/container-check.sh $(TARGET)/container-check $(TARGET)/package/*.deb

check-fresh: ## deps and build in a Debian 12 made from nothing (root; downloads it)
	@tools/check-fresh.sh $(TARGET)/fresh

clean: ## remove target/
	cargo clean
