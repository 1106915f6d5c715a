"""Objects: a document store that keeps files under keys with metadata, every version of them, and who read which.

Usage, on an empty database, with a store of blobs:

    CASEBOOK_ADDRESS=127.0.0.1:50051 PYTHONPATH=.tools/python python3 tests/systems/objects.py
"""

# First, because it says what to do where grpcio is missing.
from client import connect, digest, download, expect, refused, step, upload

import grpc
from google.protobuf import field_mask_pb2, json_format

from casebook.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    blob_pb2,
    blob_pb2_grpc,
    common_pb2,
    object_pb2,
    object_pb2_grpc,
    object_version_pb2,
)

channel = connect()
blobs = blob_pb2_grpc.BlobServiceStub(channel)
objects = object_pb2_grpc.ObjectServiceStub(channel)
audit = audit_pb2_grpc.AuditServiceStub(channel)

KEY = "finance/2024/invoice-17.pdf"
FIRST = b"%PDF-1.7 an invoice"
SECOND = b"%PDF-1.7 the invoice, corrected"


def get(key):
    return objects.GetObject(object_pb2.GetObjectRequest(key=key)).object


def found(query, **more):
    """The keys that a search finds, best first."""
    hits = objects.SearchObjects(object_pb2.SearchObjectsRequest(query=query, **more)).hits
    ranks = [hit.rank for hit in hits]
    expect(ranks, sorted(ranks, reverse=True), "the order of the ranks")
    return [hit.object.key for hit in hits]


def entries(**what):
    return list(audit.ListAuditEntries(audit_pb2.ListAuditEntriesRequest(**what)).entries)


def version(key, version_id=""):
    return object_version_pb2.ObjectVersionRef(key=key, version_id=version_id)


step("1. upload bytes and metadata in one call, which is one transaction")
metadata = {"owner": "user-456", "doc_type": "invoice", "total": 1250.5}
put = object_pb2.PutObjectRequest(key=KEY, metadata=metadata, tags={"team": "finance"}, comment="as it came")
answer = upload(blobs, blob_pb2.UploadHeader(content_type="application/pdf", object=put), FIRST)
made = answer.object
expect((made.key, made.size_bytes, made.content_type), (KEY, len(FIRST), "application/pdf"), "key, size and type")
expect((made.blob, made.version_count), (digest(FIRST), 1), "blob and number of versions")
expect(bool(made.storage_backend), True, "whether it says which store has it")
first = answer.object_version

step("what is known of it, by its key")
expect(get(KEY), made, "the object")
expect(json_format.MessageToDict(made.metadata), metadata, "the metadata")
expect(dict(made.tags), {"team": "finance"}, "the tags")

step("another object")
letter = "finance/2024/reminders/invoice-9.txt"
put = object_pb2.PutObjectRequest(key=letter, metadata={"owner": "user-789", "doc_type": "letter"})
upload(blobs, blob_pb2.UploadHeader(content_type="text/plain", object=put), b"A reminder.")

step("several at once, in one transaction: all of them or none")
tape = object_pb2.ExternalObject(storage_backend="tape", location="vault-7/1998.tar", size_bytes=4096)
others = [
    object_pb2.PutObjectRequest(key="travel/ticket-1.pdf", blob=digest(FIRST)),
    object_pb2.PutObjectRequest(key="archive/1998.tar", external=tape),
]
lost = object_pb2.PutObjectRequest(key="lost", blob=digest(SECOND))
one_is_lost = object_pb2.BatchPutObjectsRequest(requests=[*others, lost])
refused(grpc.StatusCode.NOT_FOUND, objects.BatchPutObjects, one_is_lost)
refused(grpc.StatusCode.NOT_FOUND, get, "archive/1998.tar")
items = objects.BatchPutObjects(object_pb2.BatchPutObjectsRequest(requests=others)).items
expect([item.key for item in items], ["travel/ticket-1.pdf", "archive/1998.tar"], "what was put, in order")
expect(get("archive/1998.tar").etag, items[1].etag, "the etag")

step("list by prefix, and level by level")
listed = objects.ListObjects(object_pb2.ListObjectsRequest(prefix="finance/")).objects
expect([one.key for one in listed], [KEY, letter], "the keys that begin so")
level = objects.ListObjects(object_pb2.ListObjectsRequest(prefix="finance/2024/", delimiter="/"))
expect([one.key for one in level.objects], [KEY], "the keys of the level")
expect(list(level.common_prefixes), ["finance/2024/reminders/"], "the levels below")
on_tape = common_pb2.Selector(expression='storage_backend = "tape"')
listed = objects.ListObjects(object_pb2.ListObjectsRequest(where=on_tape)).objects
expect([(one.key, one.location) for one in listed], [("archive/1998.tar", tape.location)], "what is on tape")

step("2. search for words of key, type and metadata: with & and |, and by how words begin")
expect(sorted(found("invoice & finance")), [KEY, letter], "the hits")
expect(found("invoice & !letter"), [KEY], "the hits without letters")
expect(found("remind*"), [letter], "the hits of the beginning of a word")
own = common_pb2.Selector(expression='metadata.owner = "user-456" AND metadata.doc_type = "invoice"')
expect(found("invoice", where=own), [KEY], "the hits of an owner")

step("3. the next version, under the condition that nobody was faster")
upload(blobs, blob_pb2.UploadHeader(content_type="application/pdf"), SECOND)
put = object_pb2.PutObjectRequest(key=KEY, blob=digest(SECOND), comment="corrected", if_match=made.etag)
answer = objects.PutObject(put)
second = answer.object_version
expect((answer.object.version_count, answer.object.version_id), (2, second.id), "number and id of the version")
refused(grpc.StatusCode.ABORTED, objects.PutObject, put)

step("the version history, newest first")
list_versions = object_version_pb2.ListObjectVersionsRequest(key=KEY)
history = objects.ListObjectVersions(list_versions).object_versions
expect([one.id for one in history], [second.id, first.id], "the versions")
expect([one.is_latest for one in history], [True, False], "which is the latest")
expect([one.comment for one in history], ["corrected", "as it came"], "the comments")
expect(all(one.meta.created_by for one in history), True, "whether it is known who made them")
compare = object_version_pb2.CompareObjectVersionsRequest(key=KEY, version_id=first.id)
compared = objects.CompareObjectVersions(compare)
expect(compared.same_bytes, False, "whether the bytes are the same")
fields = [difference.field for difference in compared.differences]
expect("digest" in fields and "comment" in fields, True, f"whether digest and comment are among {fields}")
mark = object_version_pb2.UpdateObjectVersionRequest(
    key=KEY,
    version_id=first.id,
    tags={"state": "wrong"},
    update_mask=field_mask_pb2.FieldMask(paths=["tags"]),
)
expect(dict(objects.UpdateObjectVersion(mark).object_version.tags), {"state": "wrong"}, "the tags of the first")

step("4. the audit trail of the object: who did what, from where")
trail = entries(target=common_pb2.ResourceRef(kind=common_pb2.RESOURCE_KIND_OBJECT, id=KEY))
expect([entry.action for entry in trail], ["UPDATE", "CREATE"], "what was done, newest first")
expect({(entry.success, entry.ip_address) for entry in trail}, {(True, "127.0.0.1")}, "how it went, and from where")
expect(all(entry.user_agent.startswith("grpc-python/") for entry in trail), True, "whether it is known with what")

step("5. downloads, each of which stands in the audit log: of the latest version, and of an earlier one")
expect(download(blobs, object=version(KEY)), SECOND, "the bytes of the latest version")
expect(download(blobs, object=version(KEY, first.id)), FIRST, "the bytes of the first version")
downloads = common_pb2.Selector(expression=f'action = "DOWNLOAD" AND entity_id = "{KEY}"')
read = entries(where=downloads)
expect([entry.target.id for entry in read], [first.id, second.id], "the versions that were read")
expect({entry.object_key for entry in read}, {KEY}, "the key that was read")

step("what happened elsewhere is logged beside it")
event = audit_pb2.AuditEvent(
    action="PRINT",
    object_key=KEY,
    user_id="user-456",
    username="Ada",
    ip_address="192.0.2.7",
    success=False,
    error_message="out of paper",
)
audit.LogEvent(audit_pb2.LogEventRequest(event=event))
by_user = common_pb2.Selector(expression=f'entity_id = "{KEY}" AND actor = "user-456"')
[told] = entries(where=by_user)
expect((told.action, told.success, told.error_message), ("PRINT", False, "out of paper"), "what was told")

step("6. statistics")
statistics = objects.GetObjectStatistics(object_pb2.GetObjectStatisticsRequest())
expect((statistics.object_count, statistics.version_count), (4, 5), "the numbers of objects and versions")
stores = {one.storage_backend: one.object_count for one in statistics.backends}
expect(stores, {made.storage_backend: 3, "tape": 1}, "how many each store has")
# The ticket shares the bytes of the first invoice.
expect((statistics.blob_count, statistics.deduplicated_bytes), (3, len(FIRST)), "blobs, and bytes that are shared")
# Five puts of two entries each and a change of tags; two downloads and the event.
expect(statistics.audit_count_24h, 14, "the entries of the last 24 hours")

step("a deletion is a mark on top of the versions, and can be taken back")
objects.DeleteObject(object_pb2.DeleteObjectRequest(key=KEY))
refused(grpc.StatusCode.NOT_FOUND, get, KEY)
expect(found("invoice"), [letter], "the hits that are left")
history = objects.ListObjectVersions(list_versions).object_versions
expect([one.delete_marker for one in history], [True, False, False], "which version is a mark")
rollback = object_pb2.RollbackObjectRequest(key=KEY, version_id=first.id, comment="it was right")
expect(objects.RollbackObject(rollback).object.version_count, 4, "the number of versions")
expect(download(blobs, object=version(KEY)), FIRST, "the bytes of the latest version")
