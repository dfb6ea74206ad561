#!/usr/bin/env bash
# Runs the unsafe part under valgrind's memcheck: the unit tests of src/host, and the plugin in a
# real Traffic Server. An error, or lost memory, with a function of ours on the stack is a failure.
#
#   tools/valgrind.sh TARGET     TARGET is cargo's target directory
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1
command -v valgrind >/dev/null ||
    { echo "valgrind is missing: tools/deps.sh VENV valgrind" >&2; exit 1; }

# With symbols, and with the names of functions that a release build has merged or dropped.
cargo build --locked --lib
unset STEK_SHARE_SO
runner="valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite"
runner+=" --errors-for-leak-kinds=definite --num-callers=30 --fair-sched=yes"
runner+=" --suppressions=$PWD/tests/unsafe_host/memcheck.supp"
CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$runner \
    cargo test --locked --lib -- --test-threads=1 host:: core::stek

STEK_SHARE_SO=$target/debug/libstek_share.so \
    cargo test --locked --test unsafe_host -- --ignored --nocapture
