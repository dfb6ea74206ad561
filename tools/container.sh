#!/usr/bin/env bash
# Builds the container images of packaging/container: Traffic Server with the plugin, and what reads its
# metrics for Prometheus.
#
#   tools/container.sh DIRECTORY PACKAGE.deb [OPTION ...]
#
# The builder is $BUILDER, else the first of docker (if its daemon answers), podman and buildah; options
# are passed to its `build`. Below DIRECTORY is what it copies from. The images are named traffic-server-stek-share and
# traffic-server-metrics, with the package's version.
set -euo pipefail
cd "$(dirname "$0")/.."
context=$1 package=$2
shift 2

builder=${BUILDER:-}
for known in docker podman buildah; do
    if [ -z "$builder" ] && command -v $known >/dev/null; then
        # The command is no use without its daemon.
        [ $known = docker ] && ! docker info >/dev/null 2>&1 || builder=$known
    fi
done
[ -n "$builder" ] || {
    echo "container: needs docker, podman or buildah (apt-get install buildah)" >&2
    exit 1
}
rm -rf "$context"
mkdir -p "$context"
cp packaging/container/* examples/trafficserver-exporter.yaml "$context"
cp "$package" "$context/trafficserver-stek-share.deb"
version=$(dpkg-deb --field "$package" Version)
for image in traffic-server:traffic-server-stek-share metrics:traffic-server-metrics; do
    "$builder" build "$@" --target "${image%%:*}" --tag "${image#*:}:$version" \
        --file "$context/Dockerfile" "$context"
done
