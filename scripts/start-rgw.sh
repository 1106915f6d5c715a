#!/usr/bin/env bash
# Runs a private Ceph object gateway, a real server of S3, with one node and its data in a folder. Prints its URL.
# Usage: scripts/start-rgw.sh DIR [PORT]     DIR must not be there yet; PORT is a free one by default
#        scripts/start-rgw.sh --stop DIR     stops it by its process ids; the data stays
#
# Needs Debian's packages: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
# Debian 12 has Ceph 16.2. The findings of what it honours are in tests/it/s3/conformance.rs.
set -euo pipefail

say() { printf '%s\n' "start-rgw: $*" >&2; }
fail() { say "$*"; exit 1; }

if [[ ${1:-} == --stop ]]; then
  dir=${2:?the folder of the gateway}
  # The gateway first: without the others it would wait for them.
  for part in rgw osd mon; do
    [[ -f $dir/$part.pid ]] || continue
    pid=$(<"$dir/$part.pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$dir/$part.pid"
  done
  exit 0
fi

[[ -n ${1:-} ]] || fail "name a folder for its data"
for program in ceph ceph-mon ceph-osd ceph-authtool monmaptool radosgw radosgw-admin; do
  command -v "$program" >/dev/null ||
    fail "there is no $program: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
done
[[ ! -e $1 ]] || fail "$1 is there: --stop what runs in it, and remove it"
mkdir -p "$1"
dir=$(cd "$1" && pwd)
read -r port mon2 mon1 < <(python3 - "${2:-0}" <<'PYTHON'
import socket, sys
wanted = (int(sys.argv[1]), 0, 0)
held = [socket.create_server(("127.0.0.1", port)) for port in wanted]
print(*[one.getsockname()[1] for one in held])
PYTHON
)
cd "$dir"
mkdir run rgw osd
fsid=$(</proc/sys/kernel/random/uuid)
monitor="[v2:127.0.0.1:$mon2,v1:127.0.0.1:$mon1]"
# One node that keeps one copy. The numbers of groups are small, because each pool of the gateway has its own.
cat >ceph.conf <<CONF
[global]
fsid = $fsid
mon host = $monitor
mon initial members = a
public addr = 127.0.0.1
ms bind ipv6 = false
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
osd pool default pg num = 8
osd pool default pgp num = 8
osd crush chooseleaf type = 0
osd objectstore = bluestore
bluestore block size = 4294967296
osd memory target = 1073741824
osd class update on start = false
auth allow insecure global id reclaim = false
run dir = $dir/run
admin socket = $dir/run/\$name.asok
log file = $dir/\$name.log
mon data = $dir/mon
osd data = $dir/osd
keyring = $dir/keyring
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw dynamic resharding = false
rgw data = $dir/rgw
CONF
export CEPH_CONF=$dir/ceph.conf

begun=no
give_up() {
  [[ $begun == yes ]] && return
  "$here/start-rgw.sh" --stop "$dir"
  say "the last of its logs:"
  tail -n 5 "$dir"/*.out >&2 || true
}
here=$(cd "$OLDPWD" && cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
trap give_up EXIT

# until SECONDS WHAT COMMAND...: waits for a command to succeed.
until_it() {
  local seconds=$1 what=$2
  shift 2
  local end=$((SECONDS + seconds))
  until "$@"; do
    ((SECONDS < end)) || fail "$what does not answer after $seconds s"
    sleep 0.5
  done
}

ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *' >/dev/null
for name in client.admin osd.0 client.rgw; do
  ceph-authtool keyring --gen-key -n "$name" --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
done
monmaptool --create --addv a "$monitor" --fsid "$fsid" monmap >/dev/null
ceph-mon --mkfs -i a --monmap monmap --keyring keyring >&2
nohup ceph-mon -f -i a >mon.out 2>&1 </dev/null &
echo $! >mon.pid
mon_answers() { timeout 5 ceph -s >/dev/null 2>&1; }
until_it 60 "the monitor" mon_answers
osd=$(</proc/sys/kernel/random/uuid)
timeout 20 ceph osd new "$osd" >/dev/null
ceph-osd -i 0 --mkfs --osd-uuid "$osd" >osd.out 2>&1
nohup ceph-osd -f -i 0 >>osd.out 2>&1 </dev/null &
echo $! >osd.pid
osd_answers() { timeout 5 ceph osd stat 2>/dev/null | grep -q '1 up'; }
until_it 120 "the store" osd_answers
nohup radosgw -f -n client.rgw >rgw.out 2>&1 </dev/null &
echo $! >rgw.pid
rgw_answers() { curl -s -m 2 -o /dev/null "http://127.0.0.1:$port/"; }
until_it 180 "the gateway" rgw_answers
radosgw-admin user create --uid=casebook --display-name=casebook --access-key=casebook --secret-key=casebook-secret \
  >user.out 2>&1 || fail "the user cannot be made: $(tail -n 1 user.out)"
begun=yes
echo "http://casebook:casebook-secret@127.0.0.1:$port"
