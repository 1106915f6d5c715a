-- Tenants and the API tokens that act for them. A tenant's row belongs to the tenant "system", which administers it; a
-- token's row belongs to the tenant it acts for.
CREATE TABLE casebook.tenant (
  LIKE casebook.noun INCLUDING DEFAULTS,
  display_name text COLLATE "C" NOT NULL,
  -- TenantState: 1 active, 2 read only, 3 suspended.
  state smallint NOT NULL CHECK (state BETWEEN 1 AND 3),
  -- What a resource refers to must exist.
  strict_references boolean NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX tenant_id ON casebook.tenant (tenant_id, id) WHERE delete_time IS NULL;
CALL casebook.build_wall('casebook.tenant');

CREATE TABLE casebook.api_token (
  LIKE casebook.noun INCLUDING DEFAULTS,
  display_name text COLLATE "C" NOT NULL,
  -- Bits: 1 reader, 2 writer, 4 auditor, 8 admin.
  roles smallint NOT NULL CHECK (roles BETWEEN 1 AND 15),
  expire_time timestamptz,
  revoke_time timestamptz,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX api_token_id ON casebook.api_token (tenant_id, id) WHERE delete_time IS NULL;
CALL casebook.build_wall('casebook.api_token');

-- SHA-256 of each token's secret, apart from the token so that no read and no log entry can show it.
CREATE TABLE casebook.api_token_secret (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  uid uuid NOT NULL,
  secret_sha256 bytea NOT NULL CHECK (length(secret_sha256) = 32),
  PRIMARY KEY (tenant_id, uid),
  FOREIGN KEY (tenant_id, uid) REFERENCES casebook.api_token (tenant_id, uid)
);
-- A token is looked up by its uid alone, before its tenant is known.
CREATE UNIQUE INDEX api_token_secret_uid ON casebook.api_token_secret (uid);
CALL casebook.build_wall('casebook.api_token_secret', 'INSERT');

-- What a token is, for the check of credentials, which happens before any tenant is set.
CREATE FUNCTION wall.credential(token uuid) RETURNS TABLE (
  tenant_id text, roles smallint, secret_sha256 bytea, expire_time timestamptz, revoke_time timestamptz,
  tenant_state smallint, strict_references boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  SELECT t.tenant_id, t.roles, s.secret_sha256, t.expire_time, t.revoke_time, o.state, o.strict_references
  FROM casebook.api_token_secret s
  JOIN casebook.api_token t ON t.tenant_id = s.tenant_id AND t.uid = s.uid AND t.delete_time IS NULL
  JOIN casebook.tenant o ON o.tenant_id = 'system' AND o.id = t.tenant_id AND o.delete_time IS NULL
  WHERE s.uid = token
$$;
REVOKE ALL ON FUNCTION wall.credential(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.credential(uuid) TO casebook_app;

-- How a tenant stands, or no row; likewise before any tenant is set.
CREATE FUNCTION wall.standing(tenant text) RETURNS TABLE (state smallint, strict_references boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  SELECT o.state, o.strict_references FROM casebook.tenant o WHERE o.tenant_id = 'system' AND o.id = tenant AND o.delete_time IS NULL
$$;
REVOKE ALL ON FUNCTION wall.standing(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.standing(text) TO casebook_app;
