-- What was claimed, what each framework found about it, and what they agreed on.
--
-- A reference is an id, which may name what is recorded later, or never. Behind the noun's own columns stands the uid
-- of what it named, once that is known; the statements that write rows fill it, and no message shows it.
CREATE TABLE casebook.claim (
  LIKE casebook.noun INCLUDING DEFAULTS,
  content text NOT NULL,
  claim_type text COLLATE "C" NOT NULL,
  source text COLLATE "C" NOT NULL,
  metadata jsonb NOT NULL,
  labels jsonb NOT NULL,
  retention_class text COLLATE "C" NOT NULL,
  subject_id text COLLATE "C" NOT NULL,
  search tsvector GENERATED ALWAYS AS (
    casebook.search_vector(tenant_id, content, claim_type || ' ' || source, metadata::text)) STORED,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX claim_id ON casebook.claim (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX claim_deleted ON casebook.claim (tenant_id, id, delete_time) WHERE delete_time IS NOT NULL;
CREATE INDEX claim_time ON casebook.claim (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX claim_type ON casebook.claim (tenant_id, claim_type, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX claim_subject ON casebook.claim (tenant_id, subject_id, create_time, uid)
  WHERE delete_time IS NULL AND subject_id <> '';
CREATE INDEX claim_json ON casebook.claim USING gin (labels jsonb_path_ops, metadata jsonb_path_ops);
ALTER TABLE casebook.claim ALTER COLUMN labels SET STATISTICS 1000, ALTER COLUMN metadata SET STATISTICS 1000;
CREATE INDEX claim_search ON casebook.claim USING gin (search);
CALL casebook.build_wall('casebook.claim');

CREATE TABLE casebook.verification (
  -- delete_time is set and cleared together with the claim's.
  LIKE casebook.noun INCLUDING DEFAULTS,
  claim_id text COLLATE "C" NOT NULL,
  framework text COLLATE "C" NOT NULL,
  result jsonb NOT NULL,
  confidence double precision NOT NULL CHECK (confidence BETWEEN 0 AND 1),
  evidence jsonb NOT NULL,
  processing_time_us bigint CHECK (processing_time_us >= 0),
  model_version text COLLATE "C" NOT NULL,
  trace_id text COLLATE "C" NOT NULL,
  claim_uid uuid,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX verification_id ON casebook.verification (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX verification_deleted ON casebook.verification (tenant_id, claim_id, delete_time)
  WHERE delete_time IS NOT NULL;
CREATE INDEX verification_time ON casebook.verification (tenant_id, create_time, uid) WHERE delete_time IS NULL;
-- Those of a claim, and the newest of each framework.
CREATE INDEX verification_claim ON casebook.verification (tenant_id, claim_id, framework, create_time, uid)
  WHERE delete_time IS NULL;
-- Rows that refer to what is not recorded yet, for whoever records it.
CREATE INDEX verification_claim_unresolved ON casebook.verification (tenant_id, claim_id)
  WHERE claim_uid IS NULL AND claim_id <> '' AND delete_time IS NULL;
CALL casebook.build_wall('casebook.verification');

CREATE TABLE casebook.consensus (
  -- delete_time is set and cleared together with the claim's.
  LIKE casebook.noun INCLUDING DEFAULTS,
  claim_id text COLLATE "C" NOT NULL,
  consensus_result jsonb NOT NULL,
  participating_frameworks jsonb NOT NULL,
  consensus_type text COLLATE "C" NOT NULL,
  consensus_confidence double precision NOT NULL CHECK (consensus_confidence BETWEEN 0 AND 1),
  decision_time_us bigint CHECK (decision_time_us >= 0),
  verification_ids jsonb NOT NULL,
  decision_id text COLLATE "C" NOT NULL,
  current boolean NOT NULL,
  supersedes_id text COLLATE "C" NOT NULL,
  superseded_by_id text COLLATE "C" NOT NULL,
  claim_uid uuid,
  decision_uid uuid,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX consensus_id ON casebook.consensus (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX consensus_deleted ON casebook.consensus (tenant_id, claim_id, delete_time) WHERE delete_time IS NOT NULL;
CREATE INDEX consensus_time ON casebook.consensus (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX consensus_claim ON casebook.consensus (tenant_id, claim_id, create_time, uid) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX consensus_current ON casebook.consensus (tenant_id, claim_id) WHERE current AND delete_time IS NULL;
-- Rows that refer to what is not recorded yet, for whoever records it.
CREATE INDEX consensus_claim_unresolved ON casebook.consensus (tenant_id, claim_id)
  WHERE claim_uid IS NULL AND claim_id <> '' AND delete_time IS NULL;
CREATE INDEX consensus_decision_unresolved ON casebook.consensus (tenant_id, decision_id)
  WHERE decision_uid IS NULL AND decision_id <> '' AND delete_time IS NULL;
CALL casebook.build_wall('casebook.consensus');
