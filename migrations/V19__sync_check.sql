-- When the vectors of each tenant were last held against the record by a server of its own accord, and what it found.
CREATE TABLE casebook.sync_check (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  projection text COLLATE "C" NOT NULL,
  -- Until when a server is at it.
  lease_time timestamptz NOT NULL,
  -- When it ended last; NULL until it did.
  check_time timestamptz,
  checked bigint NOT NULL DEFAULT 0,
  missing bigint NOT NULL DEFAULT 0,
  extra bigint NOT NULL DEFAULT 0,
  different bigint NOT NULL DEFAULT 0,
  in_sync boolean NOT NULL DEFAULT false,
  PRIMARY KEY (tenant_id, projection)
);
CALL casebook.build_wall('casebook.sync_check', 'SELECT');

-- Takes tenants with vectors that were not looked at for period_ms, for lease_ms. Servers that ask at once get different
-- ones: whoever comes second to a row finds it taken.
CREATE FUNCTION wall.claim_sync_checks(projection text, most integer, period_ms bigint, lease_ms bigint)
RETURNS TABLE (tenant_id text)
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  WITH due AS (
    SELECT s.tenant_id FROM (SELECT DISTINCT v.tenant_id FROM casebook.vector_space AS v WHERE v.delete_time IS NULL) AS s
    LEFT JOIN casebook.sync_check AS c ON c.tenant_id = s.tenant_id AND c.projection = claim_sync_checks.projection
    WHERE c.tenant_id IS NULL OR c.lease_time <= pg_catalog.now() AND (c.check_time IS NULL
      OR c.check_time <= pg_catalog.now() - pg_catalog.make_interval(secs => period_ms / 1000.0))
    ORDER BY c.check_time NULLS FIRST, s.tenant_id LIMIT most
  )
  INSERT INTO casebook.sync_check AS c (tenant_id, projection, lease_time)
  SELECT d.tenant_id, claim_sync_checks.projection, pg_catalog.now() + pg_catalog.make_interval(secs => lease_ms / 1000.0)
  FROM due AS d
  ON CONFLICT ON CONSTRAINT sync_check_pkey DO UPDATE SET lease_time = EXCLUDED.lease_time
    WHERE c.lease_time <= pg_catalog.now()
  RETURNING c.tenant_id
$$;

-- Notes what was found in a tenant.
CREATE FUNCTION wall.note_sync_check(tenant text, projection text, checked bigint, missing bigint, extra bigint, different bigint,
  in_sync boolean) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  UPDATE casebook.sync_check AS c
  SET lease_time = pg_catalog.now(), check_time = pg_catalog.now(), checked = note_sync_check.checked,
    missing = note_sync_check.missing, extra = note_sync_check.extra, different = note_sync_check.different,
    in_sync = note_sync_check.in_sync
  WHERE c.tenant_id = tenant AND c.projection = note_sync_check.projection
$$;

REVOKE ALL ON FUNCTION wall.claim_sync_checks(text, integer, bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.claim_sync_checks(text, integer, bigint, bigint) TO casebook_app;
REVOKE ALL ON FUNCTION wall.note_sync_check(text, text, bigint, bigint, bigint, bigint, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.note_sync_check(text, text, bigint, bigint, bigint, bigint, boolean) TO casebook_app;
