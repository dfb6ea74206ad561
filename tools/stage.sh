#!/usr/bin/env bash
# Gathers what every package is made of: plugin, command, manuals, completions, documents, examples.
#
#   tools/stage.sh TREE PLUGIN STEKCTL [NATIVE]
#
# NATIVE is a stekctl of this version that runs here, if STEKCTL is for another processor.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$1 plugin=$2 stekctl=$3 native=${4:-$3}

mkdir -p "$tree/man" "$tree/completions" "$tree/examples"
cp README.md "$tree"
cp -r docs "$tree/docs"
cp -r packaging/systemd "$tree/systemd"
# Beside the manuals, or debhelper would take it for a changelog of Debian's form.
cp CHANGELOG.md "$tree/docs"
cp example_server_conf.yaml example_server_list.yaml plugin.config.example examples/* \
    "$tree/examples"
cp -r packaging/kubernetes "$tree/examples/kubernetes"
install -m 0644 "$plugin" "$tree/stek_share.so"
install -m 0755 "$stekctl" "$tree/stekctl"
"$native" man "$tree/man"
"$native" completions bash >"$tree/completions/stekctl"
"$native" completions zsh >"$tree/completions/_stekctl"
"$native" completions fish >"$tree/completions/stekctl.fish"
