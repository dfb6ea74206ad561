#!/usr/bin/env bash
# Builds plugin and stekctl for arm64 on a machine of another kind, makes both packages of them, and
# runs what runs under emulation.
#
#   tools/cross.sh TARGET PLUGINDIR NATIVE
#
# TARGET is cargo's target directory, NATIVE a stekctl of this version that runs here. What is run is
# said at the end; of the plugin only the libraries are looked for, as no Traffic Server is emulated.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1 plugindir=$2 native=$3
triple=aarch64-unknown-linux-gnu

rustup target list --installed 2>/dev/null | grep -qx "$triple" || rustup target add "$triple"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export PKG_CONFIG_ALLOW_CROSS=1 PKG_CONFIG_PATH=/usr/lib/aarch64-linux-gnu/pkgconfig
cargo build --release --locked --target "$triple" --target-dir "$target" -p stek_share -p stekctl
built=$target/$triple/release

# The loader of that processor finds every library, and the command does its work.
libraries=$(qemu-aarch64-static /lib/ld-linux-aarch64.so.1 --list "$built/libstek_share.so")
if grep "not found" <<<"$libraries"; then exit 1; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run() { qemu-aarch64-static "$built/stekctl" "$@"; }
[ "$(run --version)" = "$("$native" --version)" ]
run init "$work/fleet" 127.0.0.1 127.0.0.2 127.0.0.3 >/dev/null
for server in 1 2 3; do
    run check "$work/fleet/server-$server/server_conf.yaml" >"$work/check" || [ $? -le 1 ] ||
        { cat "$work/check" >&2; exit 1; }
done

tools/package.sh "$target/package-arm64" "$built/libstek_share.so" "$built/stekctl" "$plugindir" \
    arm64 "$native"
tools/rpm.sh "$target/rpm-aarch64" "$built/libstek_share.so" "$built/stekctl" aarch64 "$native"
echo "cross: built for arm64; run under emulation: stekctl's version, init and check; found: the plugin's libraries"
