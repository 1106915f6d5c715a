-- What other services report about themselves: heartbeats and metrics.
CREATE TABLE casebook.service_health (
  LIKE casebook.noun INCLUDING DEFAULTS,
  service_name text COLLATE "C" NOT NULL,
  instance_id text COLLATE "C" NOT NULL,
  status text COLLATE "C" NOT NULL,
  last_heartbeat_time timestamptz NOT NULL,
  metadata jsonb NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX service_health_id ON casebook.service_health (tenant_id, id) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX service_health_instance ON casebook.service_health (tenant_id, service_name, instance_id)
  WHERE delete_time IS NULL;
CREATE INDEX service_health_time ON casebook.service_health (tenant_id, last_heartbeat_time, uid)
  WHERE delete_time IS NULL;
CREATE INDEX service_health_heartbeat ON casebook.service_health (tenant_id, service_name, last_heartbeat_time, uid)
  WHERE delete_time IS NULL;
CALL casebook.build_wall('casebook.service_health');

CREATE TABLE casebook.metrics_snapshot (
  LIKE casebook.noun INCLUDING DEFAULTS,
  source text COLLATE "C" NOT NULL,
  metrics jsonb NOT NULL,
  labels jsonb NOT NULL,
  snapshot_time timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX metrics_snapshot_id ON casebook.metrics_snapshot (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX metrics_snapshot_time ON casebook.metrics_snapshot (tenant_id, snapshot_time, uid)
  WHERE delete_time IS NULL;
CREATE INDEX metrics_snapshot_source ON casebook.metrics_snapshot (tenant_id, source, snapshot_time, uid)
  WHERE delete_time IS NULL;
CREATE INDEX metrics_snapshot_json ON casebook.metrics_snapshot USING gin (labels jsonb_path_ops);
ALTER TABLE casebook.metrics_snapshot ALTER COLUMN labels SET STATISTICS 1000;
CALL casebook.build_wall('casebook.metrics_snapshot');
