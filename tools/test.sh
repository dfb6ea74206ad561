#!/usr/bin/env bash
# Runs the test steps one after another, all of them even if one fails, and ends with one line
# that says how it went.
#
#   tools/test.sh NAME=COMMAND ...
set -uo pipefail
cd "$(dirname "$0")/.." || exit

failed=()
begin=$SECONDS
number=0
for step in "$@"; do
    name=${step%%=*} command=${step#*=}
    number=$((number + 1))
    echo
    echo "== [$number/$#] $name: $command"
    step_begin=$SECONDS
    if bash -c "$command" </dev/null; then
        echo "== $name passed in $((SECONDS - step_begin)) s"
    else
        echo "== $name FAILED after $((SECONDS - step_begin)) s"
        failed+=("$name")
    fi
done

echo
if [ ${#failed[@]} -eq 0 ]; then
    echo "PASSED: all $# steps in $((SECONDS - begin)) s"
else
    echo "FAILED: ${failed[*]} (${#failed[@]} of $# steps, $((SECONDS - begin)) s)"
    exit 1
fi
