-- What must not be deleted, and how long records are kept.
CREATE TABLE casebook.legal_hold (
  LIKE casebook.noun INCLUDING DEFAULTS,
  reason text NOT NULL,
  matter text COLLATE "C" NOT NULL,
  refs jsonb NOT NULL,
  subject_id text COLLATE "C" NOT NULL,
  -- Null while it holds.
  release_time timestamptz,
  released_by text COLLATE "C" NOT NULL,
  release_reason text NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX legal_hold_id ON casebook.legal_hold (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX legal_hold_time ON casebook.legal_hold (tenant_id, create_time, uid) WHERE delete_time IS NULL;
-- Whether something is held: refs @> '[{"kind": 1, "id": "..."}]', or its subject is.
CREATE INDEX legal_hold_refs ON casebook.legal_hold USING gin (refs jsonb_path_ops)
  WHERE release_time IS NULL AND delete_time IS NULL;
CREATE INDEX legal_hold_subject ON casebook.legal_hold (tenant_id, subject_id)
  WHERE release_time IS NULL AND delete_time IS NULL AND subject_id <> '';
CALL casebook.build_wall('casebook.legal_hold');

CREATE TABLE casebook.retention_policy (
  LIKE casebook.noun INCLUDING DEFAULTS,
  retention_class text COLLATE "C" NOT NULL,
  keep_at_least_us bigint NOT NULL CHECK (keep_at_least_us >= 0),
  keep_at_most_us bigint CHECK (keep_at_most_us >= keep_at_least_us),
  description text NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX retention_policy_id ON casebook.retention_policy (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX retention_policy_time ON casebook.retention_policy (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX retention_policy_class ON casebook.retention_policy (tenant_id, retention_class)
  WHERE delete_time IS NULL;
CALL casebook.build_wall('casebook.retention_policy');
