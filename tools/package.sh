#!/usr/bin/env bash
# Makes the Debian package of the plugin and stekctl that were built before, and has lintian look
# at it.
#
#   tools/package.sh DIRECTORY PLUGIN STEKCTL PLUGINDIR [ARCHITECTURE NATIVE]
#
# The package's version is that of Cargo.toml. Who makes it is $DEBFULLNAME <$DEBEMAIL>, else the
# last commit's author. Everything is written below DIRECTORY; the last line names the package. For another
# ARCHITECTURE, as Debian calls it, NATIVE is a stekctl of this version that runs here.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1 plugin=$2 stekctl=$3 plugindir=$4
arch=${5:-$(dpkg --print-architecture)} native=${6:-$3}
name=trafficserver-stek-share

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
author="${DEBFULLNAME:-$(git log -1 --format=%an)} <${DEBEMAIL:-$(git log -1 --format=%ae)}>"
# Everything in the package is as old as the last commit, so that one commit makes one package.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
tree=$work/tree

rm -rf "$work"
mkdir -p "$tree"
cp -r packaging/debian "$tree/debian"
tools/stage.sh "$tree" "$plugin" "$stekctl" "$native"

(
    cd "$tree/debian"
    sed "s|@MAINTAINER@|$author|" control.in >control
    sed "s|@PLUGINDIR@|${plugindir#/}|" install.in >install
    sed -i "s|@PLUGINDIR@|/${plugindir#/}|" postinst
    rm control.in install.in copyright.py
    cat >changelog <<END
stek-share ($version) bookworm; urgency=medium

  * Release $version; what changed is in CHANGELOG.md.

 -- $author  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
END
)
packaging/debian/copyright.py stek_share stekctl >"$tree/debian/copyright"

# dpkg-shlibdeps calls what Traffic Server provides unresolved, which it is until it is loaded.
(cd "$tree" && dpkg-buildpackage --build=binary --no-sign --host-arch "$arch") >"$work/build.log" 2>&1 || {
    cat "$work/build.log" >&2
    exit 1
}
package=$work/${name}_${version}_$arch.deb
lintian --allow-root --fail-on error,warning --info "$package" >&2
echo "$package"
