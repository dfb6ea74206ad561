#!/usr/bin/env bash
# Sets up a first fleet as the handbook tells, with its very words: three boxes, each a copy of a
# Debian 12 with Traffic Server and the package, with an address of its own. Started by
# tools/package-check.sh in name spaces of its own (mounts, network, processes), as root.
#
#   tools/first-fleet.sh ROOT SCRATCH     ROOT is not changed; SCRATCH is an empty directory
set -euo pipefail
cd "$(dirname "$0")/.."
root=$1 scratch=$2
handbook=docs/handbook.md
ats=/etc/trafficserver

# How long the fleet may take to be one; some five seconds on an idle machine.
limit_seconds=60

fail() {
    echo "first-fleet: $*" >&2
    tail -n 15 "$scratch"/box-*/var/log/trafficserver/diags.log >&2 || true
    exit 1
}

on() { # BOX COMMAND...
    local box=$1
    shift
    HOME=/root LC_ALL=C PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        ip netns exec "box-$box" chroot "$scratch/box-$box" "$@"
}

# The commands of the handbook's section, one block of them after the other.
block() { # NUMBER
    sed -n '/^## A first fleet/,/^## Sizing/p' "$handbook" |
        awk -v wanted="$1" '/^    /{if (!inside) number++; inside = 1;
            if (number == wanted) print substr($0, 5); next} {inside = 0}'
}

machines() {
    mount -t tmpfs tmpfs "$scratch"
    mkdir -p /run/netns
    mount -t tmpfs tmpfs /run/netns
    ip link set lo up
    ip link add switch type bridge
    ip link set switch up
    local box
    for box in 1 2 3; do
        ip netns add "box-$box"
        ip link add "to-$box" type veth peer name eth0 netns "box-$box"
        ip link set "to-$box" master switch up
        ip -n "box-$box" addr add "10.0.0.$box/24" dev eth0
        ip -n "box-$box" link set eth0 up
        ip -n "box-$box" link set lo up
        mkdir "$scratch/new-$box" "$scratch/work-$box" "$scratch/box-$box"
        mount -t overlay -o "lowerdir=$root,upperdir=$scratch/new-$box,workdir=$scratch/work-$box" \
            overlay "$scratch/box-$box"
        mount --rbind /dev "$scratch/box-$box/dev"
        mount -t proc proc "$scratch/box-$box/proc"
        mount -t tmpfs -o mode=0755 tmpfs "$scratch/box-$box/run"
        on "$box" systemd-tmpfiles --create
        # There is no systemd in here; to restart is to start.
        printf '#!/bin/sh\ntraffic_manager >/dev/null 2>&1 &\n' \
            >"$scratch/box-$box/usr/local/bin/systemctl"
        chmod 755 "$scratch/box-$box/usr/local/bin/systemctl"
    done
}

# Traffic Server's own part: TLS at 443, with one certificate for all.
serve_tls() {
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=www.example \
        -keyout "$scratch/site.key" -out "$scratch/site.pem" 2>/dev/null
    local box etc
    for box in 1 2 3; do
        etc=$scratch/box-$box$ats
        cp "$scratch/site.key" "$scratch/site.pem" "$etc"
        on "$box" chown trafficserver: $ats/site.key $ats/site.pem
        echo "dest_ip=* ssl_cert_name=site.pem ssl_key_name=site.key" >>"$etc/ssl_multicert.config"
        sed -i 's/server_ports STRING .*/server_ports STRING 8080 443:ssl/' "$etc/records.config"
        printf 'CONFIG proxy.config.ssl.server.%s.path STRING %s\n' cert $ats private_key $ats \
            >>"$etc/records.config"
    done
}

machines
serve_tls
# 1 is the package's installation, which has happened; 3 is a copy, for which there is no scp here.
case $(block 1) in "apt-get install "*) ;; *) fail "the handbook's first block is another" ;; esac
on 1 bash -euc "cd /srv; $(block 2)" >/dev/null || fail "the handbook's second block"
case $(block 3) in "scp -rp fleet/box-2 "*":$ats/stek_share") ;; *) fail "the third is another" ;; esac
for box in 1 2 3; do
    cp -rp "$scratch/box-1/srv/fleet/box-$box" "$scratch/box-$box$ats/stek_share"
    on "$box" bash -euc "$(block 4)" || fail "the handbook's fourth block on box $box"
done
until on 2 stekctl status >"$scratch/said" 2>&1; do
    [ $SECONDS -lt $limit_seconds ] || fail "not healthy after $SECONDS s: $(cat "$scratch/said")"
    sleep 0.2
done
on 2 bash -euc "set -x; $(block 5)" || fail "the handbook's fifth block"
# What a healthy fleet gives the doctor to say, which is nothing.
[ -z "$(on 3 stekctl doctor)" ] || fail "doctor: $(on 3 stekctl doctor)"
echo "first-fleet: three boxes are one fleet, $SECONDS s after the first command of the handbook"
