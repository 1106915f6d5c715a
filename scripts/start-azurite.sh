#!/bin/sh
# Runs Azurite, Microsoft's own emulator of Azure Blob Storage, which checks signatures and keeps everything in memory, and
# prints its URL with account and key. Needs Node.js 18 with npm; installs Azurite once into
# ${XDG_CACHE_HOME:-~/.cache}/casebook.
# Usage: scripts/start-azurite.sh [--until-eof] [port]      (stops by SIGTERM to its own pid, or when its input ends)
#        scripts/start-azurite.sh --install
set -eu

version=3.35.0
# What it depends on is as old as this, so that everybody has the same.
before=2026-11-15
say() { printf '%s\n' "start-azurite: $*" >&2; }
fail() { say "$*"; exit 1; }

until_eof=no
install=no
case "${1:-}" in
--until-eof) until_eof=yes; shift ;;
--install) install=yes; shift ;;
esac
port=${1:-0}

instead="or name another Azurite in CASEBOOK_TEST_AZURE_URL (see CONTRIBUTING.md)"
node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)' 2>/dev/null ||
  fail "Node.js 18 or newer is needed: install it, $instead"
# Each version and date has a folder; one that is there is whole.
target=${XDG_CACHE_HOME:-$HOME/.cache}/casebook/azurite-$version-$before
if [ ! -d "$target" ]; then
  npm --version >/dev/null 2>&1 || fail "npm is needed: install it, $instead"
  mkdir -p "$(dirname "$target")"
  new=$(mktemp -d "$target.new.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  trap 'exit 1' HUP INT TERM
  say "fetching Azurite $version into $target (190 MB)"
  npm install --prefix "$new/packages" --before "$before" --ignore-scripts --no-audit --no-fund --loglevel=error \
    "azurite@$version" >&2 || fail "npm could not install Azurite: check the network, $instead"
  # Two that install at once both come here, and one of them is second.
  mv -T "$new/packages" "$target" 2>/dev/null || [ -d "$target" ] || fail "$target cannot be made"
  rm -rf "$new"
  trap - EXIT HUP INT TERM
fi
if [ "$install" = yes ]; then
  say "Azurite is in $target"
  exit 0
fi

# It has its settings from arguments and environment. From here on this process is the server, so that its pid is the one to
# stop.
account=casebook
key=$(node -e 'console.log(crypto.randomBytes(33).toString("hex").slice(0, 64))')
export AZURITE_ACCOUNTS="$account:$key"
exec node -e '
const [main, account, key, untilEof] = process.argv.slice(1, 5);
process.argv.splice(1, 4, main);
const say = console.log;
console.log = (text) => {
  const found = /listens on http:\/\/(\S+)/.exec(text);
  if (found) say(`http://${account}:${key}@${found[1]}`);
};
process.on("SIGTERM", () => process.exit(0));
process.on("SIGINT", () => process.exit(0));
if (untilEof === "yes") process.stdin.on("end", () => process.exit(0)).resume();
require(main);
' "$target/node_modules/azurite/dist/src/blob/main.js" "$account" "$key" "$until_eof" \
  --blobHost 127.0.0.1 --blobPort "$port" --inMemoryPersistence --disableTelemetry --silent
