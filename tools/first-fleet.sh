#!/usr/bin/env bash
# Does what docs/operations.md tells, with its very words, and compares what is printed: on four servers,
# each a copy of a Debian 12 with Traffic Server and the package, with an address of its own. Started by
# tools/package-check.sh in name spaces of its own (mounts, network, processes), as root.
#
#   tools/first-fleet.sh ROOT SCRATCH     ROOT is not changed; SCRATCH is an empty directory
#
# A block ```sh here|N...``` is run here (on server 1, in /srv) or on these servers, one after another; a
# block ```text``` behind it is what each of them prints, "..." standing for anything.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$1 scratch=$2
page=docs/operations.md
ats=/etc/trafficserver

# How long one block may take on one server; a certificate is seen within a minute.
limit_seconds=100

fail() {
    echo "first-fleet: $*" >&2
    tail -n 15 "$scratch"/server-*/var/log/trafficserver/diags.log >&2 || true
    exit 1
}

on() { # SERVER COMMAND...
    local server=$1
    shift
    HOME=/root LC_ALL=C PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        timeout $limit_seconds ip netns exec "server-$server" chroot "$scratch/server-$server" "$@"
}

# No systemd and no ssh are in there: what stands for them does the same.
stand_ins() { # DIRECTORY
    cat >"$1/systemctl" <<'END'
#!/bin/bash
# As the unit does: Traffic Server is gone before it starts again.
if [ -s /run/manager.pid ] && kill -TERM "$(cat /run/manager.pid)" 2>/dev/null; then
    while kill -0 "$(cat /run/manager.pid)" 2>/dev/null; do sleep 0.1; done
fi
[ "$1" = stop ] && exit
traffic_manager </dev/null >/dev/null 2>&1 &
echo $! >/run/manager.pid
END
    cat >"$1/scp" <<'END'
#!/bin/bash
# To root@10.0.0.N:PATH. A file that is there keeps its owner and mode.
files=("${@:2:$#-2}") to=${!#}
host=${to%%:*} path=${to#*:}
place=/machines/${host##*.}$path
for file in "${files[@]}"; do
    new=$place/$(basename "$file")
    if [ -e "$new" ]; then cat "$file" >"$new"; else cp -p "$file" "$new"; fi
done
END
    cat >"$1/ssh" <<'END'
#!/bin/bash
# root@10.0.0.N COMMAND...
exec chroot "/machines/${1##*.}" "${@:2}"
END
    chmod 755 "$1/systemctl" "$1/scp" "$1/ssh"
}

machines() {
    mount -t tmpfs tmpfs "$scratch"
    mkdir -p /run/netns
    mount -t tmpfs tmpfs /run/netns
    ip link set lo up
    ip link add switch type bridge
    ip link set switch up
    local server home
    for server in 1 2 3 4; do
        home=$scratch/server-$server
        ip netns add "server-$server"
        ip link add "to-$server" type veth peer name eth0 netns "server-$server"
        ip link set "to-$server" master switch up
        ip -n "server-$server" addr add "10.0.0.$server/24" dev eth0
        ip -n "server-$server" link set eth0 up
        ip -n "server-$server" link set lo up
        mkdir "$scratch/new-$server" "$scratch/work-$server" "$home"
        mount -t overlay -o "lowerdir=$root,upperdir=$scratch/new-$server,workdir=$scratch/work-$server" \
            overlay "$home"
        mount --rbind /dev "$home/dev"
        mount -t proc proc "$home/proc"
        mount -t tmpfs -o mode=0755 tmpfs "$home/run"
        on "$server" systemd-tmpfiles --create
        stand_ins "$home/usr/local/bin"
    done
    for server in 1 2 3 4; do
        mkdir -p "$scratch/server-1/machines/$server"
        mount --bind "$scratch/server-$server" "$scratch/server-1/machines/$server"
    done
}

# Traffic Server's own part: TLS at 443, with one certificate for all.
serve_tls() {
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=www.example \
        -keyout "$scratch/site.key" -out "$scratch/site.pem" 2>/dev/null
    local server etc
    for server in 1 2 3 4; do
        etc=$scratch/server-$server$ats
        cp "$scratch/site.key" "$scratch/site.pem" "$etc"
        on "$server" chown trafficserver: $ats/site.key $ats/site.pem
        echo "dest_ip=* ssl_cert_name=site.pem ssl_key_name=site.key" >>"$etc/ssl_multicert.config"
        sed -i 's/server_ports STRING .*/server_ports STRING 8080 443:ssl/' "$etc/records.config"
        printf 'CONFIG proxy.config.ssl.server.%s.path STRING %s\n' cert $ats private_key $ats \
            >>"$etc/records.config"
    done
}

# The page's blocks, as files NN.where, NN.run and, if there is one, NN.text.
blocks() { # DIRECTORY
    awk -v dir="$1" '
        /^ *```sh /  { number++; line = $0; sub(/^ *```sh /, "", line); indent = index($0, "`") - 1
                       base = sprintf("%s/%03d", dir, number); print line >(base ".where"); into = base ".run"; next }
        /^ *```text/ { indent = index($0, "`") - 1; into = base ".text"; next }
        /^ *```$/    { into = ""; next }
        into         { print substr($0, indent + 1) >into }' "$page"
}

# Whether each line of a block of text was printed, in any order.
printed() { # TEXT SAID
    local line pattern
    while IFS= read -r line; do
        pattern=$(printf '%s' "$line" | sed 's/[][\.*^$+?(){}|/]/\\&/g; s/\\\.\\\.\\\./.*/g')
        grep -qE "^$pattern\$" "$2" || fail "no line '$line' in: $(cat "$2")"
    done <"$1"
}

machines
serve_tls
mkdir "$scratch/blocks"
blocks "$scratch/blocks"
[ "$(find "$scratch/blocks" -name '*.run' | wc -l)" -ge 30 ] || fail "$page has fewer blocks than it had"
for run in "$scratch"/blocks/*.run; do
    block=${run%.run}
    read -ra places <"$block.where"
    for where in "${places[@]}"; do
        begun=$SECONDS
        case $where in
            here) on 1 bash -euc "cd /srv; $(cat "$run")" >"$block.said" 2>&1 ||
                fail "here: $(cat "$run"): $(cat "$block.said")" ;;
            *) on "$where" bash -euc "$(cat "$run")" >"$block.said" 2>&1 ||
                fail "server $where: $(cat "$run"): $(cat "$block.said")" ;;
        esac
        [ ! -e "$block.text" ] || printed "$block.text" "$block.said"
        echo "first-fleet: $(basename "$block") on $where, $((SECONDS - begun)) s: $(head -n 1 "$run")"
    done
done
# What a healthy fleet gives the doctor to say, which is nothing.
[ -z "$(on 3 stekctl doctor)" ] || fail "doctor: $(on 3 stekctl doctor)"
echo "first-fleet: all blocks of $page in $SECONDS s"
