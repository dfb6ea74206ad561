#!/usr/bin/env bash
# Changes `core` in every way that cargo-mutants knows, one change at a time, in a copy that is a
# crate of its own, and runs core's unit tests. A change that no test catches is a missing test, or
# changes nothing that counts; those are named, with the reason, in tests/core_alone/mutants.toml.
#
#   tools/mutants_core.sh DIR CARGO_MUTANTS [ARGUMENT...]
#
# The report stays in DIR/mutants.out. More arguments go to cargo-mutants: --file src/core/x.rs.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
dir=$(cd "$1" && pwd) tool=$2
shift 2

crate=$dir/crate
rm -rf "$crate"
mkdir -p "$crate/.cargo"
cp tests/core_alone/Cargo.toml "$crate/"
cp tests/core_alone/mutants.toml "$crate/.cargo/"
cp tests/core_alone/lib.rs "$crate/"
cp -r src/core "$crate/core"
cp Cargo.lock "$crate/"

# The lock file has more than this crate needs; what it needs keeps its version. One job at a time,
# hence one target directory for all mutants, in which only core itself is built anew.
export CARGO_TARGET_DIR=$dir/build
(cd "$crate" && cargo test --quiet --offline --lib --no-run) ||
    (cd "$crate" && cargo test --lib --no-run)

# A mutant may loop for ever; the tests take a second.
status=0
nice "$tool" mutants --dir "$crate" --output "$dir" --jobs 1 --timeout 120 --build-timeout 300 \
    --no-shuffle --colors never "$@" || status=$?
for kind in caught missed unviable timeout; do
    echo "$kind: $(wc -l <"$dir/mutants.out/$kind.txt")"
done
# 3 is cargo-mutants' for some that loop and none that is missed: the tests never pass with those.
case $status in
0 | 3) ;;
*)
    echo "FAILED: mutants that no test catches stand above"
    exit 1
    ;;
esac
echo "PASSED: every mutant of core is caught, or named in tests/core_alone/mutants.toml"
