#!/usr/bin/env bash
# Puts known faults, one at a time, into a copy of the last commit, and runs seeds of the simulation until a
# promise is broken or what happens at agreement is refused. A fault that no seed shows is named.
#
#   tools/traces.sh DIR [PATCH...]
#
# Without patches these are tried: those whose head says that traces show them (`Traces: yes`, or an option of
# the simulation whose seeds do), and those that a test of seeds must catch. Each line says how many seeds a
# fault took, and what was said. SEEDS=300 is the most, FROM=1 the first. DIR keeps what was built, for the
# next time.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -ge 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
dir=$(realpath "$1")
shift
if [ $# -eq 0 ]; then
    mapfile -t patches < <(grep -lE '^(Traces: |Test: -p simulation --test seeds )' tests/mutants/*.patch)
    set -- "${patches[@]}"
fi
seeds=${SEEDS:-300} from=${FROM:-1}
tree=$(mktemp -d "$dir/tree.XXXXXX")
trap 'git worktree remove --force "$tree" && git worktree prune' EXIT
git worktree add --quiet --detach "$tree" HEAD
export CARGO_TARGET_DIR=$dir/build

failed=0
for patch in "$@"; do
    name=$(basename "$patch" .patch)
    kind=$(sed -n 's/^Traces: \(--[a-z-]*\)$/\1/p' "$patch")
    until=--until-broken says=
    if grep -q '^Traces: ' "$patch"; then
        until=--until-refused says='traces: '
    elif grep -q 'a_living_leader_survives' "$patch"; then
        kind=--resets
    fi
    git -C "$tree" reset --quiet --hard
    git -C "$tree" apply "$PWD/$patch"
    (cd "$tree" && cargo build --locked -q -p simulation)
    "$dir/build/debug/simulation" --seeds "$seeds" --from "$from" "$until" ${kind:+"$kind"} \
        >"$dir/$name.out" 2>&1 || true
    line=$(grep -am 1 "^FAILED: seed [0-9]*: $says" "$dir/$name.out" || true)
    if [ -n "$line" ]; then
        seed=${line#FAILED: seed }
        why=${line#*: "$says"}
        echo "$name: $((${seed%%:*} - from + 1)) seeds${kind:+ ($kind)}: ${why%%; seen at *}" | cut -c 1-240
    else
        echo "$name: not found in $seeds seeds"
        failed=1
    fi
done
exit $failed
