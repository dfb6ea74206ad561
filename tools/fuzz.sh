#!/usr/bin/env bash
# Fuzzes everything that reads bytes from outside: builds fuzz/ with the coverage instrumentation
# that the stable compiler's LLVM has, runs its targets one after another, and prints how often
# each ran. Ends with an error if any target has a finding.
#
#   tools/fuzz.sh DIR                 EXECUTIONS in all (default 100 million), shared out by rate
#   MINUTES=60 tools/fuzz.sh DIR      that long in all, shared out evenly
#   TARGETS="list conf"               only these
#   SEED=7                            the same inputs in the same order, as far as time plays no part
#   SANITIZER=address                 with AddressSanitizer, in a directory of its own; needs
#                                     RUSTC_BOOTSTRAP=1, as -Zsanitizer is not stable
#   tools/fuzz.sh DIR build           only builds it
#   tools/fuzz.sh DIR minimise        replaces fuzz/corpus by the fewest inputs of equal coverage
#   tools/fuzz.sh DIR add TARGET FILE...   puts inputs into fuzz/corpus
#
# DIR takes what is built, the inputs that were found worth keeping, and findings. Each target's part
# of the corpus is an archive, which is unpacked there; equal inputs make an equal archive.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:?a directory for what is built and found}
mkdir -p "$dir"
dir=$(realpath "$dir")

# Millions of each hundred million executions: some eight minutes of each of the dear targets on
# one core of 2024, less of the cheap ones that know everything soon.
declare -A share=([frame]=17 [greeting]=3 [stream]=4 [request]=22 [response]=20 [commands]=8 [conf]=1 [list]=2
    [state]=13 [subject]=6 [verb]=2 [hello]=3 [session]=2)
read -ra targets <<<"${TARGETS:-frame greeting stream request response commands conf list state subject verb hello session}"
executions=${EXECUTIONS:-100000000}

unpack() { # TARGET
    rm -rf "${dir:?}/seeds/$1"
    mkdir -p "$dir/seeds/$1"
    tar --extract --gzip --file "fuzz/corpus/$1.tar.gz" --directory "$dir/seeds/$1"
}
pack() { # TARGET
    (cd "$dir/seeds/$1" && printf '%s\0' * | tar --create --null --files-from=- --sort=name \
        --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=0644) |
        gzip --best --no-name >"fuzz/corpus/$1.tar.gz"
}
if [ "${2:-}" = add ]; then
    target=${3:?a target}
    unpack "$target"
    for file in "${@:4}"; do
        cp "$file" "$dir/seeds/$target/$(sha1sum "$file" | cut -d' ' -f1)"
    done
    pack "$target"
    exit
fi

host=$(rustc -vV | sed -n 's/^host: //p')
flags="-C passes=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -C llvm-args=-sanitizer-coverage-$option"
done
build=$dir
if [ -n "${SANITIZER:-}" ]; then
    flags+=" -Zsanitizer=$SANITIZER"
    build=$dir/$SANITIZER
    export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}
fi
RUSTFLAGS=$flags cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml \
    --target "$host" --target-dir "$build"
program=$build/$host/release/fuzz
[ "${2:-}" != build ] || exit 0

# libFuzzer's own limits: seconds for one input, MiB in all, bytes of an input.
limits=(-timeout=10 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1)
[ -z "${SEED:-}" ] || limits+=(-seed="$SEED")

if [ "${2:-}" = minimise ]; then
    for target in "${targets[@]}"; do
        fewest=$dir/fewest/$target
        unpack "$target"
        rm -rf "$fewest" && mkdir -p "$fewest"
        STEK_FUZZ_TARGET=$target "$program" -set_cover_merge=1 -use_counters=0 "${limits[@]}" "$fewest" \
            "$dir/seeds/$target" "$dir/corpus/$target" >"$dir/$target.log" 2>&1
        rm -rf "$dir/seeds/$target" && mv "$fewest" "$dir/seeds/$target"
        pack "$target"
        echo "$target: $(find "$dir/seeds/$target" -type f | wc -l) inputs," \
            "$(stat -c %s "fuzz/corpus/$target.tar.gz") bytes packed"
    done
    exit
fi

sum=0 failed=()
printf '%-10s %12s %10s %8s %8s  %s\n' target executions per-second edges inputs outcome
for target in "${targets[@]}"; do
    unpack "$target"
    mkdir -p "$dir/corpus/$target" "$dir/findings"
    if [ -n "${MINUTES:-}" ]; then
        bound=-max_total_time=$((MINUTES * 60 / ${#targets[@]}))
    else
        bound=-runs=$((executions * ${share[$target]} / 100))
    fi
    log=$dir/$target.log outcome=clean
    STEK_FUZZ_TARGET=$target nice "$program" "$bound" "${limits[@]}" \
        -artifact_prefix="$dir/findings/$target-" "$dir/corpus/$target" "$dir/seeds/$target" \
        >"$log" 2>&1 || { outcome=FINDING; failed+=("$target"); }
    count=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    edges=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2 || true)
    inputs=$(grep -o 'corp: [0-9]*' "$log" | tail -1 | cut -d' ' -f2 || true)
    printf '%-10s %12s %10s %8s %8s  %s\n' "$target" "${count:-?}" "${rate:-?}" "${edges:-?}" \
        "${inputs:-?}" "$outcome"
    sum=$((sum + ${count:-0}))
done
echo "$sum executions, ${#failed[@]} targets with a finding"
for target in ${failed[@]+"${failed[@]}"}; do
    log=$dir/$target.log
    echo "--- $target: what it said, of all that is in $log"
    # The words of the fault itself, not the stack behind them.
    { grep --text --after-context=2 -E 'panicked at|ERROR: ' "$log" | grep --text -v '^--$' |
        cut -c 1-500 | head -n 20; } || true
    grep --text -E '^(SUMMARY|MS): ' "$log" | cut -c 1-500 | tail -n 2 || true
    # All that is left of the input where the directory does not stay; no input is longer than -max_len.
    input=$(sed -n 's/^.*Test unit written to //p' "$log" | tail -n 1)
    if [ -f "$input" ]; then
        echo "its input, $(stat -c %s "$input") bytes, in base64:"
        head -c 8192 "$input" | base64 -w 120
    fi
    echo "once more: STEK_FUZZ_TARGET=$target $program ${input:-FILE}"
done
[ ${#failed[@]} -eq 0 ]
