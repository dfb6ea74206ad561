#!/usr/bin/env bash
# Runs the AuTest tests with a plugin, bounded in time, and leaves no server behind.
#
#   tools/autest.sh VENV SANDBOX PLUGIN [further arguments of autest]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 sandbox=$2 plugin=$3
shift 3

# Both tests take some fifteen seconds on two cores.
limit_seconds=180

status=0
# AuTest cannot end a server whose checks raise an exception, so it is not trusted to end itself.
timeout --signal=INT --kill-after=10 "$limit_seconds" "$venv/bin/autest" run \
    --directory tests/autest --sandbox "$sandbox" --plugin "$plugin" --clean none \
    --disable-color "$@" </dev/null || status=$?
[ "$status" -ne 124 ] || echo "autest: not done after $limit_seconds seconds" >&2

# The servers and the origin have a path of the sandbox in their command line, and only they.
for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    command=$(tr '\0' ' ' 2>/dev/null <"$process/cmdline" || true)
    case $command in
    *"--run-root=$sandbox/"* | *"-m http.server"*"--directory $sandbox/"*)
        echo "autest: ended a process that was left behind: $pid $command" >&2
        kill -KILL "$pid" 2>/dev/null || true
        [ "$status" -ne 0 ] || status=1
        ;;
    esac
done
exit "$status"
