#!/usr/bin/env bash
# Runs the long proofs one after another on one commit, and goes on where it was interrupted.
#
#   tools/prove.sh DIR [STEP...]
#
# DIR/COMMIT/ has for each step its output and, once it has ended, a line of the table that
# docs/testing.md shows. A step that passed is not run again on the same commit; one that failed or
# was interrupted is. Seeds of the simulation are run in pieces, so that a day may be spread over
# evenings: PIECES=2 of SEEDS=5000 each from FROM=1, unless told otherwise; FAST=1 and TWICE=1 are handed on.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

[ $# -ge 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dir=$1
shift
commit=$(git rev-parse --short=10 HEAD)
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
    echo "prove: the tree has changes that no commit names; commit them first" >&2
    exit 2
fi
out=$dir/$commit
mkdir -p "$out"

seeds=${SEEDS:-5000} pieces=${PIECES:-2} from=${FROM:-1}
steps=()
if [ $# -gt 0 ]; then
    steps=("$@")
else
    for ((piece = 0; piece < pieces; piece++)); do
        steps+=("simulate-$((from + piece * seeds))-$((from + (piece + 1) * seeds - 1))")
    done
    steps+=(prove-rotation prove-million prove-restarts prove-network prove-clients prove-model prove-traces panics prove-attack soak valgrind
        sanitize mutants mutants-core check-fresh package-check)
fi

command_of() { # STEP
    case $1 in
    simulate-*-*)
        local range=${1#simulate-}
        echo "make --no-print-directory simulate FROM=${range%-*} SEEDS=$((${range#*-} - ${range%-*} + 1))" \
            "${FAST:+FAST=1} ${TWICE:+TWICE=1}"
        ;;
    *) echo "make --no-print-directory $1" ;;
    esac
}

# The last line that sums a step up, for the table.
summary() { # FILE
    grep -aE '^[0-9]+ seeds,|^today|^test result:|^PASSED|^FAILED|executions|caught|: 0 errors|ERROR SUMMARY' "$1" |
        tail -n 1 | tr '|' '/' | cut -c 1-160
}

failed=0
for step in "${steps[@]}"; do
    if [ -e "$out/$step.passed" ]; then
        echo "== $step passed before"
        continue
    fi
    echo "== $step: $(command_of "$step")"
    begin=$SECONDS
    if bash -c "$(command_of "$step")" </dev/null >"$out/$step.out" 2>&1; then
        result=passed
    else
        result=FAILED
        failed=1
        tail -n 20 "$out/$step.out"
    fi
    took=$((SECONDS - begin))
    echo "== $step $result after $took s; see $out/$step.out"
    row="| $step | $(date -u +%Y-%m-%d) | $commit | $took s | $result: $(summary "$out/$step.out") |"
    echo "$row" >"$out/$step.row"
    [ "$result" = FAILED ] || mv "$out/$step.row" "$out/$step.passed"
done

echo
echo "| step | date | commit | length | result |"
echo "|---|---|---|---|---|"
for step in "${steps[@]}"; do
    cat "$out/$step.passed" "$out/$step.row" 2>/dev/null
done
exit $failed
