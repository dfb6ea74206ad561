#!/usr/bin/env bash
# Builds the last commit in two folders, with two homes of cargo, and compares what comes of it.
#
#   tools/reproducible.sh DIR
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "${1:?a directory for both}"
dir=$(realpath "$1")

cargo fetch --locked --quiet
cargo_home=${CARGO_HOME:-$HOME/.cargo}
for folder in one another/and/longer; do
    tree=$dir/$folder
    rm -rf "$tree"
    mkdir -p "$tree/home"
    git archive HEAD | tar --extract --directory "$tree"
    ln -s "$cargo_home/registry" "$tree/home/registry"
    (cd "$tree" && CARGO_HOME=$tree/home CARGO_TARGET_DIR=$tree/target \
        cargo build --release --locked --offline --quiet -p stek_share -p stekctl)
    (cd "$tree/target/release" && sha256sum libstek_share.so stekctl) | tee "$dir/${folder%%/*}.sums"
done
cmp "$dir/one.sums" "$dir/another.sums" && echo "reproducible: two folders, one file each"
