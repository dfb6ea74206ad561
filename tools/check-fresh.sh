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
[ "$(id -u)" -eq 0 ] || { echo "check-fresh: needs root, for chroot" >&2; exit 1; }

root=$work/root
# Where this machine's own packages of Debian 12 come from, unless another mirror is named.
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' \
    'Created-By: Packages' 'Codename: bookworm' | head -n 1)}
[ -n "$mirror" ] || { echo "check-fresh: set DEBIAN_MIRROR to a mirror of Debian 12" >&2; exit 1; }
cargo_home=${CARGO_HOME:-$HOME/.cargo}
rustup_home=${RUSTUP_HOME:-$HOME/.rustup}

mkdir -p "$work"
work=$(realpath "$work") root=$work/root
if [ ! -x "$work/debootstrap/usr/sbin/debootstrap" ]; then
    (cd "$work" && apt-get download debootstrap && dpkg-deb -x debootstrap_*.deb debootstrap)
fi
rm -rf --one-file-system "$root"
# make is what the README asks a person to have; ca-certificates is for the registries.
DEBOOTSTRAP_DIR=$work/debootstrap/usr/share/debootstrap \
    "$work/debootstrap/usr/sbin/debootstrap" --variant=minbase --include=ca-certificates,make \
    bookworm "$root" "$mirror" >"$work/debootstrap.log"

mkdir -p "$root/clone" "$root/rustup" "$root/cargo"
git archive HEAD | tar -x -C "$root/clone"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"

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
