#!/usr/bin/env bash
# Runs the test steps one after another, all of them even if one fails, and ends with one line
# that says how it went.
#
#   tools/test.sh [~]NAME=COMMAND ...
#
# A step with ~ computes much and waits for nothing: it runs beside those that follow, one such step
# after another, on what processor time they leave. Its output comes when all are done.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

failed=()
begin=$SECONDS
number=0
beside=() # names
lane=     # the process that runs the steps beside the others
work=$(mktemp -d)
trap '[ -z "$lane" ] || kill "$lane" 2>/dev/null; rm -rf "$work"' EXIT

tell() { # NAME STATUS SECONDS
    if [ "$2" = 0 ]; then
        echo "== $1 passed in $3 s"
    else
        echo "== $1 FAILED after $3 s"
        failed+=("$1")
    fi
}

for step in "$@"; do
    case $step in
    "~"*) name=${step%%=*} && beside+=("${name#\~}") && printf '%s\n' "${step#*=}" >"$work/${name#\~}" ;;
    esac
done
if [ ${#beside[@]} -gt 0 ]; then
    (
        for name in "${beside[@]}"; do
            step_begin=$SECONDS
            nice -n 19 bash -c "$(cat "$work/$name")" </dev/null >"$work/$name.out" 2>&1
            echo "$? $((SECONDS - step_begin))" >"$work/$name.end"
        done
    ) &
    lane=$!
fi

for step in "$@"; do
    name=${step%%=*} command=${step#*=}
    [ "${name#\~}" = "$name" ] || continue
    number=$((number + 1))
    echo
    echo "== [$number/$#] $name: $command"
    step_begin=$SECONDS
    bash -c "$command" </dev/null
    tell "$name" $? $((SECONDS - step_begin))
done

[ -z "$lane" ] || wait "$lane"
lane=
for name in "${beside[@]}"; do
    number=$((number + 1))
    echo
    echo "== [$number/$#] $name, beside the others: $(cat "$work/$name")"
    cat "$work/$name.out"
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
