"""A factory: a pipeline that cuts documents into chunks, writes them in bulk, and searches them.

Usage, on an empty database:

    CASEBOOK_ADDRESS=127.0.0.1:50051 PYTHONPATH=.tools/python python3 tests/systems/factory.py
"""

import hashlib

# First, because it says what to do where grpcio is missing.
from client import connect, expect, refused, step

import grpc
from google.protobuf import json_format

from casebook.v1 import (
    chunk_pb2,
    common_pb2,
    document_pb2,
    document_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)

channel = connect()
documents = document_pb2_grpc.DocumentServiceStub(channel)
search = search_pb2_grpc.SearchServiceStub(channel)

HASH = hashlib.sha256(b"the bytes of the manual").hexdigest()
METADATA = {
    "parser": {"name": "pdf", "pages": [{"number": 1, "tables": [[1, 2], [3, 4]]}, {"number": 2, "tables": []}]},
    "draft": False,
    "note": None,
}


def chunks(first, count):
    """Chunks of the document, as a parser would cut them."""
    return [
        chunk_pb2.Chunk(chunk_index=n, text=f"Paragraph {n} of the manual.", metadata={"page": {"number": n // 40}})
        for n in range(first, first + count)
    ]


def total_chunks():
    return documents.GetDocument(document_pb2.GetDocumentRequest(document_id="doc-1")).document.total_chunks


step("is the document known? Documents with the same bytes have the same hash")
find_by_hash = document_pb2.FindDocumentsByHashRequest(content_hash=HASH)
expect(len(documents.FindDocumentsByHash(find_by_hash).documents), 0, "the number of documents with this hash")

step("record it, with metadata of any shape")
document = documents.CreateDocument(
    document_pb2.CreateDocumentRequest(
        document_id="doc-1",
        document=document_pb2.Document(
            filename="manual.pdf",
            source_path="https://example.org/manual.pdf",
            content_hash=HASH,
            metadata=METADATA,
        ),
    )
).document
expect(document.status, "pending", "the status")

step("now it is found by its hash, and its metadata is as it was")
found = documents.FindDocumentsByHash(find_by_hash).documents
expect([document.id for document in found], ["doc-1"], "the documents with this hash")
expect(json_format.MessageToDict(found[0].metadata), METADATA, "the metadata")

step("write 1,000 chunks in one call")
answer = documents.BatchCreateChunks(
    chunk_pb2.BatchCreateChunksRequest(document_id="doc-1", chunks=chunks(0, 1000))
)
expect((len(answer.chunk_ids), answer.total_chunks), (1000, 1000), "the ids given and the chunks there are")

step("stream 2,000 more: each message is a transaction, and is acknowledged")


def messages():
    for sequence in range(1, 11):
        yield chunk_pb2.IngestChunksRequest(
            sequence=sequence,
            document_id="doc-1",
            chunks=chunks(1000 + 200 * (sequence - 1), 200),
            # With it a message can be sent again after a broken stream.
            options=common_pb2.WriteOptions(request_id=f"doc-1-{sequence}"),
        )


acknowledged = []
for answer in documents.IngestChunks(messages()):
    expect(answer.HasField("error"), False, f"whether message {answer.sequence} failed ({answer.error.message})")
    expect(answer.written, 200, f"the number of chunks written by message {answer.sequence}")
    acknowledged.append(answer.sequence)
expect(acknowledged, list(range(1, 11)), "the messages acknowledged")
expect(total_chunks(), 3000, "the number of chunks")

step("the same stream again, as after a broken one: nothing is written twice")
replayed = [answer.receipt.replayed for answer in documents.IngestChunks(messages())]
expect(replayed, [True] * 10, "whether the messages were known")
expect(total_chunks(), 3000, "the number of chunks")

step("the document is parsed again: its chunks are replaced, and what it no longer has is deleted")
answer = documents.BatchCreateChunks(
    chunk_pb2.BatchCreateChunksRequest(
        document_id="doc-1",
        chunks=[
            chunk_pb2.Chunk(
                id="chunk-0",
                chunk_index=0,
                text="How to lubricate the bearings.",
                metadata=METADATA,
            ),
            chunk_pb2.Chunk(id="chunk-1", chunk_index=1, text="How to replace a fuse."),
        ],
        delete_from_index=2,
        options=common_pb2.WriteOptions(on_conflict=common_pb2.ON_CONFLICT_REPLACE),
    )
)
expect(answer.total_chunks, 2, "the number of chunks")
listed = documents.ListChunks(chunk_pb2.ListChunksRequest(document_id="doc-1")).chunks
expect(
    [(chunk.chunk_index, chunk.text) for chunk in listed],
    [(0, "How to lubricate the bearings."), (1, "How to replace a fuse.")],
    "the chunks, in their order",
)
expect(json_format.MessageToDict(listed[0].metadata), METADATA, "the metadata of a chunk")

step("search the chunks for words")
find_words = search_pb2.SearchRequest(
    text="lubricating bearings", kinds=[common_pb2.RESOURCE_KIND_CHUNK], highlight=True
)
hits = search.Search(find_words).hits
expect([hit.ref.id for hit in hits], ["chunk-0"], "the hits")
expect("**bearings**" in hits[0].highlights[0], True, "whether the word is marked")

step("a chunk belongs to a document that exists")
refused(
    grpc.StatusCode.NOT_FOUND,
    documents.BatchCreateChunks,
    chunk_pb2.BatchCreateChunksRequest(document_id="doc-999", chunks=[chunk_pb2.Chunk(text="Lost.")]),
)

step("deleting the document deletes its chunks")
documents.DeleteDocument(document_pb2.DeleteDocumentRequest(document_id="doc-1"))
refused(grpc.StatusCode.NOT_FOUND, documents.GetChunk, chunk_pb2.GetChunkRequest(chunk_id="chunk-0"))
refused(
    grpc.StatusCode.NOT_FOUND, documents.ListChunks, chunk_pb2.ListChunksRequest(document_id="doc-1")
)
expect(len(documents.FindDocumentsByHash(find_by_hash).documents), 0, "the number of documents with this hash")
expect(len(search.Search(find_words).hits), 0, "the number of hits")
