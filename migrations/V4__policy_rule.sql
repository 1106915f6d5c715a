-- The governance rules that decisions were made under.
CREATE TABLE casebook.policy_rule (
  LIKE casebook.noun INCLUDING DEFAULTS,
  name text COLLATE "C" NOT NULL,
  rule_type text COLLATE "C" NOT NULL,
  severity text COLLATE "C" NOT NULL,
  description text NOT NULL,
  definition jsonb NOT NULL,
  active boolean NOT NULL,
  effective_time timestamptz,
  retire_time timestamptz CHECK (retire_time >= effective_time),
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX policy_rule_id ON casebook.policy_rule (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX policy_rule_time ON casebook.policy_rule (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CALL casebook.build_wall('casebook.policy_rule');
