#!/usr/bin/env bash
# Gathers what is published of one commit: packages, the list of what they are made of, checksums.
#
#   tools/release.sh DIRECTORY PACKAGE...
#
# Checks that the packages hold one and the same plugin and command, and that every crate which the
# list names is in Cargo.lock with its checksum.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$1
shift
rm -rf "$dist"
mkdir -p "$dist"
cp "$@" "$dist"
tools/sbom.py stek_share stekctl >"$dist/stek-share.cdx.json"
git archive --format=tar.gz --prefix=stek-share/ --output "$dist/stek-share-source.tar.gz" HEAD

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The digests of the one plugin and the one command in a package.
contents() { # PACKAGE
    local out=$work/out
    rm -rf "$out"
    mkdir "$out"
    case $1 in
    *.deb) dpkg-deb --extract "$1" "$out" ;;
    *.rpm)
        cp "$1" "$work/one.rpm"
        rpm2archive "$work/one.rpm"
        tar --extract --gzip --file "$work/one.rpm.tgz" --directory "$out"
        ;;
    esac
    find "$out" \( -name stek_share.so -o -name stekctl -path '*/usr/bin/*' \) -type f \
        -exec sha256sum {} + | awk '{ n = split($2, part, "/"); print $1, part[n] }' | sort
}
for pair in amd64:x86_64 arm64:aarch64; do
    deb=("$dist"/*_"${pair%:*}".deb) rpm=("$dist"/*."${pair#*:}".rpm)
    [ -e "${deb[0]}" ] || [ -e "${rpm[0]}" ] || continue
    contents "${deb[0]}" >"$work/deb.sums"
    contents "${rpm[0]}" >"$work/rpm.sums"
    if [ "$(wc -l <"$work/deb.sums")" != 2 ] || ! cmp "$work/deb.sums" "$work/rpm.sums"; then
        echo "release: ${deb[0]} and ${rpm[0]} differ in what they install" >&2
        exit 1
    fi
done
python3 - "$dist/stek-share.cdx.json" <<'END'
import json, sys
parts = json.load(open(sys.argv[1]))["components"]
bare = [p["name"] for p in parts if "hashes" not in p and p["type"] != "application"]
sys.exit(f"release: without a checksum: {', '.join(bare)}" if bare or len(parts) < 20 else 0)
END
(cd "$dist" && sha256sum -- * >SHA256SUMS && sha256sum --check --quiet SHA256SUMS)
ls -l "$dist"
echo "release: $(wc -l <"$dist/SHA256SUMS") files in $dist"
