#!/bin/sh
# A factory: a pipeline that cuts documents into chunks, writes them in bulk, and searches them.
# Usage: CASEBOOK_ADDRESS=127.0.0.1:50051 tests/systems/factory.sh     (on an empty database)
set -eu
. "$(dirname "$0")/client.sh"

# The SHA-256 of the document's bytes.
hash=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

# Chunks <first> to <last> of the document, as JSON: what stands between [ and ].
chunks() {
  awk -v first="$1" -v last="$2" 'BEGIN {
    for (n = first; n <= last; n++)
      printf "%s{\"chunk_index\": %d, \"text\": \"Paragraph %d of the manual.\"}", (n > first ? ", " : ""), n, n
  }'
}

step "is the document known? Documents with the same bytes have the same hash"
call DocumentService/FindDocumentsByHash "{\"content_hash\": \"$hash\"}"
lacks '"id":'

step "record it, with metadata of any shape"
call DocumentService/CreateDocument "{
  \"document_id\": \"doc-1\",
  \"document\": {
    \"filename\": \"manual.pdf\",
    \"source_path\": \"https://example.org/manual.pdf\",
    \"content_hash\": \"$hash\",
    \"metadata\": {
      \"parser\": {\"name\": \"pdf\", \"pages\": [{\"number\": 1, \"tables\": [[1, 2], [3, 4]]}]},
      \"draft\": false
    }
  }
}"
has '"status": "pending"'

step "now it is found by its hash, and its metadata is as it was"
call DocumentService/FindDocumentsByHash "{\"content_hash\": \"$hash\"}"
has '"id": "doc-1"'
has '"name": "pdf"'
has '"draft": false'

step "write 1,000 chunks in one call"
call DocumentService/BatchCreateChunks "{\"document_id\": \"doc-1\", \"chunks\": [$(chunks 0 999)]}"
has '"totalChunks": 1000'

step "stream 2,000 more: each message is a transaction, and is acknowledged"
call DocumentService/IngestChunks "
  {\"sequence\": 1, \"document_id\": \"doc-1\", \"chunks\": [$(chunks 1000 1999)]}
  {\"sequence\": 2, \"document_id\": \"doc-1\", \"chunks\": [$(chunks 2000 2999)]}
"
has '"sequence": "1"'
has '"sequence": "2"'
count 2 '"written": 1000'
lacks '"error"'
call DocumentService/GetDocument '{"document_id": "doc-1"}'
has '"totalChunks": 3000'

step "the document is parsed again: its chunks are replaced, and what it no longer has is deleted"
call DocumentService/BatchCreateChunks '{
  "document_id": "doc-1",
  "chunks": [
    {"id": "chunk-0", "chunk_index": 0, "text": "How to lubricate the bearings.", "metadata": {"page": {"number": 1}}},
    {"id": "chunk-1", "chunk_index": 1, "text": "How to replace a fuse."}
  ],
  "delete_from_index": 2,
  "options": {"on_conflict": "ON_CONFLICT_REPLACE"}
}'
has '"totalChunks": 2'
call DocumentService/ListChunks '{"document_id": "doc-1"}'
count 1 '"chunkIndex": 1'
has 'How to lubricate the bearings.'
lacks 'Paragraph'

step "search the chunks for words"
call SearchService/Search '{
  "text": "lubricating bearings",
  "kinds": ["RESOURCE_KIND_CHUNK"],
  "highlight": true,
  "read_mask": {"paths": ["document_id", "metadata"]}
}'
has '"id": "chunk-0"'
lacks '"id": "chunk-1"'
has '**bearings**'
has '"number": 1'

step "a chunk belongs to a document that exists"
refused NotFound DocumentService/BatchCreateChunks '{"document_id": "doc-999", "chunks": [{"text": "Lost."}]}'

step "deleting the document deletes its chunks"
call DocumentService/DeleteDocument '{"document_id": "doc-1"}'
refused NotFound DocumentService/GetChunk '{"chunk_id": "chunk-0"}'
refused NotFound DocumentService/ListChunks '{"document_id": "doc-1"}'
call DocumentService/FindDocumentsByHash "{\"content_hash\": \"$hash\"}"
lacks '"id":'
call SearchService/Search '{"text": "bearings"}'
lacks '"id": "chunk-0"'
