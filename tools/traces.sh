#!/usr/bin/env bash
# Puts known faults of agreement, one at a time, into a copy of the last commit, and runs seeds of the
# simulation until what happens at agreement is refused. A fault that no seed shows is named.
#
#   tools/traces.sh DIR [PATCH...]
#
# A patch says in its head that traces show it: `Traces: yes`, or an option of the simulation whose seeds do.
# Each line says how many seeds a fault took, and why it was refused. SEEDS=300 is the most, FROM=1 the
# first. DIR keeps what was built, for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
dir=$(realpath "$1")
shift
if [ $# -eq 0 ]; then
    # Those whose head says that traces show them.
    mapfile -t patches < <(grep -l '^Traces: ' tests/mutants/*.patch)
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
    git -C "$tree" reset --quiet --hard
    git -C "$tree" apply "$PWD/$patch"
    (cd "$tree" && cargo build --locked -q -p simulation)
    "$dir/build/debug/simulation" --seeds "$seeds" --from "$from" --until-refused ${kind:+"$kind"} \
        >"$dir/$name.out" 2>&1 || true
    line=$(grep -am 1 '^FAILED: seed [0-9]*: traces: ' "$dir/$name.out" || true)
    if [ -n "$line" ]; then
        seed=${line#FAILED: seed }
        why=${line#*: traces: }
        echo "$name: $((${seed%%:*} - from + 1)) seeds${kind:+ ($kind)}: ${why%%; seen at *}" | cut -c 1-240
    else
        echo "$name: not refused in $seeds seeds"
        failed=1
    fi
done
exit $failed
