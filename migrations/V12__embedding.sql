-- Vectors, each once in its space, found by the digest of its numbers. Rows never change.
CREATE TABLE casebook.embedding_vector (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  space_uid uuid NOT NULL,
  -- SHA-256 of the numbers, hex.
  digest text COLLATE "C" NOT NULL,
  -- One of them, by the space's storage.
  vector public.vector,
  half public.halfvec,
  PRIMARY KEY (tenant_id, space_uid, digest),
  FOREIGN KEY (tenant_id, space_uid) REFERENCES casebook.vector_space (tenant_id, uid),
  CHECK (num_nonnulls(vector, half) = 1)
);
-- Numbers do not compress. Up to 2,000 dimensions they stand in the row itself, so that a scan reads pages in their
-- order instead of looking each vector up.
ALTER TABLE casebook.embedding_vector ALTER COLUMN vector SET STORAGE EXTERNAL, ALTER COLUMN half SET STORAGE EXTERNAL,
  SET (toast_tuple_target = 8160);
CALL casebook.build_wall('casebook.embedding_vector', 'SELECT, INSERT');

CREATE TABLE casebook.embedding (
  -- The id is the space's uid and the embedding_id, so that it is unique in the tenant.
  LIKE casebook.noun INCLUDING DEFAULTS,
  space_uid uuid NOT NULL,
  space_id text COLLATE "C" NOT NULL,
  embedding_id text COLLATE "C" NOT NULL,
  embedding_model text COLLATE "C" NOT NULL,
  dimensions integer NOT NULL,
  subject_kind text COLLATE "C" NOT NULL,
  subject_id text COLLATE "C" NOT NULL,
  subject_version bigint NOT NULL,
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
-- From a vector to those that have it.
CREATE INDEX embedding_digest ON casebook.embedding (tenant_id, space_uid, vector_digest);
CREATE INDEX embedding_subject ON casebook.embedding (tenant_id, subject_kind, subject_id) WHERE delete_time IS NULL;
CREATE INDEX embedding_decision ON casebook.embedding (tenant_id, decision_id)
  WHERE delete_time IS NULL AND decision_id <> '';
CREATE INDEX embedding_tags ON casebook.embedding USING gin (tags jsonb_path_ops);
CREATE INDEX embedding_json ON casebook.embedding USING gin (metadata jsonb_path_ops);
ALTER TABLE casebook.embedding ALTER COLUMN metadata SET STATISTICS 1000, ALTER COLUMN tags SET STATISTICS 1000;
CALL casebook.build_wall('casebook.embedding');

-- Embeddings only go by purging. Then go the vectors of all their versions, but for those that other embeddings have.
-- Whoever writes embeddings shares the lock (see KEEP), so that none counts on a vector that is just going.
CREATE FUNCTION casebook.forget_vector() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('casebook.embedding_vector',
    pg_catalog.hashtextextended(OLD.tenant_id, 0)));
  DELETE FROM casebook.embedding_vector AS v
  WHERE v.tenant_id = OLD.tenant_id AND v.space_uid = OLD.space_uid AND v.digest IN (
      SELECT OLD.vector_digest UNION ALL
      SELECT pg_catalog.convert_from(l.document, 'UTF8')::pg_catalog.jsonb ->> 'vector_digest' FROM casebook.log AS l
      WHERE l.tenant_id = OLD.tenant_id AND l.kind = 'embedding' AND l.id = OLD.id AND l.uid = OLD.uid
        AND l.document IS NOT NULL)
    AND NOT EXISTS (SELECT FROM casebook.embedding AS e WHERE e.tenant_id = OLD.tenant_id
      AND e.space_uid = OLD.space_uid AND e.vector_digest = v.digest);
  RETURN NULL;
END
$$;
CREATE TRIGGER forget_vector AFTER DELETE ON casebook.embedding
  FOR EACH ROW EXECUTE FUNCTION casebook.forget_vector();
