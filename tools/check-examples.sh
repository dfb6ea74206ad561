#!/usr/bin/env bash
# Has each example and manual read by the program that it is for, or by one that knows its form.
# Needs no network. What ties them to the code is in tests/documents.rs.
#
#   tools/check-examples.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
# The oldest Kubernetes whose fields the example uses, and the newest that the validator knows.
kubernetes=(1.28.0 1.37.0)

failed=0
check() { # WORDS COMMAND...
    local words=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "ok: $words"
    else
        echo "FAILED: $words"
        echo "$said"
        failed=1
    fi
}

check "examples/haproxy.cfg" haproxy -c -f examples/haproxy.cfg
for version in "${kubernetes[@]}"; do
    for file in packaging/kubernetes/*.yaml packaging/kubernetes/*.yaml.example; do
        check "$file for Kubernetes $version" \
            "$venv/bin/kubernetes-validate" --strict --quiet -k "$version" "$file"
    done
done
check "examples/prometheus-alerts.yaml" "$venv/bin/promtool" check rules examples/prometheus-alerts.yaml
check "each alarm for its cause" "$venv/bin/promtool" test rules tests/examples/alerts.test.yaml
check "examples/prometheus-alerts-ats10.yaml" \
    "$venv/bin/promtool" check rules examples/prometheus-alerts-ats10.yaml
units=$(mktemp -d)
trap 'rm -rf "$units"' EXIT
cp packaging/systemd/* "$units"
# The command is installed beside them.
sed -i "s|^ExecStart=[^ ]*|ExecStart=/bin/true|" "$units"/*.service
check "the units for the metrics" systemd-analyze verify --man=no "$units"/*.service "$units"/*.timer
check "the rules for nftables" tests/examples/firewall.sh docs/handbook.md
check "the manual in reStructuredText" "$venv/bin/python3" tests/examples/read_rst.py \
    docs/admin-guide/plugins/stek_share.en.rst
exit $failed
