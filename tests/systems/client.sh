# What the scripts beside this one share: how they call the server, and how they check what it answers.
# Needs grpcurl on PATH. CASEBOOK_ADDRESS is host:port of the server.
: "${CASEBOOK_ADDRESS:=127.0.0.1:50051}"
answer=

# Says what comes next, so that a failure can be placed.
step() { printf '%s\n' "- $*"; }

fail() {
  printf '%s\n' "FAILED: $*" "The last answer was:" "$answer"
  exit 1
}

# call DecisionService/GetDecision <request: JSON>: the answer, as JSON, is in $answer.
call() {
  answer=$(printf '%s' "$2" | grpcurl -plaintext -d @ "$CASEBOOK_ADDRESS" "casebook.v1.$1" 2>&1) ||
    fail "$1 was refused"
}

# refused NotFound DecisionService/GetDecision <request: JSON>: the call must fail with this code.
refused() {
  if answer=$(printf '%s' "$3" | grpcurl -plaintext -d @ "$CASEBOOK_ADDRESS" "casebook.v1.$2" 2>&1); then
    fail "$2 was not refused"
  fi
  has "Code: $1"
}

# has <text>: the answer holds it.
has() {
  printf '%s\n' "$answer" | grep -qF -e "$1" || fail "there is no $1"
}

# lacks <text>: the answer does not hold it.
lacks() {
  ! printf '%s\n' "$answer" | grep -qF -e "$1" || fail "there is $1"
}

# count <number> <text>: so many lines of the answer hold it.
count() {
  found=$(printf '%s\n' "$answer" | grep -cF -e "$2") || true
  [ "$found" = "$1" ] || fail "$2 is there $found times instead of $1 times"
}

# values <field>: what the answer has for a text field, each on a line. grpcurl writes & as \u0026.
values() {
  printf '%s\n' "$answer" | sed -n -e 's/\\u0026/\&/g' -e "s/.*\"$1\": \"\([^\"]*\)\".*/\1/p"
}

# value <field>: the first of them.
value() {
  values "$1" | head -n 1
}

# same <file> <file>: they have the same bytes.
same() {
  cmp "$1" "$2" || fail "$1 and $2 are not the same"
}

# digest <file>: its SHA-256 as JSON has it, in base64.
digest() {
  sha256sum <"$1" | cut -c 1-64 | tr a-f A-F | basenc --base16 -d | base64
}

# hex <bytes in base64>: the same in hexadecimal, as the audit log has it.
hex() {
  printf '%s' "$1" | base64 -d | basenc --base16 -w 0 | tr A-F a-f
}

# chunks: the bytes that the answer has as chunks.
chunks() {
  values chunk | while read -r chunk; do printf '%s' "$chunk" | base64 -d; done
}
