#!/usr/bin/env bash
# Installs what building and testing need on Debian 12 or 13, besides the Rust toolchain. Does nothing,
# quickly, when all of it is there. Traffic Server's own service is not started.
#
#   tools/deps.sh VENV             VENV is where the Python environment of AuTest and of the
#                                  validators goes, and promtool beside it
#   tools/deps.sh VENV packaging   also what the packages are made with
#   tools/deps.sh VENV arm64       also what builds the packages for arm64
#   tools/deps.sh VENV bench       also the rivals that `make bench` measures
#   tools/deps.sh VENV valgrind    also that
#   tools/deps.sh VENV clients     also the clients of `make prove-clients`
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
purpose=${2:-}
requirements=(tests/autest/requirements.txt tests/examples/requirements.txt)

packages=(
    trafficserver                        # the host of the tests and of the demo
    gcc g++ libc6-dev pkg-config         # compile and link
    libssl-dev                           # TLS and the key generator
    libclang-dev                         # bindgen reads the C header with it
    python3 python3-venv                 # AuTest, validators
    openssl curl ca-certificates         # clients of the tests
    faketime                             # a test's clock that jumps
    iproute2                             # network namespaces, counts of connections
    shellcheck                           # the scripts
    haproxy                              # the balancer of a test
    nftables                             # the firewall of the handbook
)

case $purpose in
"") ;;
packaging) packages+=(dpkg-dev debhelper lintian rpm binutils) ;;
arm64)
    packages+=(
        dpkg-dev debhelper lintian rpm binutils
        gcc-aarch64-linux-gnu
        libc6-dev-arm64-cross
        libssl-dev:arm64
        qemu-user-static                     # runs the command that was built
    )
    ;;
valgrind) packages+=(valgrind) ;;
clients)
    packages+=(
        gnutls-bin                           # gnutls-cli
        libnss3-tools                        # tstclnt
        golang-go
        openjdk-17-jdk-headless
        nodejs
        chromium
    )
    ;;
bench)
    packages+=(
        trafficserver-experimental-plugins   # ssl_session_reuse.so
        redis-server                         # which that one needs
        caddy                                # a web server with keys in common storage
    )
    ;;
*)
    echo "deps: no such purpose: $purpose" >&2
    exit 1
    ;;
esac

say() { echo "deps: $*"; }
fail() { echo "deps: $*" >&2; exit 1; }

command -v cargo >/dev/null ||
    fail "cargo is missing; install a Rust toolchain, at least the rust-version of Cargo.toml"

# Whoever brings a Traffic Server needs none of Debian's.
[ -z "${STEK_TRAFFIC_SERVER:-}" ] || packages=("${packages[@]:1}")

# A package may be there for several architectures, which give a line each.
native=$(dpkg --print-architecture 2>/dev/null || true)
missing=()
for package in "${packages[@]}"; do
    wanted=$native
    [ "${package#*:}" = "$package" ] || wanted=${package#*:}
    dpkg-query --show --showformat='${Architecture} ${db:Status-Status}\n' "$package" 2>/dev/null |
        grep -Ex "(all|$wanted) installed" >/dev/null || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null ||
        fail "no apt-get here; install what Debian 12 calls: ${missing[*]}"
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            fail "neither root nor sudo; as root run: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    # A package may start its service as it is installed. A server on port 8080 that nobody asked
    # for is no business of a test, so starting is forbidden for as long as this takes.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
    fi
    apt() {
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes \
            -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" </dev/null
    }
    [ "$purpose" != arm64 ] || "${as_root[@]}" dpkg --add-architecture arm64
    apt update
    # Debian 13 has none: building goes on, and the tests say which host they lack.
    if [[ " ${missing[*]} " = *" trafficserver "* ]] && ! apt-cache show trafficserver >/dev/null 2>&1
    then
        say "this system has no package trafficserver: everything builds, and the tests with a real" \
            "one need it from elsewhere"
        mapfile -t missing < <(printf '%s\n' "${missing[@]}" | grep -vx trafficserver)
    fi
    apt install --no-install-recommends "${missing[@]}" >/dev/null
    say "Traffic Server's service was not started; systemd may start it at the next boot" \
        "(systemctl disable trafficserver, if that is not wanted)"
fi

if ! cat "${requirements[@]}" | cmp --silent - "$venv/installed"; then
    say "AuTest and validators into $venv"
    rm -rf "$venv"
    # Debian's own interpreter first: another one in PATH may have been built without ensurepip.
    for python in /usr/bin/python3 python3; do
        if "$python" -m venv "$venv"; then break; fi
        rm -rf "$venv"
    done
    [ -x "$venv/bin/pip" ] || fail "no python3 here can make a virtual environment in $venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check \
        "${requirements[@]/#/--requirement=}"
    cat "${requirements[@]}" >"$venv/installed"
fi
# Only this one program is wanted, not Debian's monitoring server with its service.
promtool=$venv/bin/promtool
if [ ! -x "$promtool" ]; then
    say "promtool into $venv"
    unpacked=$(mktemp -d)
    (cd "$unpacked" && apt-get --quiet=2 -o APT::Sandbox::User=root download prometheus && dpkg-deb -x prometheus_*.deb .) ||
        fail "apt-get cannot download Debian's package prometheus"
    install -m 0755 "$unpacked/usr/bin/promtool" "$promtool"
    rm -rf "$unpacked"
fi
say "all there"
