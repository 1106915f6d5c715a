-- Uploads that go on where they were cut: what is known of each, and the parts of its bytes that have come.

CREATE TABLE casebook.blob_upload (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  uid uuid NOT NULL,
  -- 1 open; 2 completed and 3 expired, which have no parts any more.
  state smallint NOT NULL CHECK (state BETWEEN 1 AND 3),
  -- 1 through the server, 2 straight to the store, by signed URLs.
  transport smallint NOT NULL CHECK (transport BETWEEN 1 AND 2),
  -- As was said beforehand, 64 lower-case hexadecimal digits or empty; once it is completed, that of the blob.
  digest text COLLATE "C" NOT NULL,
  -- As was said beforehand.
  size_bytes bigint CHECK (size_bytes >= 0),
  content_type text COLLATE "C" NOT NULL,
  -- How long parts are, but for the last.
  part_bytes bigint NOT NULL CHECK (part_bytes > 0),
  -- How many bytes have come, in how many parts; those that go straight to the store nobody tells of.
  committed_bytes bigint NOT NULL CHECK (committed_bytes >= 0),
  part_count integer NOT NULL CHECK (part_count >= 0),
  create_time timestamptz NOT NULL DEFAULT now(),
  expire_time timestamptz NOT NULL,
  -- When any server has to do something about it: let it expire, or forget it.
  due_time timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE INDEX blob_upload_due ON casebook.blob_upload (due_time);
CREATE INDEX blob_upload_open ON casebook.blob_upload (tenant_id) WHERE state = 1;
CALL casebook.build_wall('casebook.blob_upload', 'SELECT, INSERT, UPDATE, DELETE');

-- Each part is an object of its own under a key of its own, which it took over from its intent, or which was given out to
-- be put to. When the upload ends, however it does, the keys become intents again: no key of a part is ever a blob's.
CREATE TABLE casebook.blob_upload_part (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  upload_uid uuid NOT NULL,
  -- From 0, in the order of the bytes.
  number integer NOT NULL CHECK (number >= 0),
  -- Of the attempt that brought it.
  uid uuid NOT NULL,
  storage_backend text COLLATE "C" NOT NULL,
  store_key text COLLATE "C" NOT NULL,
  offset_bytes bigint NOT NULL CHECK (offset_bytes >= 0),
  size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
  stored_size_bytes bigint NOT NULL CHECK (stored_size_bytes >= 0),
  -- Of the part's bytes; empty where it is not known.
  digest text COLLATE "C" NOT NULL,
  -- Whether anybody may put them who has the signed URL.
  is_given_out boolean NOT NULL,
  -- As of a blob.
  cipher smallint NOT NULL,
  key_id text COLLATE "C" NOT NULL,
  wrapped_key bytea,
  seal_header bytea,
  PRIMARY KEY (tenant_id, upload_uid, number),
  FOREIGN KEY (tenant_id, upload_uid) REFERENCES casebook.blob_upload (tenant_id, uid)
);
CALL casebook.build_wall('casebook.blob_upload_part', 'SELECT, INSERT, DELETE');

-- Lets uploads of all tenants expire whose time has come, so that their parts become intents to delete them, and forgets
-- those that ended long ago; returns how many it was. Servers that ask at once get different ones. What was given out to be
-- put to is deleted once more late_ms after the last moment at which that may be begun.
CREATE FUNCTION wall.expire_blob_uploads(most integer, late_ms bigint, keep_ms bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  WITH due AS (
    SELECT u.tenant_id, u.uid, u.state, u.transport, u.expire_time FROM casebook.blob_upload AS u
    WHERE u.due_time <= pg_catalog.now() ORDER BY u.due_time LIMIT most FOR UPDATE SKIP LOCKED
  ), part AS (
    DELETE FROM casebook.blob_upload_part AS p USING due
    WHERE p.tenant_id = due.tenant_id AND p.upload_uid = due.uid
    RETURNING p.tenant_id, p.uid, p.store_key, due.transport, due.expire_time
  ), intended AS (
    INSERT INTO casebook.blob_intent (tenant_id, uid, store_key, state, due_time)
    SELECT part.tenant_id, part.uid, part.store_key, 2, pg_catalog.now() FROM part
    UNION ALL
    SELECT part.tenant_id, pg_catalog.gen_random_uuid(), part.store_key, 2,
      part.expire_time + pg_catalog.make_interval(secs => late_ms / 1000.0)
    FROM part WHERE part.transport = 2
  ), expired AS (
    UPDATE casebook.blob_upload AS u
    SET state = 3, due_time = pg_catalog.now() + pg_catalog.make_interval(secs => keep_ms / 1000.0)
    FROM due WHERE u.tenant_id = due.tenant_id AND u.uid = due.uid AND due.state = 1
  ), forgotten AS (
    DELETE FROM casebook.blob_upload AS u USING due
    WHERE u.tenant_id = due.tenant_id AND u.uid = due.uid AND due.state <> 1
  )
  SELECT pg_catalog.count(*) FROM due
$$;
REVOKE ALL ON FUNCTION wall.expire_blob_uploads(integer, bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.expire_blob_uploads(integer, bigint, bigint) TO casebook_app;

-- How many parts of uploads under way, of all tenants, have keys that are wrapped by another than the current one.
CREATE FUNCTION wall.count_parts_under_other_keys(current_key text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  SELECT pg_catalog.count(*) FROM casebook.blob_upload_part AS p WHERE p.cipher <> 0 AND p.key_id <> current_key
$$;
REVOKE ALL ON FUNCTION wall.count_parts_under_other_keys(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.count_parts_under_other_keys(text) TO casebook_app;
