#!/usr/bin/env bash
# Sets up a first fleet as the handbook tells, with its very words: three servers, each a copy of a
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
    tail -n 15 "$scratch"/server-*/var/log/trafficserver/diags.log >&2 || true
    exit 1
}

on() { # SERVER COMMAND...
    local server=$1
    shift
    HOME=/root LC_ALL=C PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        ip netns exec "server-$server" chroot "$scratch/server-$server" "$@"
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
    local server
    for server in 1 2 3; do
        ip netns add "server-$server"
        ip link add "to-$server" type veth peer name eth0 netns "server-$server"
        ip link set "to-$server" master switch up
        ip -n "server-$server" addr add "10.0.0.$server/24" dev eth0
        ip -n "server-$server" link set eth0 up
        ip -n "server-$server" link set lo up
        mkdir "$scratch/new-$server" "$scratch/work-$server" "$scratch/server-$server"
        mount -t overlay -o "lowerdir=$root,upperdir=$scratch/new-$server,workdir=$scratch/work-$server" \
            overlay "$scratch/server-$server"
        mount --rbind /dev "$scratch/server-$server/dev"
        mount -t proc proc "$scratch/server-$server/proc"
        mount -t tmpfs -o mode=0755 tmpfs "$scratch/server-$server/run"
        on "$server" systemd-tmpfiles --create
        # There is no systemd in here; to restart is to start.
        printf '#!/bin/sh\ntraffic_manager >/dev/null 2>&1 &\n' \
            >"$scratch/server-$server/usr/local/bin/systemctl"
        chmod 755 "$scratch/server-$server/usr/local/bin/systemctl"
    done
}

# Traffic Server's own part: TLS at 443, with one certificate for all.
serve_tls() {
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=www.example \
        -keyout "$scratch/site.key" -out "$scratch/site.pem" 2>/dev/null
    local server etc
    for server in 1 2 3; do
        etc=$scratch/server-$server$ats
        cp "$scratch/site.key" "$scratch/site.pem" "$etc"
        on "$server" chown trafficserver: $ats/site.key $ats/site.pem
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
case $(block 3) in "scp -rp fleet/server-2 "*":$ats/stek_share") ;; *) fail "the third is another" ;; esac
for server in 1 2 3; do
    cp -rp "$scratch/server-1/srv/fleet/server-$server" "$scratch/server-$server$ats/stek_share"
    on "$server" bash -euc "$(block 4)" || fail "the handbook's fourth block on server $server"
done
until on 2 stekctl status >"$scratch/said" 2>&1; do
    [ $SECONDS -lt $limit_seconds ] || fail "not healthy after $SECONDS s: $(cat "$scratch/said")"
    sleep 0.2
done
on 2 bash -euc "set -x; $(block 5)" || fail "the handbook's fifth block"
# What a healthy fleet gives the doctor to say, which is nothing.
[ -z "$(on 3 stekctl doctor)" ] || fail "doctor: $(on 3 stekctl doctor)"
echo "first-fleet: three servers are one fleet, $SECONDS s after the first command of the handbook"
