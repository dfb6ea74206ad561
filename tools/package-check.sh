#!/usr/bin/env bash
# Installs the Debian package in a Debian 12 made from nothing, lets Debian's own Traffic Server
# run with it there, does what docs/operations.md says, removes it, and looks for what stays behind. Needs root. All mounts, processes
# and network interfaces live in name spaces of their own and are gone when it ends.
#
#   tools/package-check.sh DIRECTORY PACKAGE
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1 package=$2

# A machine without systemd has no systemd-tmpfiles; this is Debian's for such.
tools/fresh-root.sh "$work" systemd-standalone-tmpfiles iproute2
root=$(realpath "$work")/root
cp "$package" "$root/package.deb"
cp tools/package-check-inside.sh "$root/check.sh"
# No service starts by being installed.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

for step in prepare check; do
    net=()
    # Only the first step needs the network; servers listen where nobody else is.
    [ "$step" = prepare ] || net=(--net)
    # shellcheck disable=SC2016 # what is in quotes is for the inner shell
    unshare --mount --pid --fork --kill-child "${net[@]}" bash -c '
        set -euo pipefail
        mount --rbind /dev "$1/dev"
        mount -t proc proc "$1/proc"
        # As after a boot: /run is memory, and empty.
        [ "$2" = prepare ] || mount -t tmpfs -o mode=0755 tmpfs "$1/run"
        HOME=/root LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$1" bash /check.sh "$2"
    ' bash "$root" "$step" </dev/null
    if [ "$step" = prepare ]; then
        rm -rf "$root.fleet"
        mkdir "$root.fleet"
        unshare --mount --net --pid --fork --kill-child --mount-proc \
            tools/first-fleet.sh "$root" "$root.fleet" </dev/null
    fi
done
echo "package-check: it installs, works, upgrades and goes without a trace on a fresh Debian 12"
