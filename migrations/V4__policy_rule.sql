-- The governance rules that decisions were made under.
CREATE TABLE casebook.policy_rule (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  uid uuid NOT NULL,
  id text COLLATE "C" NOT NULL,
  version bigint NOT NULL,
  create_time timestamptz NOT NULL,
  update_time timestamptz NOT NULL,
  delete_time timestamptz,
  created_by text NOT NULL,
  updated_by text NOT NULL,
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
