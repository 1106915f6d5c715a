-- Objects: keys over blobs or over bytes kept elsewhere, and the chain of versions of each key.

CREATE TABLE casebook.object (
  -- The id is the key. While a key has versions there is one row of it, deleted or not; it lives on when the key is put
  -- again.
  LIKE casebook.noun INCLUDING DEFAULTS,
  -- The version on top; empty when there is none.
  version_id text COLLATE "C" NOT NULL,
  version_count bigint NOT NULL CHECK (version_count >= 0),
  -- When the version was made whose content follows: the latest that is no delete marker.
  last_modified timestamptz NOT NULL,
  -- Hexadecimal; empty for bytes that are kept elsewhere.
  digest text COLLATE "C" NOT NULL,
  size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
  content_type text COLLATE "C" NOT NULL,
  storage_backend text COLLATE "C" NOT NULL,
  storage_class text COLLATE "C" NOT NULL,
  location text COLLATE "C" NOT NULL,
  store_etag text COLLATE "C" NOT NULL,
  store_version_id text COLLATE "C" NOT NULL,
  metadata jsonb NOT NULL,
  tags jsonb NOT NULL,
  retention_class text COLLATE "C" NOT NULL,
  subject_id text COLLATE "C" NOT NULL,
  search tsvector GENERATED ALWAYS AS (casebook.search_vector(tenant_id, id, content_type, metadata::text)) STORED,
  PRIMARY KEY (tenant_id, uid),
  CHECK (delete_time IS NOT NULL OR version_count > 0)
);
-- By key, for pages and for the jumps over a common prefix.
CREATE UNIQUE INDEX object_id ON casebook.object (tenant_id, id) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX object_chain ON casebook.object (tenant_id, id) WHERE version_count > 0;
CREATE INDEX object_deleted ON casebook.object (tenant_id, id, delete_time) WHERE delete_time IS NOT NULL;
CREATE INDEX object_backend ON casebook.object (tenant_id, storage_backend, last_modified, uid) WHERE delete_time IS NULL;
-- The newest first; with it those of the last days are read, too.
CREATE INDEX object_modified ON casebook.object (tenant_id, last_modified, uid) WHERE delete_time IS NULL;
-- Equality on any key, such as metadata.owner and metadata.doc_type.
CREATE INDEX object_json ON casebook.object USING gin (tags jsonb_path_ops, metadata jsonb_path_ops);
ALTER TABLE casebook.object ALTER COLUMN tags SET STATISTICS 1000, ALTER COLUMN metadata SET STATISTICS 1000;
CREATE INDEX object_search ON casebook.object USING gin (search);
CALL casebook.build_wall('casebook.object');

CREATE TABLE casebook.object_version (
  -- The id is the uid as text.
  LIKE casebook.noun INCLUDING DEFAULTS,
  object_key text COLLATE "C" NOT NULL,
  -- The object's own version when this one came: the newest has the highest.
  number bigint NOT NULL,
  delete_marker boolean NOT NULL,
  comment text COLLATE "C" NOT NULL,
  digest text COLLATE "C" NOT NULL,
  size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
  content_type text COLLATE "C" NOT NULL,
  storage_backend text COLLATE "C" NOT NULL,
  storage_class text COLLATE "C" NOT NULL,
  location text COLLATE "C" NOT NULL,
  store_etag text COLLATE "C" NOT NULL,
  store_version_id text COLLATE "C" NOT NULL,
  metadata jsonb NOT NULL,
  tags jsonb NOT NULL,
  retention_class text COLLATE "C" NOT NULL,
  subject_id text COLLATE "C" NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX object_version_id ON casebook.object_version (tenant_id, id) WHERE delete_time IS NULL;
-- Those of one key, the newest first.
CREATE UNIQUE INDEX object_version_number ON casebook.object_version (tenant_id, object_key, number DESC, uid DESC)
  WHERE delete_time IS NULL;
CREATE INDEX object_version_deleted ON casebook.object_version (tenant_id, object_key, delete_time)
  WHERE delete_time IS NOT NULL;
CALL casebook.build_wall('casebook.object_version');
