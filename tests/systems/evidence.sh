#!/bin/sh
# Evidence: a program that keeps with each decision what it rests on, as JSON and as files, and proves later that nothing of
# it is missing or changed.
# Usage: CASEBOOK_ADDRESS=127.0.0.1:50051 tests/systems/evidence.sh     (on an empty database, with a store of blobs)
set -eu
. "$(dirname "$0")/client.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

step "record a decision"
call DecisionService/CreateDecision '{
  "decision_id": "dec-123",
  "decision": {"input_data": {"text": "May this comment stay?"}, "final_verdict": "DENY", "avg_confidence": 0.85}
}'

step "store_evidence_bundle: what it rests on, as structured data"
call EvidenceService/CreateEvidenceBundle '{
  "evidence_bundle_id": "bundle-1",
  "evidence_bundle": {
    "decision_id": "dec-123",
    "evidence_data": {
      "verdict": "DENY",
      "confidence": 0.85,
      "critics": [
        {"critic": "privacy", "verdict": "DENY", "confidence": 0.9},
        {"critic": "tone", "verdict": "ALLOW", "confidence": 0.8}
      ]
    },
    "metadata": {"pipeline": {"name": "moderation", "run": 7}}
  }
}'
has '"id": "bundle-1"'
has '"evidenceType": "decision"'
has '"bundleVersion": "1.0"'
has '"createTime": "'
# Its key in the store, for people: evidence/<type>/<year>/<month>/<decision>.json
value objectKey | grep -qx 'evidence/decision/20[0-9][0-9]/[01][0-9]/dec-123\.json' || fail "the key is another"

step "the digest is that of the data as canonical JSON: members in order, without spaces"
printf '%s%s%s' '{"confidence":0.85,"critics":[{"confidence":0.9,"critic":"privacy","verdict":"DENY"},' \
  '{"confidence":0.8,"critic":"tone","verdict":"ALLOW"}],"verdict":"DENY"}' >"$work/bundle.json"
bundle=$(digest "$work/bundle.json")
has "\"value\": \"$bundle\""
has "\"sizeBytes\": \"$(wc -c <"$work/bundle.json")\""

step "whoever knows the digest says it, and nothing else is taken for it"
refused InvalidArgument EvidenceService/CreateEvidenceBundle "{
  \"evidence_bundle\": {
    \"decision_id\": \"dec-123\",
    \"evidence_data\": {\"verdict\": \"ALLOW\"},
    \"digest\": {\"value\": \"$bundle\"}
  }
}"
has DIGEST_MISMATCH
refused NotFound EvidenceService/CreateEvidenceBundle \
  '{"evidence_bundle": {"decision_id": "dec-999", "evidence_data": {"verdict": "DENY"}}}'

step "retrieve_evidence_bundle, by the decision; the stored bytes are compared with digest and record"
call EvidenceService/GetDecisionEvidence '{"decision_id": "dec-123"}'
has '"id": "bundle-1"'
has '"critic": "privacy"'
has '"run": 7'
has '"verified": true'
call EvidenceService/GetEvidenceBundle '{"evidence_bundle_id": "bundle-1"}'
has '"decisionId": "dec-123"'

step "upload a picture, in chunks"
head -c 70000 /dev/urandom >"$work/picture.png"
picture=$(digest "$work/picture.png")
upload="{\"header\": {\"content_type\": \"image/png\", \"digest\": {\"value\": \"$picture\"}, \"size_bytes\": 70000}}
  {\"chunk\": \"$(head -c 40000 "$work/picture.png" | base64 -w 0)\"}
  {\"chunk\": \"$(tail -c 30000 "$work/picture.png" | base64 -w 0)\"}"
call BlobService/UploadBlob "$upload"
has '"state": "BLOB_STATE_READY"'
has '"sizeBytes": "70000"'
lacks '"deduplicated"'

step "it is found again by its digest; what one has need not be sent again"
call BlobService/GetBlob "{\"digest\": {\"value\": \"$picture\"}}"
has '"contentType": "image/png"'
printf 'Nobody has uploaded this.' >"$work/other"
other=$(digest "$work/other")
call BlobService/FindMissingBlobs "{\"digests\": [{\"value\": \"$picture\"}, {\"value\": \"$other\"}]}"
count 1 '"value":'
has "\"value\": \"$other\""
call BlobService/UploadBlob "$upload"
has '"deduplicated": true'
refused NotFound BlobService/GetBlob "{\"digest\": {\"value\": \"$other\"}}"

step "bytes that are not those of the digest are not kept"
refused InvalidArgument BlobService/UploadBlob "{\"header\": {\"digest\": {\"value\": \"$other\"}}} {\"chunk\": \"AAAA\"}"
has DIGEST_MISMATCH
refused NotFound BlobService/GetBlob "{\"digest\": {\"value\": \"$other\"}}"

step "store_attachment: the picture belongs to the decision, under a name"
call EvidenceService/AttachBlob "{
  \"attachment_id\": \"attachment-1\",
  \"decision_id\": \"dec-123\",
  \"name\": \"screenshot.png\",
  \"digest\": {\"value\": \"$picture\"}
}"
has '"contentType": "image/png"'
value objectKey | grep -qx 'attachments/20[0-9][0-9]/[01][0-9]/dec-123/screenshot\.png' || fail "the key is another"
refused AlreadyExists EvidenceService/AttachBlob \
  "{\"decision_id\": \"dec-123\", \"name\": \"screenshot.png\", \"digest\": {\"value\": \"$bundle\"}}"

step "all evidence of the decision, and the bytes of the picture"
call EvidenceService/GetDecisionEvidence '{"decision_id": "dec-123"}'
has '"id": "bundle-1"'
has '"name": "screenshot.png"'
call BlobService/DownloadBlob "{\"digest\": {\"value\": \"$picture\"}}"
chunks >"$work/came"
same "$work/picture.png" "$work/came"

step "verify_evidence: every byte is read again"
call EvidenceService/VerifyEvidence '{"decision_id": "dec-123", "rehash_bytes": true}'
has '"checked": "2"'
lacks '"findings"'

step "evidence keeps its bytes"
refused FailedPrecondition BlobService/DeleteBlob "{\"digest\": {\"value\": \"$picture\"}}"
has REFERENCED

step "a bundle never changes: the next one of its type stands beside it, and is what the decision rests on now"
call EvidenceService/CreateEvidenceBundle '{
  "evidence_bundle_id": "bundle-2",
  "evidence_bundle": {"decision_id": "dec-123", "bundle_version": "1.1", "evidence_data": {"verdict": "ALLOW"}}
}'
call EvidenceService/GetDecisionEvidence '{"decision_id": "dec-123"}'
has '"id": "bundle-2"'
lacks '"id": "bundle-1"'
call EvidenceService/ListEvidenceBundles '{"decision_id": "dec-123"}'
has '"id": "bundle-1"'
has '"id": "bundle-2"'

step "who read the picture, and when, stands in the audit log"
call AuditService/ListAuditEntries "{\"where\": {\"expression\": \"entity_id = \\\"$(hex "$picture")\\\"\"}}"
count 1 '"action": "DOWNLOAD"'
count 1 '"action": "CREATE"'

step "evidence goes with its decision, and comes back with it"
call DecisionService/DeleteDecision '{"decision_id": "dec-123"}'
refused NotFound EvidenceService/GetDecisionEvidence '{"decision_id": "dec-123"}'
refused NotFound EvidenceService/GetEvidenceBundle '{"evidence_bundle_id": "bundle-1"}'
call DecisionService/UndeleteDecision '{"decision_id": "dec-123"}'
call EvidenceService/VerifyEvidence '{"decision_id": "dec-123", "rehash_bytes": true}'
has '"checked": "3"'
lacks '"findings"'
