-- Embeddings: what vectors in a space stand for, and the vectors themselves.
CREATE TABLE casebook.embedding (
  -- The id is the space's uid and the embedding_id, so that it is unique in the tenant.
  LIKE casebook.noun INCLUDING DEFAULTS,
  space_uid uuid NOT NULL,
  space_id text COLLATE "C" NOT NULL,
  embedding_id text COLLATE "C" NOT NULL,
  embedding_model text COLLATE "C" NOT NULL,
  dimensions integer NOT NULL,
  -- What is embedded. Not called a subject, which in other tables is a person.
  of_kind text COLLATE "C" NOT NULL,
  of_id text COLLATE "C" NOT NULL,
  of_version bigint NOT NULL,
  decision_id text COLLATE "C" NOT NULL,
  owner_id text COLLATE "C" NOT NULL,
  vector_digest text COLLATE "C" NOT NULL,
  context text NOT NULL,
  tags jsonb NOT NULL,
  similarity_threshold double precision CHECK (similarity_threshold BETWEEN 0 AND 1),
  source jsonb NOT NULL,
  metadata jsonb NOT NULL,
  PRIMARY KEY (tenant_id, uid),
  FOREIGN KEY (tenant_id, space_uid) REFERENCES casebook.vector_space (tenant_id, uid)
);
CREATE UNIQUE INDEX embedding_id ON casebook.embedding (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX embedding_time ON casebook.embedding (tenant_id, space_uid, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX embedding_of ON casebook.embedding (tenant_id, of_kind, of_id) WHERE delete_time IS NULL;
CREATE INDEX embedding_decision ON casebook.embedding (tenant_id, decision_id)
  WHERE delete_time IS NULL AND decision_id <> '';
CREATE INDEX embedding_tags ON casebook.embedding USING gin (tags jsonb_path_ops);
CREATE INDEX embedding_json ON casebook.embedding USING gin (metadata jsonb_path_ops);
ALTER TABLE casebook.embedding ALTER COLUMN metadata SET STATISTICS 1000, ALTER COLUMN tags SET STATISTICS 1000;
CALL casebook.build_wall('casebook.embedding');

-- The vectors of an embedding's versions, each once, by the digest of its numbers. Rows never change, and go with the
-- embedding when it is purged.
CREATE TABLE casebook.embedding_vector (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  embedding_uid uuid NOT NULL,
  -- SHA-256 of the numbers, hex.
  digest text COLLATE "C" NOT NULL,
  -- One of them, by the space's storage.
  vector public.vector,
  half public.halfvec,
  PRIMARY KEY (tenant_id, embedding_uid, digest),
  FOREIGN KEY (tenant_id, embedding_uid) REFERENCES casebook.embedding (tenant_id, uid) ON DELETE CASCADE,
  CHECK (num_nonnulls(vector, half) = 1)
);
-- Numbers do not compress. Up to 2,000 dimensions they stand in the row itself, so that a scan reads pages in their
-- order instead of looking each vector up.
ALTER TABLE casebook.embedding_vector ALTER COLUMN vector SET STORAGE EXTERNAL, ALTER COLUMN half SET STORAGE EXTERNAL,
  SET (toast_tuple_target = 8160);
CALL casebook.build_wall('casebook.embedding_vector', 'SELECT, INSERT');
