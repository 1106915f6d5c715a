#!/bin/sh
# Signed URLs: bytes go straight between curl and the store, without credentials and past the server.
# Usage: CASEBOOK_ADDRESS=127.0.0.1:50051 tests/systems/signed.sh     (on an empty database, with a store on S3)
set -eu
. "$(dirname "$0")/client.sh"
command -v curl >/dev/null || fail "this needs curl, which is not installed"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# The store is asked itself, whatever proxy the environment names.
go() { curl --noproxy "*" --silent --show-error "$@"; }

# fetch <url> <file>: GETs it; the headers of the answer are in $work/headers.
fetch() {
  go --fail --dump-header "$work/headers" --output "$2" "$1" || fail "curl does not get $1"
}

# put <file> <url> [<header>...]: PUTs the file there. curl itself says how long it is.
put() {
  body=$1
  url=$2
  shift 2
  for header; do
    set -- "$@" --header "$header"
    shift
  done
  go --fail --upload-file "$body" "$@" "$url" || fail "curl cannot put to $url"
}

# expires_in <seconds>: the answer says so, give or take a minute.
expires_in() {
  left=$(($(date -d "$(value expireTime)" +%s) - $(date +%s)))
  [ "$left" -le $(($1 + 1)) ] && [ "$left" -gt $(($1 - 60)) ] || fail "it expires in $left s"
}

step "a decision, what it rests on, and a file"
call DecisionService/CreateDecision '{
  "decision_id": "dec-123",
  "decision": {"input_data": {"text": "May this comment stay?"}, "final_verdict": "DENY", "avg_confidence": 0.85}
}'
call EvidenceService/CreateEvidenceBundle '{
  "evidence_bundle": {"decision_id": "dec-123", "evidence_data": {"verdict": "DENY", "confidence": 0.85}}
}'
printf '{"confidence":0.85,"verdict":"DENY"}' >"$work/bundle.json"
head -c 700000 /dev/urandom >"$work/report.pdf"
report=$(digest "$work/report.pdf")
call BlobService/UploadBlob \
  "{\"header\": {\"content_type\": \"application/pdf\"}} {\"chunk\": \"$(base64 -w 0 "$work/report.pdf")\"}"
has "\"value\": \"$report\""

step "generate_presigned_url_for_evidence: whoever has the URL gets the bundle, for an hour"
call EvidenceService/CreateShareLink '{"decision_id": "dec-123"}'
expires_in 3600
fetch "$(value url)" "$work/came"
same "$work/bundle.json" "$work/came"

step "a URL of any blob, for as long as one likes; browsers save it under a name"
call BlobService/CreateDownloadUrl \
  "{\"digest\": {\"value\": \"$report\"}, \"ttl\": \"600s\", \"response_filename\": \"report.pdf\"}"
expires_in 600
fetch "$(value url)" "$work/came"
same "$work/report.pdf" "$work/came"
[ "$(digest "$work/came")" = "$report" ] || fail "the digest is another"
grep -qi '^content-disposition: attachment; filename="report\.pdf"' "$work/headers" || fail "it has no name"

step "an upload in one part: what is put must be as long as was said, and have the digest that was said"
head -c 300000 /dev/urandom >"$work/scan.png"
scan=$(digest "$work/scan.png")
call BlobService/CreateUpload "{
  \"header\": {\"digest\": {\"value\": \"$scan\"}, \"size_bytes\": 300000, \"content_type\": \"image/png\"},
  \"transport\": \"UPLOAD_TRANSPORT_PRESIGNED\"
}"
count 1 '"partNumber":'
has '"method": "PUT"'
has '"content-length": "300000"'
upload=$(value id)
url=$(value url)
checksum=$(value x-amz-checksum-sha256)
[ "$checksum" = "$scan" ] || fail "the store is to hold the part to another digest"
refused FailedPrecondition BlobService/CompleteUpload "{\"upload_id\": \"$upload\"}"
has UPLOAD_INCOMPLETE
put "$work/scan.png" "$url" "x-amz-checksum-sha256: $checksum"
call BlobService/CompleteUpload "{\"upload_id\": \"$upload\"}"
has '"state": "BLOB_STATE_READY"'
has "\"value\": \"$scan\""
has '"contentType": "image/png"'

step "it is a blob like any other"
call EvidenceService/AttachBlob \
  "{\"attachment_id\": \"scan\", \"decision_id\": \"dec-123\", \"name\": \"scan.png\", \"digest\": {\"value\": \"$scan\"}}"
call EvidenceService/CreateShareLink '{"attachment_id": "scan"}'
fetch "$(value url)" "$work/came"
same "$work/scan.png" "$work/came"

step "an upload in several parts, in any order; URLs can be had anew"
head -c 6000000 /dev/urandom >"$work/film.mp4"
film=$(digest "$work/film.mp4")
head -c 5242880 "$work/film.mp4" >"$work/part-1"
tail -c +5242881 "$work/film.mp4" >"$work/part-2"
call BlobService/CreateUpload "{
  \"header\": {\"digest\": {\"value\": \"$film\"}, \"size_bytes\": 6000000, \"content_type\": \"video/mp4\"},
  \"transport\": \"UPLOAD_TRANSPORT_PRESIGNED\",
  \"part_size\": 5242880
}"
count 2 '"partNumber":'
upload=$(value id)
put "$work/part-2" "$(values url | sed -n 2p)"
call BlobService/GetUpload "{\"upload_id\": \"$upload\"}"
put "$work/part-1" "$(values url | sed -n 1p)"
call BlobService/CompleteUpload "{\"upload_id\": \"$upload\"}"
has '"sizeBytes": "6000000"'
call BlobService/CreateDownloadUrl "{\"digest\": {\"value\": \"$film\"}}"
fetch "$(value url)" "$work/came"
same "$work/film.mp4" "$work/came"

step "what is put to a URL and is not what was said becomes nobody's blob"
printf 'What was said.' >"$work/said"
printf 'Something else' >"$work/else"
said=$(digest "$work/said")
call BlobService/CreateUpload "{
  \"header\": {\"digest\": {\"value\": \"$said\"}, \"size_bytes\": 14},
  \"transport\": \"UPLOAD_TRANSPORT_PRESIGNED\"
}"
upload=$(value id)
url=$(value url)
# A store that looks at the digest refuses here, others leave it to CompleteUpload.
if go --fail --output /dev/null --upload-file "$work/else" --header "x-amz-checksum-sha256: $said" "$url"; then
  refused InvalidArgument BlobService/CompleteUpload "{\"upload_id\": \"$upload\"}"
  has DIGEST_MISMATCH
else
  refused FailedPrecondition BlobService/CompleteUpload "{\"upload_id\": \"$upload\"}"
fi
refused NotFound BlobService/GetBlob "{\"digest\": {\"value\": \"$said\"}}"

step "which URLs were given out stands in the audit log"
call AuditService/ListAuditEntries '{"where": {"expression": "action = \"DOWNLOAD_URL_ISSUED\""}}'
count 4 '"action": "DOWNLOAD_URL_ISSUED"'
has "\"id\": \"$(hex "$report")\""
call AuditService/ListAuditEntries '{"where": {"expression": "action = \"UPLOAD_URL_ISSUED\""}}'
has "\"id\": \"$(hex "$film")\""
