#!/usr/bin/env bash
# Runs the container images as the pods of packaging/kubernetes would: builds them with buildah on a
# Debian 12 made from nothing, and has three containers, each with a host name and files of its own, as
# user 1000, become a fleet. Needs root and buildah; downloads packages.
#
#   tools/container-check.sh DIRECTORY PACKAGE.deb
#
# With KEEP=1 the Debian 12 below DIRECTORY, if there is one, is taken once more.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
work=$(realpath "$1") package=$(realpath "$2")
command -v buildah >/dev/null || { echo "container-check: apt-get install buildah" >&2; exit 1; }
# Nothing of this machine's own images is touched.
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
images=(buildah --root "$work/storage" --runroot "$work/runroot")

if [ "${3:-}" != inside ]; then
    if [ -z "${KEEP:-}" ] || [ ! -d "$work/fresh/root" ]; then tools/fresh-root.sh "$work/fresh"; fi
    rm -rf "$work/storage" "$work/runroot"
    from=$("${images[@]}" from scratch)
    "${images[@]}" add --quiet "$from" "$work/fresh/root" / >/dev/null
    "${images[@]}" commit --quiet "$from" docker.io/library/debian:bookworm-slim >/dev/null
    "${images[@]}" rm "$from" >/dev/null
    cat >"$work/builder" <<END
#!/bin/sh
exec ${images[@]} "\$@"
END
    chmod +x "$work/builder"
    BUILDER=$work/builder tools/container.sh "$work/context" "$package" --pull-never \
        --network host >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log"; exit 1; }
    # Bridge, addresses and mounts are gone with these name spaces, and so is every process.
    exec unshare --net --mount --pid --fork --mount-proc "$0" "$1" "$2" inside
fi

version=$(dpkg-deb --field "$package" Version)
limit_seconds=90

fail() {
    echo "container-check: $*" >&2
    tail -n 30 "$work"/pod-*.log >&2
    exit 1
}

wait_for() { # WORDS COMMAND...
    local words=$1 end=$((SECONDS + limit_seconds))
    shift
    until "$@" >"$work/said" 2>&1; do
        [ $SECONDS -lt $end ] || { cat "$work/said" >&2; fail "waited $limit_seconds s in vain for $words"; }
        sleep 0.5
    done
}

config=$work/config certificates=$work/certificates site=$work/site
rm -rf "$config" "$certificates" "$site" "$work"/pod-*.log
mkdir -p "$config" "$certificates" "$site" /run/netns
mount -t tmpfs none /run/netns

# The ConfigMap and the Secret, as Kubernetes mounts them.
awk -v dir="$config" '
    /^  [a-z_.]+: \|$/ { file = dir "/" substr($1, 1, length($1) - 1); next }
    file != "" { sub(/^    /, ""); print >file }' packaging/kubernetes/configmap.yaml
(cd "$certificates" && sed -n 's/^       //p' "$OLDPWD/packaging/kubernetes/README.md" |
    sed -n '/^openssl req/,/^cp /p' | bash -e) 2>/dev/null
chown root:1000 "$certificates"/*
chmod 0440 "$certificates"/*
# What a site of the operator's brings.
openssl req -x509 -newkey rsa:2048 -nodes -days 7 -keyout "$site/site.pem" -out "$site/site.crt" \
    -subj /CN=site.example 2>/dev/null
cat "$site/site.crt" >>"$site/site.pem"
echo "dest_ip=* ssl_cert_name=/site/site.pem" >"$site/ssl_multicert.config"
chmod 0644 "$site"/*

ip link set lo up
ip link add pods type bridge
ip address add 10.9.0.254/24 dev pods
ip link set pods up
echo "127.0.0.1 localhost" >"$work/hosts"
for pod in 0 1 2 3; do
    ip netns add "pod$pod"
    ip link add "pod$pod" type veth peer name eth0 netns "pod$pod"
    ip link set "pod$pod" master pods up
    ip -n "pod$pod" address add "10.9.0.$((pod + 1))/24" dev eth0
    ip -n "pod$pod" link set eth0 up
    ip -n "pod$pod" link set lo up
    echo "10.9.0.$((pod + 1)) traffic-server-$pod.traffic-server-peers traffic-server-$pod" >>"$work/hosts"
done

inside() { # POD COMMAND...
    local pod=$1
    shift
    ip netns exec "pod$pod" "${images[@]}" run --hostname "traffic-server-$pod" --user 1000:1000 --no-hosts \
        --volume "$work/hosts:/etc/hosts:ro" \
        --volume "$config:/etc/trafficserver/stek_share:ro" \
        --volume "$config/plugin.config:/etc/trafficserver/plugin.config:ro" \
        --volume "$certificates:/certificates:ro" --volume "$site:/site:ro" \
        --volume "$work/state-$pod:/run/stek_share" \
        --volume "$site/ssl_multicert.config:/etc/trafficserver/ssl_multicert.config:ro" \
        "stek-pod-$pod" -- "$@"
}

start() { # POD
    # What the StatefulSet has as emptyDir, in memory.
    mkdir -p "$work/state-$1"
    mount -t tmpfs -o uid=1000,gid=1000,mode=0700 none "$work/state-$1"
    "${images[@]}" from --quiet --pull-never --name "stek-pod-$1" \
        "localhost/traffic-server-stek-share:$version" >/dev/null
    run "$1"
}

run() { # POD
    inside "$1" /usr/bin/traffic_server >"$work/pod-$1.log" 2>&1 &
    wait_for "the log of pod $1" grep -q '\[stek_share\]' "$work/pod-$1.log"
}

for pod in 0 1 2; do start $pod; done
for pod in 0 1 2; do wait_for "pod $pod to be ready" inside $pod stek-ready 120; done
inside 0 stekctl status || fail "status says $?"
grep -E 'stek_share.*(WARNING|ERROR)|(WARNING|ERROR).*stek_share' "$work"/pod-*.log && fail "these lines should not be there"

sites=()
for pod in 0 1 2; do sites+=("traffic-server-$pod.traffic-server-peers:8443"); done
inside 0 stekctl doctor --tls "${sites[@]}" || fail "doctor says $?"

"${images[@]}" from --quiet --pull-never --name stek-metrics "localhost/traffic-server-metrics:$version" >/dev/null
ip netns exec pod0 "${images[@]}" run --user 1000:1000 stek-metrics -- prometheus-trafficserver-exporter \
    --no-procstats --metrics-file /etc/trafficserver-exporter.yaml \
    --endpoint http://127.0.0.1:8080/_stats >"$work/pod-metrics.log" 2>&1 &
has_metric() { ip netns exec pod1 curl --silent http://10.9.0.1:9122/metrics | grep "^$1 $2\$"; }
wait_for "the metrics of pod 0" has_metric stek_share_up 1.0

# A pod is replaced: the process ends as Kubernetes ends it, and a new container begins.
for process in $(ip netns pids pod1); do
    case $(readlink "/proc/$process/exe") in */traffic_server) kill -TERM "$process" ;; esac
done
is_gone() { [ -z "$(ip netns pids "pod$1")" ]; }
wait_for "the end of pod 1" is_gone 1
"${images[@]}" rm stek-pod-1 >/dev/null
start 1
wait_for "pod 1 to be ready again" inside 1 stek-ready 120

# One more, as the ConfigMap changes.
cat >>"$config/server_list.yaml" <<END
- server_id: 3
  address: traffic-server-3.traffic-server-peers
  port: 10001
END
start 3
inside 0 stekctl reload --all || fail "reload says $?"
wait_for "pod 3 to be ready" inside 3 stek-ready 120
wait_for "four healthy pods" inside 0 stekctl status
cat "$work/said"
echo "PASSED: three containers, one replaced, a fourth added"
