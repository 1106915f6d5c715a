-- What machines decided about people, each critic's part in it, and who overruled it.
CREATE TABLE casebook.decision (
  LIKE casebook.noun INCLUDING DEFAULTS,
  input_data jsonb NOT NULL,
  final_verdict text COLLATE "C" NOT NULL,
  reason text NOT NULL,
  avg_confidence double precision CHECK (avg_confidence BETWEEN 0 AND 1),
  ambiguity double precision CHECK (ambiguity BETWEEN 0 AND 1),
  verdict_scores jsonb NOT NULL,
  citations jsonb NOT NULL,
  evidence jsonb NOT NULL,
  policy_rules jsonb NOT NULL,
  -- DecisionState: 1 final, 2 overridden.
  state smallint NOT NULL CHECK (state BETWEEN 1 AND 2),
  model_version text COLLATE "C" NOT NULL,
  trace_id text COLLATE "C" NOT NULL,
  decide_time timestamptz NOT NULL,
  processing_time_us bigint CHECK (processing_time_us >= 0),
  metadata jsonb NOT NULL,
  labels jsonb NOT NULL,
  retention_class text COLLATE "C" NOT NULL,
  subject_id text COLLATE "C" NOT NULL,
  -- SHA-256 of the canonical input_data, hex.
  case_hash text COLLATE "C" NOT NULL,
  -- Like casebook.search_vector, which costs more than the rest of the row; 64 KiB of reason cannot make it raise.
  search tsvector GENERATED ALWAYS AS (
    setweight(to_tsvector('pg_catalog.english'::regconfig, reason), 'A')
    || setweight(to_tsvector('pg_catalog.english'::regconfig, final_verdict), 'B')
    || array_to_tsvector(ARRAY['tenant:' || tenant_id])) STORED,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX decision_id ON casebook.decision (tenant_id, id) WHERE delete_time IS NULL;
-- The few that were deleted, for undeleting.
CREATE INDEX decision_deleted ON casebook.decision (tenant_id, id, delete_time) WHERE delete_time IS NOT NULL;
-- The newest first, all or of one verdict.
CREATE INDEX decision_time ON casebook.decision (tenant_id, decide_time, uid) WHERE delete_time IS NULL;
CREATE INDEX decision_verdict ON casebook.decision (tenant_id, final_verdict, decide_time, uid)
  WHERE delete_time IS NULL;
CREATE INDEX decision_subject ON casebook.decision (tenant_id, subject_id, decide_time, uid)
  WHERE delete_time IS NULL AND subject_id <> '';
-- The least confident first, and few of all by their confidence.
CREATE INDEX decision_confidence ON casebook.decision (tenant_id, avg_confidence, uid) WHERE delete_time IS NULL;
-- Equality on labels.* and metadata.*
CREATE INDEX decision_json ON casebook.decision USING gin (labels jsonb_path_ops, metadata jsonb_path_ops);
CREATE INDEX decision_search ON casebook.decision USING gin (search);
-- The planner guesses how many rows have a label from a sample of values. With the usual hundred, one of them that
-- happens to match counts for a hundredth of all rows, and the index is passed over.
ALTER TABLE casebook.decision ALTER COLUMN labels SET STATISTICS 1000, ALTER COLUMN metadata SET STATISTICS 1000;
CALL casebook.build_wall('casebook.decision');

CREATE TABLE casebook.critic_output (
  -- delete_time is set and cleared together with the decision's.
  LIKE casebook.noun INCLUDING DEFAULTS,
  decision_uid uuid NOT NULL,
  decision_id text COLLATE "C" NOT NULL,
  critic text COLLATE "C" NOT NULL,
  verdict text COLLATE "C" NOT NULL,
  confidence double precision NOT NULL CHECK (confidence BETWEEN 0 AND 1),
  justification text NOT NULL,
  weight double precision CHECK (weight >= 0),
  priority text COLLATE "C" NOT NULL CHECK (priority IN ('', 'override', 'veto')),
  config_version text COLLATE "C" NOT NULL,
  evaluate_time timestamptz,
  evidence_sources jsonb NOT NULL,
  details jsonb NOT NULL,
  PRIMARY KEY (tenant_id, uid),
  FOREIGN KEY (tenant_id, decision_uid) REFERENCES casebook.decision (tenant_id, uid)
);
-- An id is unique within its decision.
CREATE UNIQUE INDEX critic_output_id ON casebook.critic_output (tenant_id, decision_id, id) WHERE delete_time IS NULL;
CREATE INDEX critic_output_deleted ON casebook.critic_output (tenant_id, decision_id, delete_time)
  WHERE delete_time IS NOT NULL;
CREATE INDEX critic_output_time ON casebook.critic_output (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CALL casebook.build_wall('casebook.critic_output');

CREATE TABLE casebook.override (
  -- delete_time is set and cleared together with the decision's.
  LIKE casebook.noun INCLUDING DEFAULTS,
  decision_uid uuid NOT NULL,
  decision_id text COLLATE "C" NOT NULL,
  original_outcome text COLLATE "C" NOT NULL,
  proposed_outcome text COLLATE "C" NOT NULL CHECK (proposed_outcome <> original_outcome),
  justification text NOT NULL,
  reason_category text COLLATE "C" NOT NULL,
  reviewer_id text COLLATE "C" NOT NULL,
  reviewer_name text NOT NULL,
  reviewer_role text COLLATE "C" NOT NULL,
  reviewer_email text NOT NULL,
  urgent boolean NOT NULL,
  priority integer NOT NULL CHECK (priority BETWEEN 0 AND 10),
  expire_time timestamptz,
  stakeholder_input text NOT NULL,
  supporting_documents jsonb NOT NULL,
  additional_context jsonb NOT NULL,
  PRIMARY KEY (tenant_id, uid),
  FOREIGN KEY (tenant_id, decision_uid) REFERENCES casebook.decision (tenant_id, uid)
);
CREATE UNIQUE INDEX override_id ON casebook.override (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX override_decision ON casebook.override (tenant_id, decision_id) WHERE delete_time IS NULL;
CREATE INDEX override_deleted ON casebook.override (tenant_id, decision_id, delete_time)
  WHERE delete_time IS NOT NULL;
CREATE INDEX override_time ON casebook.override (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CALL casebook.build_wall('casebook.override');
