-- Blobs: bytes under the SHA-256 of them, kept in an object store, and what is under way between the store and these rows.

CREATE TABLE casebook.blob (
  -- The id is the digest, 64 lower-case hexadecimal digits.
  LIKE casebook.noun INCLUDING DEFAULTS,
  size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
  content_type text COLLATE "C" NOT NULL,
  -- 1 pending, which has no row here but one in blob_intent; 2 ready, 3 corrupt; deleted: 4 erasing, 5 erased.
  state smallint NOT NULL CHECK (state BETWEEN 2 AND 5),
  -- "s3", "local", "memory", "gcs" or "azure".
  storage_backend text COLLATE "C" NOT NULL,
  -- Where in the store the bytes are. No two attempts at an upload share a key, and none is used again: so nothing that
  -- comes late, neither a deletion nor a part of an upload, meets the bytes of another.
  store_key text COLLATE "C" NOT NULL,
  -- As many bytes as the store has: more than size_bytes where they are encrypted.
  stored_size_bytes bigint NOT NULL CHECK (stored_size_bytes >= 0),
  store_etag text COLLATE "C" NOT NULL,
  store_version_id text COLLATE "C" NOT NULL,
  -- How the bytes are encrypted: 0 not at all, 1 as segments. Which key wraps the blob's own, the wrapped one, and what the
  -- stored bytes begin with.
  cipher smallint NOT NULL,
  key_id text COLLATE "C" NOT NULL,
  wrapped_key bytea,
  seal_header bytea,
  -- When the stored bytes were last read whole and found to be those of the digest.
  verify_time timestamptz,
  PRIMARY KEY (tenant_id, uid),
  CHECK ((delete_time IS NULL) = (state < 4)),
  CHECK ((cipher = 0) = (wrapped_key IS NULL) AND (cipher = 0) = (seal_header IS NULL))
);
CREATE UNIQUE INDEX blob_id ON casebook.blob (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX blob_time ON casebook.blob (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX blob_store_key ON casebook.blob (tenant_id, store_key);
-- For all tenants together: which were not read for the longest time, and which are under which key.
CREATE INDEX blob_unread ON casebook.blob (COALESCE(verify_time, create_time)) WHERE delete_time IS NULL AND state = 2;
CREATE INDEX blob_key ON casebook.blob (key_id, tenant_id, uid) WHERE delete_time IS NULL AND cipher <> 0;
CALL casebook.build_wall('casebook.blob');

-- What refers to blobs: kind and uid of a row of another table. Whoever adds a row first locks the live blob FOR SHARE
-- (blob.HOLD), in the same transaction; a deletion locks it FOR UPDATE and then looks here.
CREATE TABLE casebook.blob_reference (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  blob_uid uuid NOT NULL,
  kind text COLLATE "C" NOT NULL,
  ref_uid uuid NOT NULL,
  PRIMARY KEY (tenant_id, blob_uid, kind, ref_uid),
  FOREIGN KEY (tenant_id, blob_uid) REFERENCES casebook.blob (tenant_id, uid)
);
CREATE INDEX blob_reference_ref ON casebook.blob_reference (tenant_id, ref_uid);
CALL casebook.build_wall('casebook.blob_reference', 'SELECT, INSERT, DELETE');

-- Every key of the store that has bytes, or may have, and is no ready blob's: written before the bytes go there, and
-- removed when a blob has taken them over, or after they were deleted.
CREATE TABLE casebook.blob_intent (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  uid uuid NOT NULL,
  store_key text COLLATE "C" NOT NULL,
  -- The store's name for an upload in parts, once it is known.
  upload_id text COLLATE "C" NOT NULL DEFAULT '',
  -- 1 bytes are on their way; 2 they are to be deleted, and no blob will have them.
  state smallint NOT NULL CHECK (state BETWEEN 1 AND 2),
  -- The deleted blob that had them, if one did.
  blob_uid uuid,
  create_time timestamptz NOT NULL DEFAULT now(),
  -- From when on any server may delete them.
  due_time timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE INDEX blob_intent_due ON casebook.blob_intent (due_time);
CALL casebook.build_wall('casebook.blob_intent', 'SELECT, INSERT, UPDATE, DELETE');

-- Takes intents of all tenants that are due, for lease_ms: from here on no upload can take the bytes over. Servers that
-- ask at once get different ones.
CREATE FUNCTION wall.claim_blob_intents(most integer, lease_ms bigint)
RETURNS TABLE (tenant_id text, uid uuid, store_key text, upload_id text, is_erasure boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  WITH due AS (
    SELECT i.tenant_id, i.uid FROM casebook.blob_intent AS i WHERE i.due_time <= pg_catalog.now()
    ORDER BY i.due_time LIMIT most FOR UPDATE SKIP LOCKED
  )
  UPDATE casebook.blob_intent AS i
  SET state = 2, due_time = pg_catalog.now() + pg_catalog.make_interval(secs => lease_ms / 1000.0)
  FROM due WHERE i.tenant_id = due.tenant_id AND i.uid = due.uid
  RETURNING i.tenant_id, i.uid, i.store_key, i.upload_id, i.blob_uid IS NOT NULL
$$;
REVOKE ALL ON FUNCTION wall.claim_blob_intents(integer, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.claim_blob_intents(integer, bigint) TO casebook_app;

-- How many intents there are, of uploads and of deletions, in all tenants.
CREATE FUNCTION wall.count_blob_intents() RETURNS TABLE (uploads bigint, removals bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  SELECT pg_catalog.count(*) FILTER (WHERE state = 1), pg_catalog.count(*) FILTER (WHERE state = 2)
  FROM casebook.blob_intent
$$;
REVOKE ALL ON FUNCTION wall.count_blob_intents() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.count_blob_intents() TO casebook_app;

-- Blobs that a server is reading to see whether their bytes are right, and until when they are left to it.
CREATE TABLE casebook.blob_scrub (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  blob_uid uuid NOT NULL,
  due_time timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, blob_uid)
);
CREATE INDEX blob_scrub_due ON casebook.blob_scrub (due_time);
CALL casebook.build_wall('casebook.blob_scrub', 'SELECT');

-- Takes ready blobs of all tenants whose bytes nobody has read for period_ms, for lease_ms. Servers that ask at once get
-- different ones: whoever comes second to a row finds it taken.
CREATE FUNCTION wall.claim_blob_scrubs(most integer, period_ms bigint, lease_ms bigint)
RETURNS TABLE (tenant_id text, id text)
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  WITH over AS (
    DELETE FROM casebook.blob_scrub AS s
    WHERE s.due_time < pg_catalog.now() - pg_catalog.make_interval(secs => lease_ms / 1000.0)
  ), due AS (
    SELECT b.tenant_id, b.uid, b.id FROM casebook.blob AS b
    WHERE b.delete_time IS NULL AND b.state = 2 AND COALESCE(b.verify_time, b.create_time)
      <= pg_catalog.now() - pg_catalog.make_interval(secs => period_ms / 1000.0)
      AND NOT EXISTS (SELECT FROM casebook.blob_scrub AS s
        WHERE s.tenant_id = b.tenant_id AND s.blob_uid = b.uid AND s.due_time > pg_catalog.now())
    ORDER BY COALESCE(b.verify_time, b.create_time) LIMIT most
  ), taken AS (
    INSERT INTO casebook.blob_scrub AS s (tenant_id, blob_uid, due_time)
    SELECT d.tenant_id, d.uid, pg_catalog.now() + pg_catalog.make_interval(secs => lease_ms / 1000.0) FROM due AS d
    ON CONFLICT (tenant_id, blob_uid) DO UPDATE SET due_time = EXCLUDED.due_time
      WHERE s.due_time <= pg_catalog.now()
    RETURNING s.tenant_id, s.blob_uid
  )
  SELECT d.tenant_id, d.id FROM due AS d JOIN taken AS t ON t.tenant_id = d.tenant_id AND t.blob_uid = d.uid
$$;
REVOKE ALL ON FUNCTION wall.claim_blob_scrubs(integer, bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.claim_blob_scrubs(integer, bigint, bigint) TO casebook_app;

-- Encrypted blobs of all tenants whose key is wrapped by another than the current one, behind a place in their order.
CREATE FUNCTION wall.blobs_under_other_keys(current_key text, after_key text, after_tenant text, after_uid uuid, most integer)
RETURNS TABLE (tenant_id text, uid uuid, id text, key_id text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  (SELECT b.tenant_id, b.uid, b.id, b.key_id FROM casebook.blob AS b
   WHERE b.delete_time IS NULL AND b.cipher <> 0 AND b.key_id < current_key
     AND (b.key_id, b.tenant_id, b.uid) > (after_key, after_tenant, after_uid)
   ORDER BY b.key_id, b.tenant_id, b.uid LIMIT most)
  UNION ALL
  (SELECT b.tenant_id, b.uid, b.id, b.key_id FROM casebook.blob AS b
   WHERE b.delete_time IS NULL AND b.cipher <> 0 AND b.key_id > current_key
     AND (b.key_id, b.tenant_id, b.uid) > (after_key, after_tenant, after_uid)
   ORDER BY b.key_id, b.tenant_id, b.uid LIMIT most)
  ORDER BY 4, 1, 2 LIMIT most
$$;
REVOKE ALL ON FUNCTION wall.blobs_under_other_keys(text, text, text, uuid, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.blobs_under_other_keys(text, text, text, uuid, integer) TO casebook_app;
