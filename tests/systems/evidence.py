"""Evidence: a program that keeps with each decision what it rests on, as JSON and as files, and proves later that nothing of
it is missing or changed.

Usage, on an empty database, with a store of blobs:

    CASEBOOK_ADDRESS=127.0.0.1:50051 PYTHONPATH=.tools/python python3 tests/systems/evidence.py
"""

import hashlib
import os
import re

# First, because it says what to do where grpcio is missing.
from client import connect, digest, download, expect, refused, step, upload

import grpc
from google.protobuf import json_format

from casebook.v1 import (
    attachment_pb2,
    audit_pb2,
    audit_pb2_grpc,
    blob_pb2,
    blob_pb2_grpc,
    common_pb2,
    decision_pb2,
    decision_pb2_grpc,
    evidence_bundle_pb2,
    evidence_pb2,
    evidence_pb2_grpc,
)

channel = connect()
decisions = decision_pb2_grpc.DecisionServiceStub(channel)
evidence = evidence_pb2_grpc.EvidenceServiceStub(channel)
blobs = blob_pb2_grpc.BlobServiceStub(channel)
audit = audit_pb2_grpc.AuditServiceStub(channel)

DATA = {
    "verdict": "DENY",
    "confidence": 0.85,
    "critics": [
        {"critic": "privacy", "verdict": "DENY", "confidence": 0.9},
        {"critic": "tone", "verdict": "ALLOW", "confidence": 0.8},
    ],
}
# The same as canonical JSON: members in order, without spaces.
CANONICAL = (
    b'{"confidence":0.85,"critics":[{"confidence":0.9,"critic":"privacy","verdict":"DENY"},'
    b'{"confidence":0.8,"critic":"tone","verdict":"ALLOW"}],"verdict":"DENY"}'
)


def bundle(id, data, decision="dec-123", **more):
    return evidence_bundle_pb2.CreateEvidenceBundleRequest(
        evidence_bundle_id=id,
        evidence_bundle=evidence_bundle_pb2.EvidenceBundle(decision_id=decision, evidence_data=data, **more),
    )


def evidence_of(decision):
    return evidence.GetDecisionEvidence(evidence_pb2.GetDecisionEvidenceRequest(decision_id=decision))


def verify(decision):
    """How many pieces were looked at, and what is wrong with them."""
    found = evidence.VerifyEvidence(evidence_pb2.VerifyEvidenceRequest(decision_id=decision, rehash_bytes=True))
    return found.checked, list(found.findings)


def keys_match(pattern, key):
    expect(bool(re.fullmatch(pattern, key)), True, f"whether {key} is the key that it should be")


step("record a decision")
decisions.CreateDecision(
    decision_pb2.CreateDecisionRequest(
        decision_id="dec-123",
        decision=decision_pb2.Decision(
            input_data={"text": "May this comment stay?"},
            final_verdict="DENY",
            avg_confidence=0.85,
        ),
    )
)

step("store_evidence_bundle: what it rests on, as structured data")
metadata = {"pipeline": {"name": "moderation", "run": 7}}
stored = evidence.CreateEvidenceBundle(bundle("bundle-1", DATA, metadata=metadata)).evidence_bundle
expect((stored.evidence_type, stored.bundle_version), ("decision", "1.0"), "type and version")
expect(stored.meta.HasField("create_time"), True, "whether it has a time")
keys_match(r"evidence/decision/\d{4}/\d\d/dec-123\.json", stored.object_key)
# The data as canonical JSON is what is hashed, and kept.
expect((stored.digest, stored.size_bytes), (digest(CANONICAL), len(CANONICAL)), "digest and size")

step("whoever knows the digest says it, and nothing else is taken for it")
other = bundle("", {"verdict": "ALLOW"}, digest=digest(CANONICAL))
error = refused(grpc.StatusCode.INVALID_ARGUMENT, evidence.CreateEvidenceBundle, other)
expect("DIGEST_MISMATCH" in str(error.trailing_metadata()), True, "whether the reason is the digest")
refused(grpc.StatusCode.NOT_FOUND, evidence.CreateEvidenceBundle, bundle("", DATA, decision="dec-999"))

step("retrieve_evidence_bundle, by the decision; the stored bytes are compared with digest and record")
found = evidence_of("dec-123")
expect(found.bundle, stored, "the bundle")
expect(json_format.MessageToDict(found.bundle.evidence_data), DATA, "the data")
expect(json_format.MessageToDict(found.bundle.metadata), metadata, "the metadata")
expect(found.verified, True, "whether the bytes were compared")
expect(download(blobs, digest=stored.digest), CANONICAL, "the bytes of the bundle")
get_bundle = evidence_bundle_pb2.GetEvidenceBundleRequest(evidence_bundle_id="bundle-1")
expect(evidence.GetEvidenceBundle(get_bundle).evidence_bundle, stored, "the bundle by its id")

step("upload a picture, in chunks")
picture = os.urandom(3_000_000)
header = blob_pb2.UploadHeader(content_type="image/png", digest=digest(picture), size_bytes=len(picture))
answer = upload(blobs, header, picture)
expect(answer.deduplicated, False, "whether the bytes were there")
expect((answer.blob.state, answer.blob.size_bytes), (blob_pb2.BLOB_STATE_READY, 3_000_000), "state and size")

step("it is found again by its digest; what one has need not be sent again")
blob = blobs.GetBlob(blob_pb2.GetBlobRequest(digest=digest(picture))).blob
expect((blob.content_type, blob.reference_count), ("image/png", 0), "type, and how many things refer to it")
nobodys = digest(b"Nobody has uploaded this.")
find_missing = blob_pb2.FindMissingBlobsRequest(digests=[digest(picture), nobodys])
expect(list(blobs.FindMissingBlobs(find_missing).missing), [nobodys], "what would have to be uploaded")
expect(upload(blobs, header, picture).deduplicated, True, "whether the bytes were there")
refused(grpc.StatusCode.NOT_FOUND, blobs.GetBlob, blob_pb2.GetBlobRequest(digest=nobodys))

step("bytes that are not those of the digest are not kept")
wrong = blob_pb2.UploadHeader(digest=nobodys)
refused(grpc.StatusCode.INVALID_ARGUMENT, lambda header: upload(blobs, header, b"others"), wrong)
refused(grpc.StatusCode.NOT_FOUND, blobs.GetBlob, blob_pb2.GetBlobRequest(digest=nobodys))

step("store_attachment: the picture belongs to the decision, under a name")
attach = attachment_pb2.AttachBlobRequest(decision_id="dec-123", name="screenshot.png", digest=digest(picture))
attached = evidence.AttachBlob(attach).attachment
expect((attached.content_type, attached.size_bytes), ("image/png", 3_000_000), "type and size")
keys_match(r"attachments/\d{4}/\d\d/dec-123/screenshot\.png", attached.object_key)
refused(grpc.StatusCode.ALREADY_EXISTS, evidence.AttachBlob, attach)

step("all evidence of the decision, and the bytes of the picture")
found = evidence_of("dec-123")
expect((found.bundle, list(found.attachments)), (stored, [attached]), "bundle and attachments")
came = download(blobs, digest=found.attachments[0].digest)
expect(hashlib.sha256(came).digest() == hashlib.sha256(picture).digest(), True, "whether it is the picture")

step("verify_evidence: every byte is read again")
expect(verify("dec-123"), (2, []), "what was found")

step("evidence keeps its bytes")
error = refused(
    grpc.StatusCode.FAILED_PRECONDITION, blobs.DeleteBlob, blob_pb2.DeleteBlobRequest(digest=digest(picture))
)
expect("REFERENCED" in str(error.trailing_metadata()), True, "whether the reason is who refers to it")

step("a bundle never changes: the next one of its type stands beside it, and is what the decision rests on now")
evidence.CreateEvidenceBundle(bundle("bundle-2", {"verdict": "ALLOW"}, bundle_version="1.1"))
expect(evidence_of("dec-123").bundle.id, "bundle-2", "the newest bundle")
list_bundles = evidence_bundle_pb2.ListEvidenceBundlesRequest(decision_id="dec-123")
listed = evidence.ListEvidenceBundles(list_bundles).evidence_bundles
expect([one.id for one in listed], ["bundle-2", "bundle-1"], "the bundles, newest first")

step("who read the picture, and when, stands in the audit log; and that its bytes were found right")
about_it = common_pb2.Selector(expression=f'entity_id = "{attached.digest.value.hex()}"')
entries = audit.ListAuditEntries(audit_pb2.ListAuditEntriesRequest(where=about_it)).entries
expect([entry.action for entry in entries], ["VERIFY", "DOWNLOAD", "CREATE"], "the entries, newest first")

step("evidence goes with its decision, and comes back with it")
decisions.DeleteDecision(decision_pb2.DeleteDecisionRequest(decision_id="dec-123"))
refused(grpc.StatusCode.NOT_FOUND, evidence_of, "dec-123")
refused(grpc.StatusCode.NOT_FOUND, evidence.GetEvidenceBundle, get_bundle)
decisions.UndeleteDecision(decision_pb2.UndeleteDecisionRequest(decision_id="dec-123"))
expect(verify("dec-123"), (3, []), "what was found")
