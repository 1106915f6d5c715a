-- Historical cases, and the graph between them.
CREATE TABLE casebook.precedent (
  LIKE casebook.noun INCLUDING DEFAULTS,
  decision_id text COLLATE "C" NOT NULL,
  -- SHA-256 of the canonical input, hex; empty without an input.
  case_hash text COLLATE "C" NOT NULL,
  input jsonb NOT NULL,
  summary text NOT NULL,
  final_verdict text COLLATE "C" NOT NULL,
  final_reason text NOT NULL,
  avg_confidence double precision CHECK (avg_confidence BETWEEN 0 AND 1),
  ambiguity double precision CHECK (ambiguity BETWEEN 0 AND 1),
  tags jsonb NOT NULL,
  context text NOT NULL,
  metadata jsonb NOT NULL,
  labels jsonb NOT NULL,
  occur_time timestamptz NOT NULL,
  -- PrecedentStatus: 1 active, 2 superseded, 3 withdrawn.
  status smallint NOT NULL CHECK (status BETWEEN 1 AND 3),
  superseded_by_id text COLLATE "C" NOT NULL,
  retention_class text COLLATE "C" NOT NULL,
  subject_id text COLLATE "C" NOT NULL,
  decision_uid uuid,
  search tsvector GENERATED ALWAYS AS (casebook.search_vector(
    tenant_id, summary, final_reason || ' ' || context,
    tags::text || ' ' || input::text)) STORED,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX precedent_id ON casebook.precedent (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX precedent_deleted ON casebook.precedent (tenant_id, id, delete_time) WHERE delete_time IS NOT NULL;
CREATE INDEX precedent_time ON casebook.precedent (tenant_id, occur_time, uid) WHERE delete_time IS NULL;
-- The exact leg of FindPrecedents.
CREATE INDEX precedent_case ON casebook.precedent (tenant_id, case_hash, occur_time, uid)
  WHERE delete_time IS NULL AND case_hash <> '';
CREATE INDEX precedent_verdict ON casebook.precedent (tenant_id, final_verdict, occur_time, uid)
  WHERE delete_time IS NULL;
CREATE INDEX precedent_subject ON casebook.precedent (tenant_id, subject_id, occur_time, uid)
  WHERE delete_time IS NULL AND subject_id <> '';
CREATE INDEX precedent_decision ON casebook.precedent (tenant_id, decision_id)
  WHERE delete_time IS NULL AND decision_id <> '';
-- Rows that refer to what is not recorded yet, for whoever records it.
CREATE INDEX precedent_decision_unresolved ON casebook.precedent (tenant_id, decision_id)
  WHERE decision_uid IS NULL AND decision_id <> '' AND delete_time IS NULL;
CREATE INDEX precedent_tags ON casebook.precedent USING gin (tags jsonb_path_ops);
CREATE INDEX precedent_json ON casebook.precedent USING gin (labels jsonb_path_ops, metadata jsonb_path_ops);
ALTER TABLE casebook.precedent ALTER COLUMN labels SET STATISTICS 1000, ALTER COLUMN metadata SET STATISTICS 1000;
CREATE INDEX precedent_search ON casebook.precedent USING gin (search);
CALL casebook.build_wall('casebook.precedent');

CREATE TABLE casebook.precedent_reference (
  -- delete_time is set and cleared together with that of the precedent that refers.
  LIKE casebook.noun INCLUDING DEFAULTS,
  from_precedent_id text COLLATE "C" NOT NULL,
  to_precedent_id text COLLATE "C" NOT NULL CHECK (to_precedent_id <> from_precedent_id),
  reference_type text COLLATE "C" NOT NULL,
  similarity double precision CHECK (similarity BETWEEN 0 AND 1),
  metadata jsonb NOT NULL,
  from_precedent_uid uuid,
  to_precedent_uid uuid,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX precedent_reference_id ON casebook.precedent_reference (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX precedent_reference_deleted ON casebook.precedent_reference (tenant_id, from_precedent_id, delete_time)
  WHERE delete_time IS NOT NULL;
CREATE INDEX precedent_reference_time ON casebook.precedent_reference (tenant_id, create_time, uid)
  WHERE delete_time IS NULL;
CREATE UNIQUE INDEX precedent_reference_edge ON casebook.precedent_reference
  (tenant_id, from_precedent_id, to_precedent_id, reference_type) WHERE delete_time IS NULL;
CREATE INDEX precedent_reference_from ON casebook.precedent_reference (tenant_id, from_precedent_id, create_time, uid)
  WHERE delete_time IS NULL;
CREATE INDEX precedent_reference_to ON casebook.precedent_reference (tenant_id, to_precedent_id, create_time, uid)
  WHERE delete_time IS NULL;
-- Rows that refer to what is not recorded yet, for whoever records it.
CREATE INDEX precedent_reference_from_precedent_unresolved ON casebook.precedent_reference
  (tenant_id, from_precedent_id) WHERE from_precedent_uid IS NULL AND from_precedent_id <> '' AND delete_time IS NULL;
CREATE INDEX precedent_reference_to_precedent_unresolved ON casebook.precedent_reference (tenant_id, to_precedent_id)
  WHERE to_precedent_uid IS NULL AND to_precedent_id <> '' AND delete_time IS NULL;
CREATE INDEX precedent_reference_json ON casebook.precedent_reference USING gin (metadata jsonb_path_ops);
ALTER TABLE casebook.precedent_reference ALTER COLUMN metadata SET STATISTICS 1000;
CALL casebook.build_wall('casebook.precedent_reference');
