#!/usr/bin/env bash
# Proves that `make deps` names everything: makes a Debian 12 from nothing, puts a clone of HEAD
# and this machine's Rust toolchain in it, and runs make's targets there. Needs root. All mounts
# live in a mount namespace of their own and are gone when it ends, whichever way.
#
#   tools/check-fresh.sh DIRECTORY [target ...]      targets: deps build, unless others are given
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1
shift
[ $# -gt 0 ] || set -- deps build
cargo_home=${CARGO_HOME:-$HOME/.cargo}
rustup_home=${RUSTUP_HOME:-$HOME/.rustup}

# make is what the README asks a person to have.
tools/fresh-root.sh "$work" make
root=$(realpath "$work")/root
mkdir -p "$root/clone" "$root/rustup" "$root/cargo"
git archive HEAD | tar -x -C "$root/clone"

# shellcheck disable=SC2016 # what is in quotes is for the inner shell
unshare --mount --pid --fork --kill-child bash -c '
    set -euo pipefail
    root=$1 cargo_home=$2 rustup_home=$3
    shift 3
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount --bind "$cargo_home" "$root/cargo"
    mount --bind "$rustup_home" "$root/rustup"
    HOME=/root CI=true CARGO_HOME=/cargo RUSTUP_HOME=/rustup \
        PATH=/cargo/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        chroot "$root" make -C /clone "$@"
' bash "$root" "$cargo_home" "$rustup_home" "$@" </dev/null
echo "check-fresh: make $* works on a fresh Debian 12"
