-- Checkpoints of models, which of them are active, and the examples that models are trained with.
CREATE TABLE casebook.model_checkpoint (
  LIKE casebook.noun INCLUDING DEFAULTS,
  model_name text COLLATE "C" NOT NULL,
  framework text COLLATE "C" NOT NULL,
  model_version text COLLATE "C" NOT NULL,
  checkpoint_path text NOT NULL,
  metrics jsonb NOT NULL,
  training_config jsonb NOT NULL,
  active boolean NOT NULL,
  digest text COLLATE "C" NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX model_checkpoint_id ON casebook.model_checkpoint (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX model_checkpoint_time ON casebook.model_checkpoint (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX model_checkpoint_version ON casebook.model_checkpoint (tenant_id, model_name, model_version)
  WHERE delete_time IS NULL;
CREATE UNIQUE INDEX model_checkpoint_active ON casebook.model_checkpoint (tenant_id, framework, model_name)
  WHERE active AND delete_time IS NULL;
CALL casebook.build_wall('casebook.model_checkpoint');

CREATE TABLE casebook.training_example (
  LIKE casebook.noun INCLUDING DEFAULTS,
  framework text COLLATE "C" NOT NULL,
  claim_id text COLLATE "C" NOT NULL,
  claim_text text NOT NULL,
  evidence jsonb NOT NULL,
  validity boolean NOT NULL,
  confidence double precision CHECK (confidence BETWEEN 0 AND 1),
  metadata jsonb NOT NULL,
  used_in_training boolean NOT NULL,
  training_batch_id text COLLATE "C" NOT NULL,
  claim_uid uuid,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX training_example_id ON casebook.training_example (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX training_example_time ON casebook.training_example (tenant_id, create_time, uid) WHERE delete_time IS NULL;
-- F197: the unused ones, oldest first.
CREATE INDEX training_example_status ON casebook.training_example
  (tenant_id, framework, used_in_training, create_time, uid) WHERE delete_time IS NULL;
-- F196, in the order of a listing: a batch is asked for without its framework, too, and hardly ever has two.
CREATE INDEX training_example_batch ON casebook.training_example
  (tenant_id, training_batch_id, create_time, uid) WHERE delete_time IS NULL AND training_batch_id <> '';
-- Rows that refer to what is not recorded yet, for whoever records it.
CREATE INDEX training_example_claim_unresolved ON casebook.training_example (tenant_id, claim_id)
  WHERE claim_uid IS NULL AND claim_id <> '' AND delete_time IS NULL;
CREATE INDEX training_example_json ON casebook.training_example USING gin (metadata jsonb_path_ops);
ALTER TABLE casebook.training_example ALTER COLUMN metadata SET STATISTICS 1000;
CALL casebook.build_wall('casebook.training_example');
