"""Vectors: a program that looks earlier cases up by what is near in meaning, and makes sure that vectors and records agree.

Usage, on an empty database:

    CASEBOOK_ADDRESS=127.0.0.1:50051 PYTHONPATH=.tools/python python3 tests/systems/vectors.py
"""

import struct

# First, because it says what to do where grpcio is missing.
from client import connect, expect, refused, step

import grpc

from casebook.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    embedding_pb2,
    embedding_pb2_grpc,
    sync_pb2,
    sync_pb2_grpc,
    vector_space_pb2,
    vector_space_pb2_grpc,
)

channel = connect()
admin = admin_pb2_grpc.AdminServiceStub(channel)
spaces = vector_space_pb2_grpc.VectorSpaceServiceStub(channel)
vectors = embedding_pb2_grpc.VectorServiceStub(channel)
sync = sync_pb2_grpc.SyncServiceStub(channel)

SPACE = "precedent_embeddings"
MODEL = "text-embedding-ada-002"


def vector(*values):
    """As bytes, which is a quarter of the work of a list of floats."""
    return embedding_pb2.Vector(f32_le=struct.pack(f"<{len(values)}f", *values))


def precedent(id, tag, *values):
    """An embedding of a precedent."""
    return embedding_pb2.Embedding(
        subject=common_pb2.ResourceRef(kind=common_pb2.RESOURCE_KIND_PRECEDENT, id=id),
        decision_id="dec-123",
        embedding_model=MODEL,
        tags=[tag],
        vector=vector(*values),
    )


def near(**wanted):
    query = embedding_pb2.VectorQuery(vector_space_id=SPACE, vector=vector(1, 0, 0), **wanted)
    hits = vectors.SearchVectors(embedding_pb2.SearchVectorsRequest(query=query)).hits
    return [hit.embedding.id for hit in hits]


def verify(**wanted):
    return sync.VerifySync(sync_pb2.VerifySyncRequest(vector_space_id=SPACE, **wanted))


step("is the server there, and how is it?")
expect(admin.GetStatus(admin_pb2.GetStatusRequest()).ready, True, "whether it is ready")

step("make the collection if it is not there, as often as one likes")
# What is not said is 1536 dimensions and cosine.
create = vector_space_pb2.CreateVectorSpaceRequest(
    vector_space_id=SPACE,
    vector_space=vector_space_pb2.VectorSpace(embedding_model=MODEL, dimensions=3),
    options=common_pb2.WriteOptions(on_conflict=common_pb2.ON_CONFLICT_RETURN_IF_EQUAL),
)
answer = spaces.CreateVectorSpace(create)
expect(answer.vector_space.metric, vector_space_pb2.DISTANCE_METRIC_COSINE, "the metric")
expect(answer.receipt.unchanged, False, "whether it was there")
expect(spaces.CreateVectorSpace(create).receipt.unchanged, True, "whether it was there the second time")

step("an empty collection is in sync")
found = verify(full=True)
expect((found.in_sync, found.sync_rate_percent), (True, 100.0), "the verdict on nothing")

step("upsert a vector with its tags")
answer = vectors.UpsertEmbedding(
    embedding_pb2.UpsertEmbeddingRequest(
        vector_space_id=SPACE,
        embedding=precedent("prec-001", "critical", 0.9, 0.1, 0),
    )
)
# It has the id of what it stands for.
expect((answer.embedding.id, answer.embedding.meta.version), ("prec-001", 1), "id and version")

step("sync_to_vectordb: the record and its vector, both or neither")
once = sync_pb2.SyncEmbeddingRequest(
    vector_space_id=SPACE,
    embedding=precedent("prec-002", "routine", 0.8, 0.2, 0),
    options=common_pb2.WriteOptions(request_id="sync/prec-002"),
)
expect(sync.SyncEmbedding(once).receipt.replayed, False, "whether it was a repetition")
expect(sync.SyncEmbedding(once).receipt.replayed, True, "whether the second was")
short = sync_pb2.SyncEmbeddingRequest(
    vector_space_id=SPACE,
    embedding=precedent("prec-003", "routine", 0.8, 0.2),
)
refused(grpc.StatusCode.INVALID_ARGUMENT, sync.SyncEmbedding, short)
missing = embedding_pb2.GetEmbeddingRequest(vector_space_id=SPACE, embedding_id="prec-003")
refused(grpc.StatusCode.NOT_FOUND, vectors.GetEmbedding, missing)

step("sync_batch_to_vectordb")
answer = sync.BatchSyncEmbeddings(
    sync_pb2.BatchSyncEmbeddingsRequest(
        vector_space_id=SPACE,
        embeddings=[
            precedent("prec-003", "critical", 0, 1, 0),
            precedent("prec-004", "critical", 0.7, 0.3, 0.1),
        ],
    )
)
expect((list(answer.embedding_ids), answer.written_count), (["prec-003", "prec-004"], 2), "what was written")

step("search for what is near, by tag")
critical = common_pb2.Selector(expression="tags:critical")
hits = near(top_k=10, min_score=0.8, where=critical)
expect(hits, ["prec-001", "prec-004"], "the near and critical")

step("verify_sync: counts, and digests of a sample")
found = verify(sample_size=100)
expect((found.postgres_count, found.vectordb_count, found.samples_checked), (4, 4, 4), "the counts")
expect((found.missing_in_vectordb, found.different), (0, 0), "what is wrong")
expect((found.sync_rate_percent, found.in_sync), (100.0, True), "the verdict")

step("sync_from_postgres_to_vectordb: how far it is after each batch, and how many in the end")
resync = sync_pb2.ResyncFromPostgresRequest(vector_space_id=SPACE, batch_size=3)
progress = [(told.synced, told.total, told.done) for told in sync.ResyncFromPostgres(resync)]
expect(progress, [(3, 4, False), (4, 4, True)], "the progress")

step("delete_from_both")
delete = sync_pb2.DeleteFromBothRequest(vector_space_id=SPACE, embedding_id="prec-004")
expect(sync.DeleteFromBoth(delete).deleted, True, "whether it was there")
refused(grpc.StatusCode.NOT_FOUND, sync.DeleteFromBoth, delete)
expect("prec-004" in near(), False, "whether it is still found")
refused(
    grpc.StatusCode.NOT_FOUND,
    vectors.GetEmbedding,
    embedding_pb2.GetEmbeddingRequest(vector_space_id=SPACE, embedding_id="prec-004"),
)

step("are the vectors behind?")
[projection] = sync.GetSyncStatus(sync_pb2.GetSyncStatusRequest()).projections
expect(projection.mode, sync_pb2.SYNC_MODE_TRANSACTIONAL, "the mode")
expect((projection.backlog, projection.lag.ToNanoseconds()), (0, 0), "how far they are behind")
expect(projection.applied_seq, projection.head_seq, "the number they have come to")
expect((projection.postgres_count, projection.vectordb_count), (3, 3), "the counts")
