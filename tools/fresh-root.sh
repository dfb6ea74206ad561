#!/usr/bin/env bash
# Makes a Debian 12 from nothing below DIRECTORY/root, where nothing is but the smallest system,
# certificates, and the packages that are named. Needs root.
#
#   tools/fresh-root.sh DIRECTORY [package ...]
#
# DEBIAN_SUITE=trixie makes a Debian 13.
set -euo pipefail
work=$1
shift
suite=${DEBIAN_SUITE:-bookworm}
[ "$(id -u)" -eq 0 ] || { echo "fresh-root: needs root, for chroot" >&2; exit 1; }

# Where this machine's own packages of Debian 12 come from, unless another mirror is named.
# shellcheck disable=SC2016 # apt-get has a variable of that name
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' \
    'Created-By: Packages' 'Codename: bookworm' | head -n 1)}
[ -n "$mirror" ] || { echo "fresh-root: set DEBIAN_MIRROR to a mirror of Debian" >&2; exit 1; }

mkdir -p "$work"
work=$(realpath "$work") root=$work/root
if [ ! -x "$work/debootstrap/usr/sbin/debootstrap" ]; then
    (cd "$work" && apt-get download debootstrap && dpkg-deb -x debootstrap_*.deb debootstrap)
fi
exec {lock}>"$work/lock"
flock --nonblock "$lock" || { echo "fresh-root: another one works in $work" >&2; exit 1; }
rm -rf --one-file-system "$root"
packages=$(IFS=,; echo "ca-certificates${*:+,$*}")
# What it mounts while it works is gone with the name space, also if it fails.
DEBOOTSTRAP_DIR=$work/debootstrap/usr/share/debootstrap unshare --mount \
    "$work/debootstrap/usr/sbin/debootstrap" --variant=minbase --include="$packages" \
    "$suite" "$root" "$mirror" >"$work/debootstrap.log"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
