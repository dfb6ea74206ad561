#!/usr/bin/env bash
# The part of tools/package-check.sh that runs in the fresh Debian 12.
#
#   check.sh prepare    what needs the network
#   check.sh check      everything else
set -euo pipefail
name=trafficserver-stek-share
plugin=/usr/lib/trafficserver/modules/stek_share.so
ats=/etc/trafficserver
fleet=$ats/stek_share
diags=/var/log/trafficserver/diags.log

# Traffic Server's start with a manager takes some three seconds on an idle machine.
limit_seconds=60

fail() {
    echo "package-check: $*" >&2
    [ ! -e $diags ] || tail -n 30 $diags >&2
    exit 1
}

wait_for() { # WORDS COMMAND...
    local words=$1 end=$((SECONDS + limit_seconds))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited $limit_seconds s in vain for $words"
        sleep 0.2
    done
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes -o Dpkg::Use-Pty=0 "$@"; }

# Every file, but for the logs of the package manager and what only looks change.
files() {
    find / -xdev \( -path /proc -o -path /dev -o -path /var/lib/dpkg -o -path /var/cache \
        -o -path /var/lib/apt -o -path /var/log/apt -o -path /tmp \) -prune -o -print | sort
}

# Whether Traffic Server says anything at its port.
answers() {
    # shellcheck disable=SC2016 # what is in quotes is for the inner shell
    [ -n "$(timeout 3 bash -c 'exec 3<>/dev/tcp/127.0.0.1/8080
        printf "GET / HTTP/1.0\r\n\r\n" >&3; head -c 1 <&3' 2>/dev/null)" ]
}

start() {
    traffic_manager >/dev/null 2>&1 &
    manager=$!
    wait_for "the group's key" grep -q 'stek_share. installed' $diags
}

stop() {
    kill -TERM "$manager"
    wait_for "Traffic Server's end" bash -c "! kill -0 $manager"
    wait "$manager" || true
}

prepare() {
    apt update
    apt install --no-install-recommends trafficserver >/dev/null
    # The first start makes directories of Traffic Server's own.
    files >/before
    # The package's own words about what it needs are all that is used from here on.
    apt install --no-install-recommends --simulate /package.deb | grep '^Inst' || true
    apt install --no-install-recommends /package.deb >/dev/null
    check_state_dir
}

check_state_dir() {
    local is
    is=$(stat -c '%U:%G %a' /run/stek_share)
    [ "$is" = "trafficserver:trafficserver 700" ] || fail "/run/stek_share is $is"
}

installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' $name)" = installed ]
    [ -f $plugin ]
    # What systemd does at each boot.
    systemd-tmpfiles --create
    check_state_dir
    [ "stekctl $(dpkg-query --show --showformat='${Version}' $name)" = "$(stekctl --version)" ] ||
        fail "the package is $(dpkg-query -W $name), and stekctl says $(stekctl --version)"
    ls /usr/share/man/man1/stekctl-status.1.gz >/dev/null
    gzip -t /usr/share/man/man1/stekctl*.gz
    bash -n /usr/share/bash-completion/completions/stekctl
    ldd $plugin /usr/bin/stekctl | grep -q 'not found' && fail "a library is missing"
    grep -q stek_share.so $ats/plugin.config && fail "the package changed plugin.config"
    echo "package-check: it is installed"
}

works() {
    stekctl init /fleet 127.0.0.1 >/dev/null
    cp -r /fleet/server-1 $fleet
    echo "state_dir: /run/stek_share" >>$fleet/server_conf.yaml
    chown -R trafficserver: $fleet
    cp -p $ats/plugin.config /plugin.config.before
    echo "stek_share.so $fleet/server_conf.yaml" >>$ats/plugin.config
    stekctl check $fleet/server_conf.yaml || fail "check says $?"
    start
    wait_for "a healthy fleet" stekctl status
    stekctl status
    [ -n "$(ls /run/stek_share)" ] || fail "nothing is in /run/stek_share"
    grep 'stek_share' $diags | grep -E 'WARNING|ERROR' && fail "these lines should not be there"
    echo "package-check: Traffic Server works with it, as user" \
        "$(stat -c %U /run/stek_share/* | head -n 1)"
}

# The file of a running plugin is replaced; the server does not mind.
upgrades() {
    dpkg --install /package.deb >/dev/null
    stekctl status >/dev/null || fail "after an upgrade under a running server, status says $?"
    stop
    : >$diags
    start
    wait_for "a healthy fleet" stekctl status
    stop
    echo "package-check: it is upgraded under a running server"
}

# What docs/operations.md says of a line that names a plugin which is gone, and what ends it.
out_of_order() {
    local log
    for log in /var/log/trafficserver/*; do : >"$log"; done
    traffic_manager >/dev/null 2>&1 &
    manager=$!
    wait_for "a word about the plugin that is gone" grep -qrs stek_share /var/log/trafficserver
    ! answers || fail "Traffic Server serves, although its plugin.config names what is not there"
    stop
    bash -c "$(sed -n 's/.*(\(sed -i [^)]*\)).*/\1/p' /tmp/removal)"
    traffic_manager >/dev/null 2>&1 &
    manager=$!
    wait_for "Traffic Server without the plugin" answers
    stop
    echo "package-check: a line that was left keeps Traffic Server from starting, and the removal's command" \
        "ends it"
}

goes() {
    dpkg --remove $name >/tmp/removal 2>&1
    grep -q "still names stek_share.so" /tmp/removal ||
        fail "a removal that keeps Traffic Server from starting says nothing: $(cat /tmp/removal)"
    out_of_order
    cmp /plugin.config.before $ats/plugin.config || fail "the removal's command left another plugin.config"
    rm -r $fleet /fleet /plugin.config.before
    dpkg --purge $name >/dev/null 2>&1
    # Traffic Server's own, from having run.
    rm -rf /run/trafficserver /var/log/trafficserver /var/lib/trafficserver
    files >/tmp/after
    # Lines that are in the second list only.
    left=$(grep -v '^/before$' /tmp/after | grep -vxFf /before || true)
    [ -z "$left" ] || fail "these stay behind: $left"
    echo "package-check: nothing stays behind"
}

case $1 in
prepare) prepare ;;
check)
    ip link set lo up
    installed
    works
    upgrades
    goes
    ;;
esac
