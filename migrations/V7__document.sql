-- Documents, their numbered analyses and their chunks.
CREATE TABLE casebook.document (
  LIKE casebook.noun INCLUDING DEFAULTS,
  filename text COLLATE "C" NOT NULL,
  original_filename text COLLATE "C" NOT NULL,
  source_path text COLLATE "C" NOT NULL,
  size_bytes bigint CHECK (size_bytes >= 0),
  mime_type text COLLATE "C" NOT NULL,
  -- Not unique: several documents may have the same bytes.
  content_hash text COLLATE "C" NOT NULL,
  total_chunks integer NOT NULL CHECK (total_chunks >= 0),
  status text COLLATE "C" NOT NULL,
  metadata jsonb NOT NULL,
  labels jsonb NOT NULL,
  owner_id text COLLATE "C" NOT NULL,
  -- One reference; an empty object when there is none.
  content jsonb NOT NULL,
  retention_class text COLLATE "C" NOT NULL,
  subject_id text COLLATE "C" NOT NULL,
  search tsvector GENERATED ALWAYS AS (
    casebook.search_vector(tenant_id, filename, original_filename || ' ' || source_path, metadata::text)) STORED,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX document_id ON casebook.document (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX document_deleted ON casebook.document (tenant_id, id, delete_time) WHERE delete_time IS NOT NULL;
CREATE INDEX document_time ON casebook.document (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX document_hash ON casebook.document (tenant_id, content_hash, create_time, uid)
  WHERE delete_time IS NULL AND content_hash <> '';
CREATE INDEX document_owner ON casebook.document (tenant_id, owner_id, create_time, uid)
  WHERE delete_time IS NULL AND owner_id <> '';
CREATE INDEX document_subject ON casebook.document (tenant_id, subject_id, create_time, uid)
  WHERE delete_time IS NULL AND subject_id <> '';
CREATE INDEX document_status ON casebook.document (tenant_id, status, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX document_json ON casebook.document USING gin (labels jsonb_path_ops, metadata jsonb_path_ops);
ALTER TABLE casebook.document ALTER COLUMN labels SET STATISTICS 1000, ALTER COLUMN metadata SET STATISTICS 1000;
CREATE INDEX document_search ON casebook.document USING gin (search);
CALL casebook.build_wall('casebook.document');

CREATE TABLE casebook.analysis (
  -- delete_time is set and cleared together with the document's.
  LIKE casebook.noun INCLUDING DEFAULTS,
  document_uid uuid NOT NULL,
  document_id text COLLATE "C" NOT NULL,
  analysis_version integer NOT NULL CHECK (analysis_version >= 1),
  category text COLLATE "C" NOT NULL,
  summary text NOT NULL,
  tags jsonb NOT NULL,
  raw_response jsonb NOT NULL,
  provider_used text COLLATE "C" NOT NULL,
  model_used text COLLATE "C" NOT NULL,
  trace_id text COLLATE "C" NOT NULL,
  owner_id text COLLATE "C" NOT NULL,
  search tsvector GENERATED ALWAYS AS (
    casebook.search_vector(tenant_id, summary || ' ' || category, tags::text, raw_response::text)) STORED,
  PRIMARY KEY (tenant_id, uid),
  FOREIGN KEY (tenant_id, document_uid) REFERENCES casebook.document (tenant_id, uid)
);
CREATE UNIQUE INDEX analysis_id ON casebook.analysis (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX analysis_deleted ON casebook.analysis (tenant_id, document_id, delete_time) WHERE delete_time IS NOT NULL;
CREATE INDEX analysis_time ON casebook.analysis (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX analysis_version ON casebook.analysis (tenant_id, document_uid, analysis_version);
-- Those of a document, and the latest of them.
CREATE INDEX analysis_document ON casebook.analysis (tenant_id, document_id, analysis_version, uid)
  WHERE delete_time IS NULL;
CREATE INDEX analysis_owner ON casebook.analysis (tenant_id, owner_id, create_time, uid)
  WHERE delete_time IS NULL AND owner_id <> '';
CREATE INDEX analysis_category ON casebook.analysis (tenant_id, category, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX analysis_tags ON casebook.analysis USING gin (tags jsonb_path_ops);
CREATE INDEX analysis_search ON casebook.analysis USING gin (search);
CALL casebook.build_wall('casebook.analysis');

CREATE TABLE casebook.chunk (
  -- delete_time is set and cleared together with the document's, or by itself.
  LIKE casebook.noun INCLUDING DEFAULTS,
  document_uid uuid NOT NULL,
  document_id text COLLATE "C" NOT NULL,
  chunk_index integer NOT NULL CHECK (chunk_index >= 0),
  text text NOT NULL,
  metadata jsonb NOT NULL,
  search tsvector GENERATED ALWAYS AS (casebook.search_vector(tenant_id, text, '', metadata::text)) STORED,
  PRIMARY KEY (tenant_id, uid),
  FOREIGN KEY (tenant_id, document_uid) REFERENCES casebook.document (tenant_id, uid)
);
CREATE UNIQUE INDEX chunk_id ON casebook.chunk (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX chunk_deleted ON casebook.chunk (tenant_id, document_id, delete_time) WHERE delete_time IS NOT NULL;
CREATE INDEX chunk_time ON casebook.chunk (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX chunk_place ON casebook.chunk (tenant_id, document_uid, chunk_index) WHERE delete_time IS NULL;
-- Those of a document in their order, which is also the default order of all.
CREATE INDEX chunk_document ON casebook.chunk (tenant_id, document_id, chunk_index, uid) WHERE delete_time IS NULL;
-- For the foreign key, which looks at deleted chunks too when a document is purged.
CREATE INDEX chunk_parent ON casebook.chunk (tenant_id, document_uid);
CREATE INDEX chunk_json ON casebook.chunk USING gin (metadata jsonb_path_ops);
ALTER TABLE casebook.chunk ALTER COLUMN metadata SET STATISTICS 1000;
CREATE INDEX chunk_search ON casebook.chunk USING gin (search);
CALL casebook.build_wall('casebook.chunk');
