#!/usr/bin/env bash
# Builds the simulation by a profile of itself, which runs some twice as many seeds a second: for proofs of
# hours. What it does is the same; a seed's log does not differ.
#
#   tools/profiled.sh DIR      leaves DIR/simulation
#
# The profile is taken once, of the first build, and serves for later ones: remove DIR to have a new one. Needs
# LLVM's tools of the compiler's own version: rustup component add llvm-tools.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
dir=$(cd "$1" && pwd)
host=$(rustc -vV | sed -n 's/^host: //p')
merge=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
if [ ! -x "$merge" ]; then
    echo "profiled: there is no $merge; rustup component add llvm-tools" >&2
    exit 2
fi

build() { # SUBDIRECTORY FLAGS
    RUSTFLAGS=$2 CARGO_TARGET_DIR=$dir/$1 CARGO_PROFILE_SIMULATION_INCREMENTAL=false \
        cargo build --locked -q --profile simulation -p simulation --target "$host"
}

profile=$dir/profile
if [ ! -e "$profile" ]; then
    rm -rf "$dir/raw"
    build instrumented "-Cprofile-generate=$dir/raw"
    for kind in "--seeds 150" "--foundings --seeds 20" "--large --seeds 4"; do
        # shellcheck disable=SC2086  # words of one kind
        "$dir/instrumented/$host/simulation/simulation" $kind
    done
    "$merge" merge -o "$profile" "$dir/raw"
fi
# What has changed since the profile was taken has none.
CARGO_PROFILE_SIMULATION_LTO=thin CARGO_PROFILE_SIMULATION_CODEGEN_UNITS=1 \
    build built "-Cprofile-use=$profile -Ctarget-cpu=native -Awarnings"
cp --remove-destination "$dir/built/$host/simulation/simulation" "$dir/simulation"
