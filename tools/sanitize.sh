#!/usr/bin/env bash
# Runs the unit tests with the sanitizers that come with the Rust toolchain. RUSTC_BOOTSTRAP makes the stable compiler accept -Z; the standard
# library stays as it is shipped, without instrumentation, which is why there is no thread
# sanitizer here: it would take the library's own synchronisation for none.
#
#   tools/sanitize.sh DIR [KIND...]     DIR keeps what is built; kinds: address, which looks for
#                                       leaks too, and leak alone
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$1
shift
[ $# -gt 0 ] || set -- address
host=$(rustc -vV | sed -n 's/^host: //p')

# A death is no finding where a test means it; and the pool's pages live as long as the process.
export ASAN_OPTIONS=detect_leaks=1:halt_on_error=1:detect_stack_use_after_return=1
export LSAN_OPTIONS=suppressions=$PWD/tests/unsafe_host/leaks.supp:print_suppressions=0
export RUSTC_BOOTSTRAP=1
for kind in "$@"; do
    echo "== $kind sanitizer"
    # The sanitizers make mlock do nothing, hence --skip.
    # Only what is made for the target is instrumented, hence --target: not build scripts.
    RUSTFLAGS="-Zsanitizer=$kind" CARGO_TARGET_DIR=$dir/$kind \
        cargo test --locked --target "$host" --lib -- \
        --skip pages_are_left_out_of_core_dumps_and_locked
done
