#!/usr/bin/env bash
# Installs the Debian package, as it was built on Debian 12, in a Debian 13 made from nothing, tries what
# of it needs no Traffic Server, of which Debian 13 has none, and removes it. Needs root. All mounts,
# processes and network interfaces live in name spaces of their own.
#
#   tools/package-check-trixie.sh DIRECTORY PACKAGE
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1 package=$2

DEBIAN_SUITE=trixie tools/fresh-root.sh "$work"
root=$(realpath "$work")/root
cp "$package" "$root/package.deb"
cat >"$root/check.sh" <<'END'
set -euo pipefail
name=trafficserver-stek-share
plugin=/usr/lib/trafficserver/modules/stek_share.so
fail() { echo "package-check-trixie: $*" >&2; exit 1; }
apt() { DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes -o Dpkg::Use-Pty=0 "$@"; }
files() {
    find / -xdev \( -path /proc -o -path /dev -o -path /var/lib/dpkg -o -path /var/cache \
        -o -path /var/lib/apt -o -path /var/log/apt -o -path /tmp \) -prune -o -print | sort
}
case $1 in
prepare)
    apt update
    # What it depends on stays when it goes.
    apt install --no-install-recommends openssl >/dev/null
    files >/before
    apt install /package.deb >/dev/null
    ;;
check)
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' $name)" = installed ]
    libraries=$(ldd -r $plugin /usr/bin/stekctl)
    grep -E 'not found|undefined symbol' <<<"$libraries" && fail "a library or a symbol is missing"
    [ "stekctl $(dpkg-query --show --showformat='${Version}' $name)" = "$(stekctl --version)" ] ||
        fail "the package is $(dpkg-query -W $name), and stekctl says $(stekctl --version)"
    stekctl --help | grep -q '^  doctor ' || fail "stekctl --help does not tell of doctor"
    gzip -t /usr/share/man/man1/stekctl*.gz
    stekctl init /fleet 127.0.0.1 127.0.0.2 127.0.0.3 >/dev/null
    for n in 1 2 3; do
        stekctl check /fleet/server-$n/server_conf.yaml || fail "check of server $n says $?"
        openssl verify -CAfile /fleet/server-$n/ca.crt /fleet/server-$n/server.crt >/dev/null
    done
    # A fault is found there as well.
    sed -i 's/^key_update_interval:.*/key_update_interval: soon/' /fleet/server-1/server_conf.yaml
    said=$(stekctl check /fleet/server-1/server_conf.yaml 2>&1) && fail "check finds no fault"
    grep -q 'key_update_interval' <<<"$said" || fail "check says: $said"
    rm -r /fleet
    dpkg --purge $name >/dev/null 2>&1
    files >/tmp/after
    left=$(grep -v '^/before$' /tmp/after | grep -vxFf /before || true)
    [ -z "$left" ] || fail "these stay behind: $left"
    ;;
esac
END
for step in prepare check; do
    net=()
    [ "$step" = prepare ] || net=(--net)
    # shellcheck disable=SC2016 # what is in quotes is for the inner shell
    unshare --mount --pid --fork --kill-child "${net[@]}" bash -c '
        set -euo pipefail
        mount --rbind /dev "$1/dev"
        mount -t proc proc "$1/proc"
        HOME=/root LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$1" bash /check.sh "$2"
    ' bash "$root" "$step" </dev/null
done
echo "package-check-trixie: on a fresh Debian $(cat "$root/etc/debian_version") it installs, stekctl works, and it goes without a trace"
