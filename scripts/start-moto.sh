#!/bin/sh
# Runs moto, which speaks enough of S3 for tests and keeps everything in memory, and prints its URL. Needs Python 3.10 with
# pip; installs moto once into ${XDG_CACHE_HOME:-~/.cache}/casebook. It takes any credentials.
# Usage: scripts/start-moto.sh [--until-eof] [port]      (stops by SIGTERM to its own pid, or when its input ends)
#        scripts/start-moto.sh --install
set -eu

# What S3 needs of moto[s3,server] and of what that depends on; the whole is four times as much.
packages='moto==5.2.5 boto3==1.44.5 botocore==1.44.5 s3transfer==0.19.3 jmespath==1.1.0 python-dateutil==2.9.0.post0
six==1.17.0 urllib3==2.8.0 werkzeug==3.1.9 markupsafe==3.0.4 flask==3.1.3 flask-cors==6.0.5 blinker==1.9.0 click==8.5.1
itsdangerous==2.2.0 jinja2==3.1.6 requests==2.34.2 certifi==2026.10.18 charset-normalizer==3.5.2 idna==3.20
responses==0.26.3 xmltodict==1.0.4 pyyaml==6.0.3 py-partiql-parser==0.6.3 cryptography==50.0.2 cffi==2.1.1
pycparser==2.23'
say() { printf '%s\n' "start-moto: $*" >&2; }
fail() { say "$*"; exit 1; }

until_eof=no
install=no
case "${1:-}" in
--until-eof) until_eof=yes; shift ;;
--install) install=yes; shift ;;
esac
port=${1:-0}

instead="or name another server of S3 in CASEBOOK_TEST_S3_URL (see CONTRIBUTING.md)"
python=$(python3 -c 'import sys; sys.exit(sys.version_info < (3, 10)); ' && python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
  fail "Python 3.10 or newer is needed: install it, $instead"
# The packages hold compiled code for one version of Python, so each list and version has a folder; one that is there is
# whole.
name=moto-$(printf '%s %s' "$python" "$packages" | cksum | cut -d ' ' -f 1)
target=${XDG_CACHE_HOME:-$HOME/.cache}/casebook/$name
if [ ! -d "$target" ]; then
  python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed: install it, $instead"
  mkdir -p "$(dirname "$target")"
  new=$(mktemp -d "$target.new.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  trap 'exit 1' HUP INT TERM
  say "fetching moto 5.2.5 into $target (114 MB)"
  # shellcheck disable=SC2086 # a list of words
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --root-user-action=ignore \
    --target "$new/packages" $packages >&2 || fail "pip could not install moto: check the network, $instead"
  # Two that install at once both come here, and one of them is second.
  mv -T "$new/packages" "$target" 2>/dev/null || [ -d "$target" ] || fail "$target cannot be made"
  rm -rf "$new"
  trap - EXIT HUP INT TERM
fi
if [ "$install" = yes ]; then
  say "moto is in $target"
  exit 0
fi

# From here on this process is the server, so that its pid is the one to stop.
PYTHONPATH=$target exec python3 -B -c '
import logging, os, signal, sys
from moto.server import ThreadedMotoServer

port, until_eof = int(sys.argv[1]), sys.argv[2] == "yes"
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
server.start()
print("http://test:test@%s:%d" % server.get_host_and_port(), flush=True)
if until_eof:
    sys.stdin.buffer.read()
else:
    while True:
        signal.pause()
os._exit(0)
' "$port" "$until_eof"
