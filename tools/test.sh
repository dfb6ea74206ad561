#!/usr/bin/env bash
# Runs the test steps one after another, all of them even if one fails, and ends with one line
# that says how it went.
#
#   tools/test.sh [~|+]NAME=COMMAND ...
#
# A step with ~ computes much and waits for nothing: it runs beside the others from the start on what
# processor time they leave. One with + waits rather than computes: it runs beside those that follow it, with
# the same right to the processor. Of either kind one runs after another, and its output comes when all
# are done.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

failed=()
begin=$SECONDS
number=0
beside=() # names
lanes=()  # the processes that run the steps beside the others
work=$(mktemp -d)
trap '[ ${#lanes[@]} -eq 0 ] || kill "${lanes[@]}" 2>/dev/null; rm -rf "$work"' EXIT

tell() { # NAME STATUS SECONDS
    if [ "$2" = 0 ]; then
        echo "== $1 passed in $3 s"
    else
        echo "== $1 FAILED after $3 s"
        failed+=("$1")
    fi
}

run_beside() { # MARK NICENESS STEP...
    local mark=$1 niceness=$2 step name names=()
    shift 2
    for step in "$@"; do
        [ "${step#"$mark"}" != "$step" ] || continue
        name=${step%%=*} && name=${name#"$mark"}
        names+=("$name")
        printf '%s\n' "${step#*=}" >"$work/$name"
    done
    [ ${#names[@]} -gt 0 ] || return 0
    beside+=("${names[@]}")
    (
        for name in "${names[@]}"; do
            step_begin=$SECONDS
            nice -n "$niceness" bash -c "$(cat "$work/$name")" </dev/null >"$work/$name.out" 2>&1
            echo "$? $((SECONDS - step_begin))" >"$work/$name.end"
        done
    ) &
    lanes+=($!)
}
run_beside "~" 19 "$@"
are_waiting=

for step in "$@"; do
    name=${step%%=*} command=${step#*=}
    case $name in
    "~"*) continue ;;
    "+"*) # The first of them; the lane goes on with the others.
        [ -n "$are_waiting" ] || run_beside "+" 0 "$@"
        are_waiting=1
        continue
        ;;
    esac
    number=$((number + 1))
    echo
    echo "== [$number/$#] $name: $command"
    step_begin=$SECONDS
    bash -c "$command" </dev/null
    tell "$name" $? $((SECONDS - step_begin))
done

[ ${#lanes[@]} -eq 0 ] || wait "${lanes[@]}"
lanes=()
for name in ${beside[@]+"${beside[@]}"}; do
    number=$((number + 1))
    echo
    echo "== [$number/$#] $name, beside the others: $(cat "$work/$name")"
    cat "$work/$name.out"
    # A step whose process was killed has no end.
    status=none seconds=0
    read -r status seconds <"$work/$name.end"
    tell "$name" "$status" "$seconds"
done

echo
if [ ${#failed[@]} -eq 0 ]; then
    echo "PASSED: all $# steps in $((SECONDS - begin)) s"
else
    echo "FAILED: ${failed[*]} (${#failed[@]} of $# steps, $((SECONDS - begin)) s)"
    exit 1
fi
