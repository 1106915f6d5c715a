"""Signed URLs: bytes go straight between any HTTP client and the store, without credentials and past the server.

Usage, on an empty database, with a store on S3:

    CASEBOOK_ADDRESS=127.0.0.1:50051 PYTHONPATH=.tools/python python3 tests/systems/signed.py
"""

import os
import time
import urllib.error
import urllib.request
from datetime import timedelta

# First, because it says what to do where grpcio is missing.
from client import connect, digest, download, expect, refused, step, upload

import grpc

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
# The store is asked itself, whatever proxy the environment names.
http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url):
    """GETs a URL; gives the bytes, and what they are to be saved as."""
    with http.open(url) as answer:
        return answer.read(), answer.headers["content-disposition"]


def put(part, data):
    """PUTs what a part has of the data; gives the status."""
    body = data[part.offset : part.offset + part.length]
    # Unless it is told a type, urllib says that this is a form.
    headers = {"content-type": "application/octet-stream", **part.headers}
    request = urllib.request.Request(part.url, data=body, headers=headers, method=part.method)
    try:
        with http.open(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def begin(data, content_type, part_size=0):
    header = blob_pb2.UploadHeader(digest=digest(data), size_bytes=len(data), content_type=content_type)
    transport = blob_pb2.UPLOAD_TRANSPORT_PRESIGNED
    request = blob_pb2.CreateUploadRequest(header=header, transport=transport, part_size=part_size)
    return blobs.CreateUpload(request).upload


def complete(begun):
    return blobs.CompleteUpload(blob_pb2.CompleteUploadRequest(upload_id=begun.id))


def expires_in(issued, seconds):
    left = issued.expire_time.seconds - time.time()
    expect(seconds - 60 < left <= seconds + 1, True, f"whether {left} s are {seconds} s")


step("a decision, what it rests on, and a file")
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
bundle = evidence_bundle_pb2.EvidenceBundle(
    decision_id="dec-123", evidence_data={"verdict": "DENY", "confidence": 0.85}
)
evidence.CreateEvidenceBundle(evidence_bundle_pb2.CreateEvidenceBundleRequest(evidence_bundle=bundle))
report = os.urandom(1_500_000)
upload(blobs, blob_pb2.UploadHeader(content_type="application/pdf"), report)

step("generate_presigned_url_for_evidence: whoever has the URL gets the bundle, for an hour")
issued = evidence.CreateShareLink(evidence_pb2.CreateShareLinkRequest(decision_id="dec-123"))
expires_in(issued, 3600)
expect(fetch(issued.url)[0], b'{"confidence":0.85,"verdict":"DENY"}', "the bundle")

step("a URL of any blob, for as long as one likes; browsers save it under a name")
ask = blob_pb2.CreateDownloadUrlRequest(
    digest=digest(report), ttl=timedelta(minutes=10), response_filename="report.pdf"
)
issued = blobs.CreateDownloadUrl(ask)
expires_in(issued, 600)
came, disposition = fetch(issued.url)
expect(digest(came), digest(report), "the digest of what came")
expect(disposition.startswith('attachment; filename="report.pdf"'), True, f"whether {disposition} names it")

step("an upload in one part: what is put must be as long as was said, and have the digest that was said")
scan = os.urandom(300_000)
begun = begin(scan, "image/png")
[part] = begun.parts
expect((part.method, part.headers["content-length"]), ("PUT", "300000"), "method and length")
refused(grpc.StatusCode.FAILED_PRECONDITION, complete, begun)
expect(put(part, scan), 200, "the status")
blob = complete(begun).blob
expect((blob.digest, blob.content_type), (digest(scan), "image/png"), "digest and type")

step("it is a blob like any other")
attach = attachment_pb2.AttachBlobRequest(
    attachment_id="scan", decision_id="dec-123", name="scan.png", digest=blob.digest
)
evidence.AttachBlob(attach)
issued = evidence.CreateShareLink(evidence_pb2.CreateShareLinkRequest(attachment_id="scan"))
expect(fetch(issued.url)[0] == scan, True, "whether the scan came")

step("an upload in several parts, in any order; URLs can be had anew")
film = os.urandom(6_000_000)
begun = begin(film, "video/mp4", part_size=5 * 2**20)
one, two = begun.parts
expect((one.length, two.offset, two.length), (5242880, 5242880, 757120), "the parts")
expect(put(two, film), 200, "the status")
again = blobs.GetUpload(blob_pb2.GetUploadRequest(upload_id=begun.id)).upload
expect(put(again.parts[0], film), 200, "the status")
expect(complete(begun).blob.size_bytes, 6_000_000, "the size")
expect(download(blobs, digest=digest(film)) == film, True, "whether the film came")

step("what is put to a URL and is not what was said becomes nobody's blob")
begun = begin(b"What was said.", "text/plain")
# A store that looks at the digest refuses here, others leave it to CompleteUpload.
taken = put(begun.parts[0], b"Something else") == 200
code = grpc.StatusCode.INVALID_ARGUMENT if taken else grpc.StatusCode.FAILED_PRECONDITION
refused(code, complete, begun)
get = blob_pb2.GetBlobRequest(digest=digest(b"What was said."))
refused(grpc.StatusCode.NOT_FOUND, blobs.GetBlob, get)

step("which URLs were given out stands in the audit log")


def given_out(action):
    where = common_pb2.Selector(expression=f'action = "{action}"')
    entries = audit.ListAuditEntries(audit_pb2.ListAuditEntriesRequest(where=where)).entries
    return [entry.target.id for entry in entries]


urls = given_out("DOWNLOAD_URL_ISSUED")
expect((len(urls), urls[1]), (3, digest(report).value.hex()), "the URLs to get from, newest first")
expect(digest(film).value.hex() in given_out("UPLOAD_URL_ISSUED"), True, "whether those to put to are there")
