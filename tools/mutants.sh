#!/usr/bin/env bash
# Puts known faults, one at a time, into a copy of the last commit, and runs the tests that must
# catch them. A fault that no named test catches is a fault of the tests.
#
#   tools/mutants.sh DIR [PATCH...]
#   tools/mutants.sh refresh [PATCH...]
#
# "refresh" makes patches anew that no longer fit the last commit: it goes back to the newest commit
# that they fit, and has git carry them over what was renamed and moved since.
#
# Without patches all of tests/mutants/*.patch are tried. The head of each says what the fault is,
# and has a line "Test: ..." for each test that must fail, arguments of `cargo test`; "Env: A=B"
# sets a variable for them, and "First: ..." says which seed of the simulation showed it first.
# Before, the tests must pass without any fault. DIR keeps what was built, for the next time, and what
# passed and was caught: after an interruption the same call goes on, as long as the commit is the same.
set -euo pipefail
cd "$(dirname "$0")/.."

# How many commits back a patch is looked for that still fits.
MAX_BACK=300

# Carries one patch to the last commit, in the copy $tree. Names of tests in its head stay as they are.
carry() { # PATCH
    local patch=$1 fits=
    while read -r commit; do
        git -C "$tree" checkout --quiet --detach "$commit"
        git -C "$tree" apply --check "$PWD/$patch" 2>/dev/null && fits=$commit && break
    done < <(git rev-list --first-parent -n $MAX_BACK HEAD)
    [ -n "$fits" ] || { echo "FAILED: $patch fits none of the last $MAX_BACK commits"; return 1; }
    git -C "$tree" apply --index "$PWD/$patch"
    git -C "$tree" commit --quiet --no-verify -m fault
    local fault
    fault=$(git -C "$tree" rev-parse HEAD)
    git -C "$tree" checkout --quiet --detach "$(git rev-parse HEAD)"
    if ! git -C "$tree" cherry-pick --no-commit "$fault" >/dev/null 2>&1; then
        git -C "$tree" reset --quiet --hard
        echo "FAILED: $patch fits $fits; the code that it changes was rewritten since: make it by hand"
        return 1
    fi
    { sed '/^--- /,$d' "$patch" | sed '/^diff --git/,$d'; git -C "$tree" diff --cached |
        sed '/^diff --git /d; /^index /d'; } >"$tree.patch"
    git -C "$tree" reset --quiet --hard
    mv "$tree.patch" "$patch"
    echo "made anew: $patch, from $fits"
}

if [ "${1-}" = refresh ]; then
    shift
    [ $# -gt 0 ] || set -- tests/mutants/*.patch
    tree=$(mktemp -d)
    trap 'git worktree remove --force "$tree"; git worktree prune' EXIT
    git worktree add --quiet --detach "$tree" HEAD
    failed=0
    for patch in "$@"; do
        git apply --check "$patch" 2>/dev/null || carry "$patch" || failed=1
    done
    exit $failed
fi

mkdir -p "$1"
dir=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- tests/mutants/*.patch
tree=$(mktemp -d "$dir/tree.XXXXXX")
trap 'git worktree remove --force "$tree" && git worktree prune' EXIT
git worktree add --quiet --detach "$tree" HEAD

# The plugin under test is the one that cargo builds in the copy, not one that lies elsewhere.
unset STEK_SHARE_SO
export CARGO_TARGET_DIR=$dir/build

# What passed without a fault, and which faults were caught, on this commit.
passed=$dir/passed-$(git rev-parse HEAD)
caught=$dir/caught-$(git rev-parse HEAD)
touch "$passed" "$caught"

head_lines() { # WORD PATCH: what stands behind "WORD:" in the patch's head
    sed -n "/^--- /q; s/^$1: //p" "$2"
}

# Runs one test in the copy. A test that does not build, or does not exist, ends the script.
run() { # ENV ARGUMENTS LOG
    local environment=$1 log=$3
    read -r -a words <<<"$2"
    local selection=() word
    for word in "${words[@]}"; do
        [ "$word" != -- ] || break
        selection+=("$word")
    done
    if ! (cd "$tree" && cargo test --quiet --locked --no-run "${selection[@]}") >"$log" 2>&1; then
        cat "$log"
        echo "FAILED: does not build: $2"
        exit 1
    fi
    local status=0
    local variables
    read -r -a variables <<<"$environment"
    (cd "$tree" && env "${variables[@]}" cargo test --locked "${words[@]}") \
        >"$log" 2>&1 || status=$?
    if ! grep -q '^running 1 test' "$log"; then
        cat "$log"
        echo "FAILED: not exactly one test: $2"
        exit 1
    fi
    return $status
}

log=$dir/last.log
for patch in "$@"; do
    head_lines Test "$patch" | sed "s/^/$(head_lines Env "$patch" | tr '\n' ' ')|/"
done | sort -u >"$dir/tests"
while IFS='|' read -r environment test <&3; do
    ! grep -qxF "$environment|$test" "$passed" || continue
    if ! run "$environment" "$test" "$log"; then
        cat "$log"
        echo "FAILED: this does not pass without any fault: cargo test $test"
        exit 1
    fi
    echo "passes without a fault: $test"
    echo "$environment|$test" >>"$passed"
done 3<"$dir/tests"

missed=0
for patch in "$@"; do
    name=$(basename "$patch" .patch)
    ! grep -qxF "$name" "$caught" || continue
    echo
    echo "$name: $(head_lines Fault "$patch")"
    if ! git -C "$tree" apply "$PWD/$patch"; then
        echo "FAILED: $patch does not fit the code any more; renew it"
        exit 1
    fi
    environment=$(head_lines Env "$patch" | tr '\n' ' ')
    before=$missed
    while read -r test <&3; do
        if run "$environment" "$test" "$log"; then
            echo "  NOT CAUGHT by $test"
            missed=$((missed + 1))
        else
            echo "  caught by $test"
            grep -m 3 -E "^Error|^FAILED: seed|panicked|without waiting|was used|came (after|early)" "$log" |
                sed 's/^/    /' || true
        fi
    done 3< <(head_lines Test "$patch")
    git -C "$tree" checkout --quiet .
    [ "$missed" -ne "$before" ] || echo "$name" >>"$caught"
done
echo
[ "$missed" -eq 0 ] || { echo "FAILED: $missed times a fault was not caught"; exit 1; }
echo "PASSED: each of $# faults is caught"
