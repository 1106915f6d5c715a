#!/bin/sh
# Objects: a document store that keeps files under keys with metadata, every version of them, and who read which.
# Usage: CASEBOOK_ADDRESS=127.0.0.1:50051 tests/systems/objects.sh     (on an empty database, with a store of blobs)
set -eu
. "$(dirname "$0")/client.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
key=finance/2024/invoice-17.pdf
printf '%%PDF-1.7 an invoice' >"$work/first"
printf '%%PDF-1.7 the invoice, corrected' >"$work/second"
first=$(digest "$work/first")
second=$(digest "$work/second")

step "1. upload bytes and metadata in one call, which is one transaction"
call BlobService/UploadBlob "
  {\"header\": {\"content_type\": \"application/pdf\", \"object\": {
    \"key\": \"$key\",
    \"metadata\": {\"owner\": \"user-456\", \"doc_type\": \"invoice\", \"total\": 1250.5},
    \"tags\": {\"team\": \"finance\"},
    \"comment\": \"as it came\"
  }}}
  {\"chunk\": \"$(base64 -w 0 "$work/first")\"}
"
has "\"key\": \"$key\""
has "\"value\": \"$first\""
has "\"sizeBytes\": \"$(wc -c <"$work/first")\""
has '"contentType": "application/pdf"'
has '"storageBackend": "'
has '"versionCount": "1"'
first_version=$(value versionId)

step "what is known of it, by its key"
call ObjectService/GetObject "{\"key\": \"$key\"}"
has "\"versionId\": \"$first_version\""
has '"doc_type": "invoice"'
has '"total": 1250.5'
has '"team": "finance"'

step "another object"
call BlobService/UploadBlob "
  {\"header\": {\"content_type\": \"text/plain\", \"object\": {
    \"key\": \"finance/2024/reminders/invoice-9.txt\", \"metadata\": {\"owner\": \"user-789\", \"doc_type\": \"letter\"}
  }}}
  {\"chunk\": \"$(printf 'A reminder.' | base64)\"}
"

step "several at once, in one transaction: all of them or none"
others="{\"key\": \"travel/ticket-1.pdf\", \"blob\": {\"value\": \"$first\"}},
  {\"key\": \"archive/1998.tar\",
   \"external\": {\"storage_backend\": \"tape\", \"location\": \"vault-7/1998.tar\", \"size_bytes\": 4096}}"
refused NotFound ObjectService/BatchPutObjects \
  "{\"requests\": [$others, {\"key\": \"lost\", \"blob\": {\"value\": \"$second\"}}]}"
has 'requests[2]'
refused NotFound ObjectService/GetObject '{"key": "archive/1998.tar"}'
call ObjectService/BatchPutObjects "{\"requests\": [$others]}"
count 2 '"versionId":'

step "list by prefix, and level by level"
call ObjectService/ListObjects '{"prefix": "finance/"}'
count 2 '"key": "finance/2024/'
call ObjectService/ListObjects '{"prefix": "finance/2024/", "delimiter": "/"}'
has "\"key\": \"$key\""
has '"finance/2024/reminders/"'
lacks 'invoice-9'
call ObjectService/ListObjects '{"where": {"expression": "storage_backend = \"tape\""}}'
count 1 '"key":'
has '"location": "vault-7/1998.tar"'

step "2. search for words of key, type and metadata: with & and |, and by how words begin"
call ObjectService/SearchObjects '{"query": "invoice & finance"}'
count 2 '"rank":'
call ObjectService/SearchObjects '{"query": "invoice & !letter"}'
count 1 '"rank":'
has "\"key\": \"$key\""
call ObjectService/SearchObjects '{"query": "remind*"}'
count 1 '"rank":'
has '"key": "finance/2024/reminders/invoice-9.txt"'
call ObjectService/SearchObjects \
  '{"query": "invoice", "where": {"expression": "metadata.owner = \"user-456\" AND metadata.doc_type = \"invoice\""}}'
count 1 '"rank":'
has "\"key\": \"$key\""

step "3. the next version, under the condition that nobody was faster"
call ObjectService/GetObject "{\"key\": \"$key\"}"
# The object's etag stands before that of the version.
etag=$(printf '%s\n' "$answer" | sed -n 's/.*"etag": "\\"\(.*\)\\"".*/\1/p' | head -n 1)
call BlobService/UploadBlob "{\"header\": {\"content_type\": \"application/pdf\"}} {\"chunk\": \"$(base64 -w 0 "$work/second")\"}"
put="{\"key\": \"$key\", \"blob\": {\"value\": \"$second\"}, \"comment\": \"corrected\", \"if_match\": \"\\\"$etag\\\"\"}"
call ObjectService/PutObject "$put"
has '"versionCount": "2"'
second_version=$(value versionId)
refused Aborted ObjectService/PutObject "$put"
has ETAG_MISMATCH

step "the version history, newest first"
call ObjectService/ListObjectVersions "{\"key\": \"$key\"}"
[ "$(values id)" = "$second_version
$first_version" ] || fail "the versions are others"
count 1 '"isLatest": true'
has '"comment": "as it came"'
has '"comment": "corrected"'
has '"createdBy": "'
call ObjectService/CompareObjectVersions "{\"key\": \"$key\", \"version_id\": \"$first_version\"}"
has '"field": "digest"'
has '"field": "comment"'
lacks '"sameBytes": true'
call ObjectService/UpdateObjectVersion \
  "{\"key\": \"$key\", \"version_id\": \"$first_version\", \"tags\": {\"state\": \"wrong\"}, \"update_mask\": {\"paths\": [\"tags\"]}}"
has '"state": "wrong"'

step "4. the audit trail of the object: who did what, from where"
call AuditService/ListAuditEntries "{\"target\": {\"kind\": \"RESOURCE_KIND_OBJECT\", \"id\": \"$key\"}}"
count 1 '"action": "CREATE"'
count 1 '"action": "UPDATE"'
has '"success": true'
has '"ipAddress": "127.0.0.1"'
has '"userAgent": "grpcurl/'

step "5. downloads, each of which stands in the audit log: of the latest version, and of an earlier one"
call BlobService/DownloadBlob "{\"object\": {\"key\": \"$key\"}}"
chunks >"$work/came"
same "$work/second" "$work/came"
call BlobService/DownloadBlob "{\"object\": {\"key\": \"$key\", \"version_id\": \"$first_version\"}}"
chunks >"$work/came"
same "$work/first" "$work/came"
call AuditService/ListAuditEntries \
  "{\"where\": {\"expression\": \"action = \\\"DOWNLOAD\\\" AND entity_id = \\\"$key\\\"\"}}"
count 2 '"action": "DOWNLOAD"'
count 2 "\"objectKey\": \"$key\""
has "\"id\": \"$first_version\""
has "\"id\": \"$second_version\""

step "what happened elsewhere is logged beside it"
call AuditService/LogEvent "{\"event\": {
  \"action\": \"PRINT\", \"object_key\": \"$key\", \"user_id\": \"user-456\", \"username\": \"Ada\",
  \"ip_address\": \"192.0.2.7\", \"success\": false, \"error_message\": \"out of paper\"
}}"
call AuditService/ListAuditEntries "{\"where\": {\"expression\": \"entity_id = \\\"$key\\\" AND actor = \\\"user-456\\\"\"}}"
count 1 '"action": "PRINT"'
has '"errorMessage": "out of paper"'
has '"ipAddress": "192.0.2.7"'

step "6. statistics"
call ObjectService/GetObjectStatistics '{}'
has '"objectCount": "4"'
has '"versionCount": "5"'
has '"storageBackend": "tape"'
# Three blobs; the ticket shares the bytes of the first invoice.
has '"blobCount": "3"'
has "\"deduplicatedBytes\": \"$(wc -c <"$work/first")\""
# Five puts of two entries each and a change of tags; two downloads and the event.
has '"auditCount24h": "14"'

step "a deletion is a mark on top of the versions, and can be taken back"
call ObjectService/DeleteObject "{\"key\": \"$key\"}"
refused NotFound ObjectService/GetObject "{\"key\": \"$key\"}"
call ObjectService/SearchObjects '{"query": "corrected | invoice & !letter"}'
lacks "\"key\": \"$key\""
call ObjectService/ListObjectVersions "{\"key\": \"$key\"}"
count 1 '"deleteMarker": true'
call ObjectService/RollbackObject "{\"key\": \"$key\", \"version_id\": \"$first_version\", \"comment\": \"it was right\"}"
has '"versionCount": "4"'
call BlobService/DownloadBlob "{\"object\": {\"key\": \"$key\"}}"
chunks >"$work/came"
same "$work/first" "$work/came"
