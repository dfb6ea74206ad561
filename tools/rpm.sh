#!/usr/bin/env bash
# Makes the RPM of the plugin and stekctl that were built before, for Enterprise Linux 9 and Fedora,
# and looks at what is in it with rpm's own tools.
#
#   tools/rpm.sh DIRECTORY PLUGIN STEKCTL [ARCHITECTURE NATIVE]
#
# Built on Debian 12, both ask for glibc 2.34 and OpenSSL 3.0 at most, which Enterprise Linux 9 has;
# that is checked here. Everything is written below DIRECTORY; the last line names the package. For another
# ARCHITECTURE, as rpm calls it, NATIVE is a stekctl of this version that runs here.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf "$1"
mkdir -p "$1"
work=$(realpath "$1") plugin=$2 stekctl=$3
arch=${4:-$(uname -m)} native=${5:-$3}
name=trafficserver-stek-share

# The newest glibc that the oldest host of this package has.
glibc=2.34
for file in "$plugin" "$stekctl"; do
    newest=$(readelf --version-info --wide "$file" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' |
        sort -uV | tail -n 1)
    if [ -z "$newest" ] || [ "$(printf '%s\n' "$newest" "$glibc" | sort -V | tail -n 1)" != "$glibc" ]
    then
        echo "rpm: $file needs glibc ${newest:-of no version}, and Enterprise Linux 9 has $glibc" >&2
        exit 1
    fi
done

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
# Everything in the package is as old as the last commit, so that one commit makes one package.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

tools/stage.sh "$work/tree" "$plugin" "$stekctl" "$native"
stage=$work/stage tree=$work/tree
put() { # MODE FILE... DIRECTORY
    local mode=$1 to=$stage${*: -1}
    shift
    install -d -m 0755 "$to"
    install -p -m "$mode" "${@:1:$#-1}" "$to"
}
put 0644 "$tree/stek_share.so" /usr/lib64/trafficserver/plugins
put 0755 "$tree/stekctl" /usr/bin
for page in "$tree"/man/*; do
    section=${page##*.}
    put 0644 "$page" "/usr/share/man/man$section"
    gzip -9n "$stage/usr/share/man/man$section/${page##*/}"
done
put 0644 "$tree/completions/stekctl" /usr/share/bash-completion/completions
put 0644 "$tree/completions/_stekctl" /usr/share/zsh/site-functions
put 0644 "$tree/completions/stekctl.fish" /usr/share/fish/vendor_completions.d
put 0644 "$tree"/systemd/* /usr/lib/systemd/system
put 0644 LICENSE "/usr/share/licenses/$name"
install -d -m 0755 "$stage/usr/share/doc" "$stage/usr/lib/tmpfiles.d"
cp -r "$tree/docs" "$stage/usr/share/doc/$name"
cp "$tree/README.md" "$stage/usr/share/doc/$name"
cp -r "$tree/examples" "$stage/usr/share/doc/$name/examples"
# Traffic Server runs as ats there.
sed 's/ trafficserver trafficserver / ats ats /' packaging/debian/tmpfiles \
    >"$stage/usr/lib/tmpfiles.d/$name.conf"
find "$stage" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

sed "s/@VERSION@/$version/" \
    packaging/rpm/$name.spec.in >"$work/$name.spec"
rpmbuild -bb --target "$arch" --define "_topdir $work/rpmbuild" --define "_stage $stage" \
    --define "_rpmdir $work" --define "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" \
    --define "_buildhost reproducible" --define "use_source_date_epoch_as_buildtime 1" \
    --define "clamp_mtime_to_source_date_epoch 1" \
    "$work/$name.spec" >"$work/build.log" 2>&1 || {
    cat "$work/build.log" >&2
    exit 1
}

package=$work/$name-$version-1.$arch.rpm
rpm --query --package --list "$package" >"$work/files"
for file in /usr/lib64/trafficserver/plugins/stek_share.so /usr/bin/stekctl \
    "/usr/share/man/man1/stekctl.1.gz" "/usr/share/doc/$name/README.md" \
    "/usr/share/licenses/$name/LICENSE" "/usr/lib/tmpfiles.d/$name.conf"; do
    grep -qxF "$file" "$work/files" || { echo "rpm: $file is not in $package" >&2; exit 1; }
done
# What comes out is what was built.
rpm2archive "$package"
mkdir "$work/out"
tar --extract --gzip --file "$package.tgz" --directory "$work/out"
rm "$package.tgz"
cmp "$plugin" "$work/out/usr/lib64/trafficserver/plugins/stek_share.so"
cmp "$stekctl" "$work/out/usr/bin/stekctl"
echo "$package"
