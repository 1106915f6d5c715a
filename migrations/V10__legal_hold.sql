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
  description text NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX retention_policy_id ON casebook.retention_policy (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX retention_policy_time ON casebook.retention_policy (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CREATE UNIQUE INDEX retention_policy_class ON casebook.retention_policy (tenant_id, retention_class)
  WHERE delete_time IS NULL;
CALL casebook.build_wall('casebook.retention_policy');

-- Removes deleted rows of the tenant for good, and their content from the log, whose entries keep leaves and hashes.
-- It can remove nothing that is not deleted, and nothing that runs the deployment.
CREATE FUNCTION wall.purge(kind text, ids text[], uids uuid[]) RETURNS SETOF boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := NULLIF(pg_catalog.current_setting('casebook.tenant', true), '');
BEGIN
  IF tenant IS NULL THEN
    RAISE EXCEPTION 'no tenant is set';
  END IF;
  IF kind IN ('tenant', 'api_token', 'api_token_secret', 'legal_hold', 'retention_policy', 'log', 'log_head', 'noun') OR NOT EXISTS (
      SELECT FROM pg_catalog.pg_attribute WHERE attrelid = pg_catalog.to_regclass('casebook.' || pg_catalog.quote_ident(kind))
      AND attname = 'delete_time') THEN
    RAISE EXCEPTION 'no rows of % can be purged', kind;
  END IF;
  EXECUTE pg_catalog.format(
    'DELETE FROM casebook.%I WHERE tenant_id = $1 AND uid = ANY ($2) AND delete_time IS NOT NULL', kind)
  USING tenant, uids;
  UPDATE casebook.log AS l SET document = NULL, salt = '', context = NULL
  WHERE l.tenant_id = tenant AND l.kind = purge.kind AND l.id = ANY (ids) AND l.uid = ANY (uids);
END
$$;
REVOKE ALL ON FUNCTION wall.purge(text, text[], uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.purge(text, text[], uuid[]) TO casebook_app;
