#!/bin/sh
# Vectors: a program that looks earlier cases up by what is near in meaning, and makes sure that vectors and records agree.
# Usage: CASEBOOK_ADDRESS=127.0.0.1:50051 tests/systems/vectors.sh     (on an empty database)
set -eu
. "$(dirname "$0")/client.sh"

# An embedding of a precedent. precedent <precedent id> <tag> <number>, ...
precedent() {
  printf '{"subject": {"kind": "RESOURCE_KIND_PRECEDENT", "id": "%s"}, "decision_id": "dec-123",
    "embedding_model": "text-embedding-ada-002", "tags": ["%s"], "vector": {"floats": {"values": [%s]}}}' "$@"
}

step "is the server there, and how is it?"
call AdminService/GetStatus '{}'
has '"ready": true'

step "make the collection if it is not there, as often as one likes"
# What is not said is 1536 dimensions and cosine.
space='{
  "vector_space_id": "precedent_embeddings",
  "vector_space": {"embedding_model": "text-embedding-ada-002", "dimensions": 3},
  "options": {"on_conflict": "ON_CONFLICT_RETURN_IF_EQUAL"}
}'
call VectorSpaceService/CreateVectorSpace "$space"
has '"metric": "DISTANCE_METRIC_COSINE"'
lacks '"unchanged": true'
call VectorSpaceService/CreateVectorSpace "$space"
has '"unchanged": true'

step "an empty collection is in sync"
call SyncService/VerifySync '{"vector_space_id": "precedent_embeddings", "full": true}'
has '"inSync": true'
has '"syncRatePercent": 100'

step "upsert a vector with its tags"
call VectorService/UpsertEmbedding "{
  \"vector_space_id\": \"precedent_embeddings\",
  \"embedding\": $(precedent prec-001 critical "0.9, 0.1, 0")
}"
# It has the id of what it stands for.
has '"id": "prec-001"'
has '"version": "1"'

step "sync_to_vectordb: the record and its vector, both or neither"
call SyncService/SyncEmbedding "{
  \"vector_space_id\": \"precedent_embeddings\",
  \"embedding\": $(precedent prec-002 routine "0.8, 0.2, 0"),
  \"options\": {\"request_id\": \"sync/prec-002\"}
}"
has '"id": "prec-002"'
refused InvalidArgument SyncService/SyncEmbedding "{
  \"vector_space_id\": \"precedent_embeddings\",
  \"embedding\": $(precedent prec-003 routine "0.8, 0.2")
}"
has 'DIMENSION_MISMATCH'
refused NotFound VectorService/GetEmbedding '{"vector_space_id": "precedent_embeddings", "embedding_id": "prec-003"}'

step "sync_batch_to_vectordb"
call SyncService/BatchSyncEmbeddings "{
  \"vector_space_id\": \"precedent_embeddings\",
  \"embeddings\": [$(precedent prec-003 critical "0, 1, 0"), $(precedent prec-004 critical "0.7, 0.3, 0.1")]
}"
has '"writtenCount": 2'

step "search for what is near, by tag"
call VectorService/SearchVectors '{"query": {
  "vector_space_id": "precedent_embeddings",
  "vector": {"floats": {"values": [1, 0, 0]}},
  "top_k": 10, "min_score": 0.8, "where": {"expression": "tags:critical"}
}}'
has '"id": "prec-001"'
has '"id": "prec-004"'
# Another tag, and too far away.
lacks '"id": "prec-002"'
lacks '"id": "prec-003"'

step "verify_sync: counts, and digests of a sample"
call SyncService/VerifySync '{"vector_space_id": "precedent_embeddings", "sample_size": 100}'
has '"postgresCount": "4"'
has '"vectordbCount": "4"'
has '"samplesChecked": "4"'
has '"syncRatePercent": 100'
has '"inSync": true'
lacks '"missingInVectordb"'

step "sync_from_postgres_to_vectordb: how far it is after each batch, and how many in the end"
call SyncService/ResyncFromPostgres '{"vector_space_id": "precedent_embeddings", "batch_size": 3}'
has '"synced": "3"'
has '"synced": "4"'
count 2 '"total": "4"'
count 1 '"done": true'
lacks '"unrecoverable'

step "delete_from_both"
call SyncService/DeleteFromBoth '{"vector_space_id": "precedent_embeddings", "embedding_id": "prec-004"}'
has '"deleted": true'
refused NotFound SyncService/DeleteFromBoth '{"vector_space_id": "precedent_embeddings", "embedding_id": "prec-004"}'
call VectorService/SearchVectors '{"query": {
  "vector_space_id": "precedent_embeddings", "vector": {"floats": {"values": [1, 0, 0]}}
}}'
lacks '"id": "prec-004"'

step "are the vectors behind?"
call SyncService/GetSyncStatus '{}'
has '"mode": "SYNC_MODE_TRANSACTIONAL"'
has '"lag": "0s"'
has '"vectordbCount": "3"'
lacks '"backlog"'
