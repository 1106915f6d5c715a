-- Evidence of decisions: bundles, whose canonical bytes are blobs too, and blobs that are attached under a name.

CREATE TABLE casebook.evidence_bundle (
  -- delete_time is set and cleared together with the decision's, or by itself.
  LIKE casebook.noun INCLUDING DEFAULTS,
  decision_uid uuid NOT NULL,
  decision_id text COLLATE "C" NOT NULL,
  evidence_type text COLLATE "C" NOT NULL,
  bundle_version text COLLATE "C" NOT NULL,
  evidence_data jsonb NOT NULL,
  -- SHA-256 of the canonical evidence_data, 64 lower-case hexadecimal digits: the id of the blob that has it.
  digest text COLLATE "C" NOT NULL,
  metadata jsonb NOT NULL,
  -- evidence/{type}/{yyyy}/{mm}/{decision_id}.json, of the time of creation: a name for people, and no key of the store.
  object_key text COLLATE "C" NOT NULL,
  size_bytes bigint NOT NULL CHECK (size_bytes >= 2),
  PRIMARY KEY (tenant_id, uid),
  FOREIGN KEY (tenant_id, decision_uid) REFERENCES casebook.decision (tenant_id, uid)
);
CREATE UNIQUE INDEX evidence_bundle_id ON casebook.evidence_bundle (tenant_id, id) WHERE delete_time IS NULL;
-- Those of a decision, and the newest of a type.
CREATE INDEX evidence_bundle_decision ON casebook.evidence_bundle (tenant_id, decision_id, evidence_type, create_time, uid)
  WHERE delete_time IS NULL;
CREATE INDEX evidence_bundle_deleted ON casebook.evidence_bundle (tenant_id, decision_id, delete_time)
  WHERE delete_time IS NOT NULL;
CREATE INDEX evidence_bundle_parent ON casebook.evidence_bundle (tenant_id, decision_uid);
CREATE INDEX evidence_bundle_time ON casebook.evidence_bundle (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX evidence_bundle_digest ON casebook.evidence_bundle (tenant_id, digest) WHERE delete_time IS NULL;
CREATE INDEX evidence_bundle_json ON casebook.evidence_bundle USING gin (metadata jsonb_path_ops);
ALTER TABLE casebook.evidence_bundle ALTER COLUMN metadata SET STATISTICS 1000;
CALL casebook.build_wall('casebook.evidence_bundle');

CREATE TABLE casebook.attachment (
  -- delete_time is set and cleared together with the decision's, or by itself.
  LIKE casebook.noun INCLUDING DEFAULTS,
  decision_uid uuid NOT NULL,
  decision_id text COLLATE "C" NOT NULL,
  name text COLLATE "C" NOT NULL,
  content_type text COLLATE "C" NOT NULL,
  size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
  -- The id of the blob.
  digest text COLLATE "C" NOT NULL,
  metadata jsonb NOT NULL,
  -- attachments/{yyyy}/{mm}/{decision_id}/{name}, of the time of creation.
  object_key text COLLATE "C" NOT NULL,
  PRIMARY KEY (tenant_id, uid),
  FOREIGN KEY (tenant_id, decision_uid) REFERENCES casebook.decision (tenant_id, uid)
);
CREATE UNIQUE INDEX attachment_id ON casebook.attachment (tenant_id, id) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX attachment_name ON casebook.attachment (tenant_id, decision_uid, name) WHERE delete_time IS NULL;
CREATE INDEX attachment_decision ON casebook.attachment (tenant_id, decision_id, create_time, uid)
  WHERE delete_time IS NULL;
CREATE INDEX attachment_deleted ON casebook.attachment (tenant_id, decision_id, delete_time)
  WHERE delete_time IS NOT NULL;
-- For the foreign key, when a decision is purged.
CREATE INDEX attachment_parent ON casebook.attachment (tenant_id, decision_uid);
CREATE INDEX attachment_time ON casebook.attachment (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX attachment_digest ON casebook.attachment (tenant_id, digest) WHERE delete_time IS NULL;
CREATE INDEX attachment_json ON casebook.attachment USING gin (metadata jsonb_path_ops);
ALTER TABLE casebook.attachment ALTER COLUMN metadata SET STATISTICS 1000;
CALL casebook.build_wall('casebook.attachment');

-- Which decisions cite something as evidence. Those without any cost nothing.
CREATE INDEX IF NOT EXISTS decision_evidence ON casebook.decision USING gin (evidence jsonb_path_ops)
  WHERE delete_time IS NULL AND evidence <> '[]'::jsonb;
