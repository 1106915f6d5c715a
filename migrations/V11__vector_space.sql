-- Vector spaces: which embedding model, with how many dimensions, under which metric.
CREATE TABLE casebook.vector_space (
  LIKE casebook.noun INCLUDING DEFAULTS,
  embedding_model text COLLATE "C" NOT NULL,
  dimensions integer NOT NULL CHECK (dimensions BETWEEN 1 AND 16000),
  metric smallint NOT NULL CHECK (metric BETWEEN 1 AND 4),
  storage smallint NOT NULL CHECK (storage BETWEEN 1 AND 2),
  description text NOT NULL,
  labels jsonb NOT NULL,
  -- An array of strings. No two live spaces of a tenant have one in common, and none is the id of a live space: every
  -- statement that could break this first takes the lock of LOCK_NAMES.
  aliases jsonb NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX vector_space_id ON casebook.vector_space (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX vector_space_time ON casebook.vector_space (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE INDEX vector_space_alias ON casebook.vector_space USING gin (aliases) WHERE delete_time IS NULL;
CREATE INDEX vector_space_json ON casebook.vector_space USING gin (labels jsonb_path_ops);
ALTER TABLE casebook.vector_space ALTER COLUMN labels SET STATISTICS 1000;
CALL casebook.build_wall('casebook.vector_space');
