-- The wall between tenants, the log that every change goes into, and the request ledger.
--
-- Tables live in the schema `casebook` and belong to the role that migrates. The service's role, casebook_app, has no
-- right on them: it works through views in the schema `wall`, each of which shows one tenant's rows. The views are not
-- security barriers, so that GIN indexes stay usable; therefore no statement may hold an expression that can raise on
-- another tenant's row. Row-level security is on for every other role that is granted a table.

-- In `public`, so that dropping our schema never drops the extension with other people's columns.
CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;

-- Roles belong to the whole cluster: another database of it may have made this one, even at this moment. Looked for
-- first, because PostgreSQL asks for the right to create roles before it sees that there is nothing to create.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'casebook_app') THEN
    CREATE ROLE casebook_app NOLOGIN;
  END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

-- So that the migrating role may become casebook_app where no separate login is set up.
DO $$
BEGIN
  IF NOT pg_has_role(current_user, 'casebook_app', 'MEMBER') THEN
    EXECUTE format('GRANT casebook_app TO %I', current_user);
  END IF;
EXCEPTION WHEN insufficient_privilege OR unique_violation THEN NULL;
END
$$;

CREATE SCHEMA wall;
REVOKE ALL ON SCHEMA casebook FROM PUBLIC;
GRANT USAGE ON SCHEMA wall TO casebook_app;

-- Puts one table behind the wall. Run again after adding a column, so that the view shows it.
CREATE PROCEDURE casebook.build_wall(noun regclass, rights text DEFAULT 'SELECT, INSERT, UPDATE')
LANGUAGE plpgsql AS $$
DECLARE
  name text := (SELECT relname FROM pg_class WHERE oid = noun);
  -- Within a SELECT, so that the planner does not look the tenant up in its statistics: for a tenant without rows it
  -- would find any index that begins with tenant_id good enough, and then use that plan for a tenant with millions.
  mine text := 'tenant_id = (SELECT NULLIF(current_setting(''casebook.tenant'', true), ''''))';
BEGIN
  EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', noun);
  EXECUTE format('DROP POLICY IF EXISTS one_tenant ON %s', noun);
  EXECUTE format('CREATE POLICY one_tenant ON %s USING (%s) WITH CHECK (%s)', noun, mine, mine);
  EXECUTE format('CREATE OR REPLACE VIEW wall.%I AS SELECT * FROM %s WHERE %s WITH CASCADED CHECK OPTION',
                 name, noun, mine);
  EXECUTE format('GRANT %s ON wall.%I TO casebook_app', rights, name);
END
$$;

-- What the table of every noun begins with: `CREATE TABLE casebook.x (LIKE casebook.noun INCLUDING DEFAULTS, ...`. It
-- holds no rows itself.
CREATE TABLE casebook.noun (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  id text COLLATE "C" NOT NULL,
  uid uuid NOT NULL,
  version bigint NOT NULL,
  create_time timestamptz NOT NULL,
  update_time timestamptz NOT NULL,
  delete_time timestamptz,
  created_by text NOT NULL,
  updated_by text NOT NULL
);
ALTER TABLE casebook.noun ENABLE ROW LEVEL SECURITY;

-- What full text search finds a row by: three texts of falling weight, and the tenant, so that the index alone passes
-- over the rows of others. Whatever the texts are, it neither raises nor takes long:
--
-- A tsvector holds at most 1 MiB, to which 280,000 bytes of text cannot grow. A longer text is found by its beginning.
--
-- Out of some marks the parser makes addresses, paths, tags and compounds, in a time that grows with the square of
-- their length: minutes for a text of nothing but a_a_a_. So these marks separate words, here and in wall.search_query.
CREATE FUNCTION casebook.search_vector(tenant_id text, first text, second text, third text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
  most integer := 200000;
  mark text;
BEGIN
  WHILE octet_length(left(first, most)) + octet_length(left(second, most)) + octet_length(left(third, most / 2))
        > 280000 LOOP
    most := most * 3 / 4;
  END LOOP;
  first := left(first, most);
  second := left(second, most);
  third := left(third, most / 2);
  FOREACH mark IN ARRAY string_to_array('@_/\.<-', NULL) LOOP
    first := replace(first, mark, ' ');
    second := replace(second, mark, ' ');
    third := replace(third, mark, ' ');
  END LOOP;
  RETURN setweight(to_tsvector('pg_catalog.english'::regconfig, first), 'A')
    || setweight(to_tsvector('pg_catalog.english'::regconfig, second), 'B')
    || setweight(to_tsvector('pg_catalog.english'::regconfig, third), 'C')
    || array_to_tsvector(ARRAY['tenant:' || tenant_id]);
END
$$;

-- For the service, which makes it anew for a version that is in the log only.
CREATE FUNCTION wall.search_vector(tenant_id text, first text, second text, third text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT SECURITY DEFINER SET search_path = '' AS $$
  SELECT casebook.search_vector(tenant_id, first, second, third)
$$;
REVOKE ALL ON FUNCTION wall.search_vector(text, text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.search_vector(text, text, text, text) TO casebook_app;

-- What a person typed, as a query: words, "phrases", -not, or; also a & b and a | b. Never raises. To be used as
-- `search @@ (wall.search_query($1) && quote_literal('tenant:acme')::tsquery)`, and without the tenant for ranks.
CREATE FUNCTION wall.search_query(typed text) RETURNS tsquery
LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT websearch_to_tsquery('pg_catalog.english'::regconfig,
    regexp_replace(translate(replace(typed, '|', ' or '), '@_/\.<&', '       '), '([^[:space:]"-])-+', '\1 ', 'g'))
$$;
REVOKE ALL ON FUNCTION wall.search_query(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.search_query(text) TO casebook_app;

-- The last number of each tenant's log. Its row is locked last in a write, so that the lock is short.
CREATE TABLE casebook.log_head (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  seq bigint NOT NULL,
  PRIMARY KEY (tenant_id)
) WITH (fillfactor = 50);
CALL casebook.build_wall('casebook.log_head');

-- One row per change, append-only: the audit trail, the revisions and the change feed in one.
CREATE TABLE casebook.log (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  seq bigint NOT NULL,
  time timestamptz NOT NULL,
  kind text COLLATE "C" NOT NULL,
  uid uuid NOT NULL,
  id text COLLATE "C" NOT NULL,
  version bigint NOT NULL,
  action text COLLATE "C" NOT NULL,
  method text COLLATE "C" NOT NULL,
  principal text COLLATE "C" NOT NULL,
  actor text COLLATE "C" NOT NULL,
  ip_address text COLLATE "C" NOT NULL,
  user_agent text COLLATE "C" NOT NULL,
  request_id text COLLATE "C" NOT NULL,
  trace_id text COLLATE "C" NOT NULL,
  -- The caller's own remark on the write.
  context jsonb,
  -- The new version as canonical JSON (RFC 8785), keys named like the table's columns. Erasable.
  document bytea,
  -- Binds leaf and document: the leaf holds SHA-256(salt || document).
  salt bytea NOT NULL,
  -- The exact bytes that the audit tree will hash, and their RFC 6962 leaf hash.
  leaf bytea NOT NULL,
  leaf_hash bytea NOT NULL,
  PRIMARY KEY (tenant_id, seq, time)
) PARTITION BY RANGE (time);
CREATE INDEX log_entity ON casebook.log (tenant_id, kind, id, seq);
CREATE INDEX log_actor ON casebook.log (tenant_id, actor, seq) WHERE actor <> '';
CREATE INDEX log_time ON casebook.log USING brin (time);
-- Nothing is ever refused for want of a month's partition.
CREATE TABLE casebook.log_default PARTITION OF casebook.log DEFAULT;
CALL casebook.build_wall('casebook.log', 'SELECT, INSERT');

-- Up to which number each tenant's log is archived.
CREATE TABLE casebook.audit_archive (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  seq bigint NOT NULL,
  PRIMARY KEY (tenant_id)
);
CALL casebook.build_wall('casebook.audit_archive', 'SELECT');

-- Erases the detail of the tenant's entries after the number archived last, up to another, and notes that one; returns
-- how many entries there were, or none if the number archived last is no longer `after`. It can only erase, and nothing
-- of the last 24 hours, which answers to repeated requests are made from: whatever it is called with, the leaves stay.
--
-- A version's document goes with the version after it, so that every moment after `upto` can still be read.
CREATE FUNCTION wall.archive_log(after bigint, upto bigint) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := NULLIF(pg_catalog.current_setting('casebook.tenant', true), '');
  archived bigint;
  counted bigint;
BEGIN
  IF tenant IS NULL THEN
    RAISE EXCEPTION 'no tenant is set';
  END IF;
  INSERT INTO casebook.audit_archive AS a (tenant_id, seq) VALUES (tenant, 0)
  ON CONFLICT (tenant_id) DO UPDATE SET seq = a.seq RETURNING a.seq INTO archived;
  IF archived <> after OR upto <= after THEN
    RETURN;
  END IF;
  IF EXISTS (SELECT FROM casebook.log AS l WHERE l.tenant_id = tenant AND l.seq > after AND l.seq <= upto
             AND l.time > pg_catalog.now() - pg_catalog.make_interval(hours => 24)) THEN
    RAISE EXCEPTION 'entries of the last 24 hours cannot be archived';
  END IF;
  UPDATE casebook.log AS before SET document = NULL, salt = ''
  FROM casebook.log AS next
  WHERE next.tenant_id = tenant AND next.seq > after AND next.seq <= upto AND next.version > 1
    AND before.tenant_id = tenant AND before.kind = next.kind AND before.id = next.id AND before.uid = next.uid
    AND before.version = next.version - 1 AND before.seq < next.seq;
  UPDATE casebook.log AS l SET principal = '', actor = '', ip_address = '', user_agent = '', request_id = '',
    trace_id = '', context = NULL,
    document = CASE WHEN l.kind = 'event' THEN NULL ELSE l.document END,
    salt = CASE WHEN l.kind = 'event' THEN '' ELSE l.salt END
  -- What says where the others are stays whole.
  WHERE l.tenant_id = tenant AND l.seq > after AND l.seq <= upto AND l.kind <> 'audit_segment';
  SELECT pg_catalog.count(*) INTO counted FROM casebook.log AS l
  WHERE l.tenant_id = tenant AND l.seq > after AND l.seq <= upto;
  UPDATE casebook.audit_archive AS a SET seq = upto WHERE a.tenant_id = tenant;
  RETURN NEXT counted;
END
$$;
REVOKE ALL ON FUNCTION wall.archive_log(bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.archive_log(bigint, bigint) TO casebook_app;

-- Makes the partitions of this month and the next three. The server calls it at start and daily.
CREATE FUNCTION wall.ensure_log_partitions() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  month date;
  made integer := 0;
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('casebook.log partitions'));
  FOR month IN SELECT (pg_catalog.date_trunc('month', pg_catalog.now()) + pg_catalog.make_interval(months => n))::date
               FROM pg_catalog.generate_series(0, 3) AS n LOOP
    IF pg_catalog.to_regclass(pg_catalog.format('casebook.log_%s', pg_catalog.to_char(month, 'YYYYMM'))) IS NULL
       AND NOT EXISTS (SELECT 1 FROM casebook.log_default
                       WHERE time >= month AND time < month + pg_catalog.make_interval(months => 1)) THEN
      EXECUTE pg_catalog.format(
        'CREATE TABLE casebook.log_%s PARTITION OF casebook.log FOR VALUES FROM (%L) TO (%L)',
        pg_catalog.to_char(month, 'YYYYMM'), month, (month + pg_catalog.make_interval(months => 1))::date);
      made := made + 1;
    END IF;
  END LOOP;
  RETURN made;
END
$$;
REVOKE ALL ON FUNCTION wall.ensure_log_partitions() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.ensure_log_partitions() TO casebook_app;
SELECT wall.ensure_log_partitions();

-- Which calls were made with a request id, and which log entries answer them again.
CREATE TABLE casebook.request_ledger (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  principal text COLLATE "C" NOT NULL,
  method text COLLATE "C" NOT NULL,
  request_id text COLLATE "C" NOT NULL,
  -- SHA-256 of the canonical request.
  digest bytea NOT NULL,
  create_time timestamptz NOT NULL DEFAULT now(),
  -- The call's own entries: entry_count from first_seq on.
  first_seq bigint NOT NULL DEFAULT 0,
  entry_count integer NOT NULL DEFAULT 0,
  -- Earlier entries that the answer showed because nothing had to change.
  earlier_seqs bigint[] NOT NULL DEFAULT '{}',
  PRIMARY KEY (tenant_id, principal, method, request_id)
) WITH (fillfactor = 70);
CREATE INDEX request_ledger_time ON casebook.request_ledger USING brin (create_time);
CALL casebook.build_wall('casebook.request_ledger', 'SELECT, INSERT, UPDATE, DELETE');

-- Forgets request ids older than keep_ms, at most `most` of them; returns how many.
CREATE FUNCTION wall.expire_requests(keep_ms bigint, most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  WITH old AS (
    SELECT ctid FROM casebook.request_ledger
    WHERE create_time < pg_catalog.now() - pg_catalog.make_interval(secs => keep_ms / 1000.0) LIMIT most
  ), gone AS (
    DELETE FROM casebook.request_ledger WHERE ctid IN (SELECT ctid FROM old) RETURNING 1
  )
  SELECT pg_catalog.count(*) FROM gone
$$;
REVOKE ALL ON FUNCTION wall.expire_requests(bigint, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.expire_requests(bigint, integer) TO casebook_app;

-- Secrets that all servers of one deployment share, such as the key that signs page tokens.
CREATE TABLE casebook.deployment_secret (
  name text PRIMARY KEY,
  secret bytea NOT NULL
);

-- The secret of that name; the first caller's proposal becomes it.
CREATE FUNCTION wall.deployment_secret(wanted text, proposal bytea) RETURNS bytea
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  INSERT INTO casebook.deployment_secret AS kept (name, secret) VALUES (wanted, proposal)
  ON CONFLICT (name) DO UPDATE SET secret = kept.secret RETURNING secret
$$;
REVOKE ALL ON FUNCTION wall.deployment_secret(text, bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.deployment_secret(text, bytea) TO casebook_app;

-- The number of the newest migration applied.
CREATE FUNCTION wall.schema_version() RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  SELECT COALESCE(pg_catalog.max(version), 0)::integer FROM casebook.refinery_schema_history
$$;
REVOKE ALL ON FUNCTION wall.schema_version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wall.schema_version() TO casebook_app;
