#!/usr/bin/env bash
# Tries the rules for nftables of docs/handbook.md between two network namespaces: servers of the list get
# to the port by IPv4 and IPv6, strangers by neither, and the machine itself does. Needs nft, and root or
# user namespaces.
#
#   tests/examples/firewall.sh HANDBOOK
set -euo pipefail
handbook=$(realpath "$1")
if [ "${2:-}" != inside ]; then
    exec unshare --user --map-root-user --net --mount "$0" "$handbook" inside
fi
mount -t tmpfs none /run
ip netns add outside
ip link add inner type veth peer name outer netns outside
ip link set lo up
ip link set inner up
ip address add 10.0.0.1/24 dev inner
ip address add fd00::1/64 dev inner nodad
ip netns exec outside ip link set outer up
for address in 10.0.0.2/24 10.0.0.9/24; do
    ip netns exec outside ip address add "$address" dev outer
done
for address in fd00::2/64 fd00::9/64; do
    ip netns exec outside ip address add "$address" dev outer nodad
done
sed -n '/^    table inet stek_share {$/,/^    }$/p' "$handbook" | nft -f -
python3 - <<'END' &
import socket
door = socket.create_server(("::", 10001), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    door.accept()[0].close()
END
server=$!
trap 'kill $server' EXIT
gets_in() { # FROM TO [COMMAND...]
    "${@:3}" python3 - "$1" "$2" <<'END'
import socket, sys
source, target = sys.argv[1:]
try:
    socket.create_connection((target, 10001), timeout=0.5, source_address=(source, 0))
except OSError:
    sys.exit(1)
END
}
for _ in $(seq 100); do
    if gets_in 127.0.0.1 127.0.0.1; then break; fi
    sleep 0.1
done
failed=0
expect() { # yes|no FROM TO [COMMAND...]
    local found=no
    if gets_in "${@:2}"; then found=yes; fi
    if [ $found != "$1" ]; then
        echo "from $2 to $3: $found, not $1"
        failed=1
    fi
}
outside=(ip netns exec outside)
expect yes 127.0.0.1 127.0.0.1
expect yes 10.0.0.2 10.0.0.1 "${outside[@]}"
expect yes fd00::2 fd00::1 "${outside[@]}"
expect no 10.0.0.9 10.0.0.1 "${outside[@]}"
expect no fd00::9 fd00::1 "${outside[@]}"
exit $failed
