-- Indexes of vector spaces, and the operations that build them.
--
-- A vector is recorded in casebook.embedding_vector and nowhere else. An index is a table of its own, of codes made from
-- the vectors of one space, which can be thrown away and made again at any time: `sealed`, as long as only the functions
-- below write there. So its building locks nobody out, no tenant shares one, and a small space pays nothing for it.
-- What is not in it yet is listed in casebook.embedding_delta, and looked at one by one. Whether a code still counts is
-- told by its embedding, so that no write ever touches the index.

-- What index a space should have. NULL in spaces from before.
ALTER TABLE casebook.vector_space
  ADD COLUMN index_method smallint CHECK (index_method BETWEEN 1 AND 3),
  ADD COLUMN index_codes smallint CHECK (index_codes BETWEEN 1 AND 3),
  ADD COLUMN index_m integer,
  ADD COLUMN index_ef_construction integer,
  ADD COLUMN index_lists integer,
  ADD COLUMN index_mode smallint CHECK (index_mode BETWEEN 1 AND 2);
CALL casebook.build_wall('casebook.vector_space');

-- For what comes back with its embeddings.
CREATE INDEX embedding_of_deleted ON casebook.embedding (tenant_id, of_kind, of_id) WHERE delete_time IS NOT NULL;

-- Work that goes on after its call was answered.
CREATE TABLE casebook.operation (
  LIKE casebook.noun INCLUDING DEFAULTS,
  action text COLLATE "C" NOT NULL,
  space_uid uuid NOT NULL,
  space_id text COLLATE "C" NOT NULL,
  -- 1 pending, 2 running, 3 done, 4 failed, 5 cancelled.
  state smallint NOT NULL CHECK (state BETWEEN 1 AND 5),
  start_time timestamptz,
  end_time timestamptz,
  error text NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX operation_id ON casebook.operation (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX operation_time ON casebook.operation (tenant_id, create_time, uid) WHERE delete_time IS NULL;
-- One at a time for each space.
CREATE UNIQUE INDEX operation_active ON casebook.operation (tenant_id, space_uid)
  WHERE delete_time IS NULL AND state IN (1, 2);
CREATE INDEX operation_open ON casebook.operation (state) WHERE delete_time IS NULL AND state IN (1, 2);
CALL casebook.build_wall('casebook.operation');

-- The indexes there are. While one is made anew there are two of a space.
CREATE TABLE casebook.vector_index (
  tenant_id text COLLATE "C" NOT NULL,
  -- That of the operation that made it.
  uid uuid NOT NULL,
  -- Names its table: casebook.sealed_<number>.
  number bigint GENERATED ALWAYS AS IDENTITY,
  space_uid uuid NOT NULL,
  -- 1 HNSW, 2 IVFFLAT.
  method smallint NOT NULL,
  -- 1 FLOAT32, 2 FLOAT16, 3 BINARY.
  codes smallint NOT NULL,
  m integer NOT NULL,
  ef_construction integer NOT NULL,
  lists integer NOT NULL,
  -- 1 filling, 2 filled, 3 ready; not to be searched: 4 suspect, to be made anew, and 5 unsuited, which from the
  -- beginning found too little.
  state smallint NOT NULL CHECK (state BETWEEN 1 AND 5),
  -- Where filling has come to: the embedding's create_time and uid.
  filled_time timestamptz NOT NULL DEFAULT '-infinity',
  filled_uid uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
  filled bigint NOT NULL DEFAULT 0,
  total bigint NOT NULL DEFAULT 0,
  create_time timestamptz NOT NULL DEFAULT now(),
  ready_time timestamptz,
  -- When its recall was looked at last, and what it was.
  probe_time timestamptz,
  probe_recall double precision,
  PRIMARY KEY (tenant_id, uid),
  FOREIGN KEY (tenant_id, space_uid) REFERENCES casebook.vector_space (tenant_id, uid)
);
CREATE INDEX vector_index_space ON casebook.vector_index (tenant_id, space_uid);
CALL casebook.build_wall('casebook.vector_index', 'SELECT');

-- Vectors that an index does not have yet.
CREATE TABLE casebook.embedding_delta (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  index_uid uuid NOT NULL,
  embedding_uid uuid NOT NULL,
  digest text COLLATE "C" NOT NULL,
  PRIMARY KEY (tenant_id, index_uid, embedding_uid, digest),
  FOREIGN KEY (tenant_id, embedding_uid) REFERENCES casebook.embedding (tenant_id, uid) ON DELETE CASCADE
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
-- UPDATE, because a row that is listed again is locked by that, so that nobody seals it meanwhile.
CALL casebook.build_wall('casebook.embedding_delta', 'SELECT, INSERT, UPDATE');

-- Embeddings that were purged while an index was being built over their codes, whose table is locked meanwhile. They go
-- from it before it is searched.
CREATE TABLE casebook.vector_removal (
  tenant_id text COLLATE "C" NOT NULL,
  index_uid uuid NOT NULL,
  embedding_uid uuid NOT NULL,
  PRIMARY KEY (tenant_id, index_uid, embedding_uid),
  FOREIGN KEY (tenant_id, index_uid) REFERENCES casebook.vector_index (tenant_id, uid) ON DELETE CASCADE
);
CALL casebook.build_wall('casebook.vector_removal', 'SELECT');

CREATE FUNCTION casebook.current_tenant() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
  tenant text := NULLIF(pg_catalog.current_setting('casebook.tenant', true), '');
BEGIN
  IF tenant IS NULL THEN
    RAISE EXCEPTION 'no tenant is set';
  END IF;
  RETURN tenant;
END
$$;

-- Keeps servers from working at one index at once, until the transaction ends.
CREATE FUNCTION casebook.claim_vector_index(index_uid uuid) RETURNS boolean
LANGUAGE sql SET search_path = '' AS $$
  SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('casebook.vector_index ' || index_uid::text, 0))
$$;

-- The SQL for a vector's code, from `x`, a row of casebook.embedding_vector; the type of the column; and whether a vector
-- has a code that says enough of it. What has none stays listed.
CREATE FUNCTION casebook.vector_code(codes smallint, storage smallint, metric smallint, dimensions integer, OUT code text,
                                     OUT type text, OUT fits text)
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
  SELECT CASE WHEN codes = 2 AND storage = 1 AND metric = 1
              -- Only the direction counts, and half of the digits would lose that of a short vector.
              THEN pg_catalog.format('public.l2_normalize(x.vector)::%s', type)
              WHEN codes = 3 THEN pg_catalog.format('public.binary_quantize(x.%s)::bit(%s)', col, dimensions)
              ELSE pg_catalog.format('x.%s::%s', col, type) END, type,
         CASE WHEN codes = 2 AND storage = 1 AND metric <> 1
              THEN 'public.vector_norm(x.vector) BETWEEN 0.01 AND 65504' ELSE 'true' END
  FROM (SELECT CASE storage WHEN 2 THEN 'half' ELSE 'vector' END AS col,
               pg_catalog.format(CASE codes WHEN 1 THEN 'public.vector(%s)' WHEN 2 THEN 'public.halfvec(%s)' ELSE 'bit(%s)' END,
                                 dimensions) AS type) AS t
$$;

-- Opens an index: its table, empty. From here on every write to the space lists its vectors in casebook.embedding_delta,
-- which the lock on the space makes certain: writers hold it for themselves. False if the space is gone, NULL if another
-- server is at it.
CREATE FUNCTION wall.open_vector_index(uid uuid, space uuid, method smallint, codes smallint, m integer,
                                       ef_construction integer, lists integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := casebook.current_tenant();
  dimensions integer;
  storage smallint;
  name text;
  total bigint;
BEGIN
  IF NOT casebook.claim_vector_index(uid) THEN
    RETURN NULL;
  END IF;
  IF EXISTS (SELECT FROM casebook.vector_index AS i WHERE i.tenant_id = tenant AND i.uid = open_vector_index.uid) THEN
    RETURN true;
  END IF;
  -- Before the lock, which makes writers wait.
  total := (SELECT pg_catalog.count(*) FROM casebook.embedding AS d
            WHERE d.tenant_id = tenant AND d.space_uid = space AND d.delete_time IS NULL);
  SELECT s.dimensions, s.storage INTO dimensions, storage FROM casebook.vector_space AS s
  WHERE s.tenant_id = tenant AND s.uid = space AND s.delete_time IS NULL FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  INSERT INTO casebook.vector_index AS i (tenant_id, uid, space_uid, method, codes, m, ef_construction, lists, state, total)
  VALUES (tenant, open_vector_index.uid, space, method, codes, m, ef_construction, lists, 1, total)
  RETURNING 'sealed_' || i.number INTO name;
  -- `slice` is spread evenly from 0 to 65535, so that `slice < n` is a sample.
  EXECUTE pg_catalog.format(
    'CREATE TABLE casebook.%I (embedding_uid uuid NOT NULL, digest text COLLATE "C" NOT NULL, slice integer NOT NULL, '
    'code %s NOT NULL, PRIMARY KEY (embedding_uid, digest)) WITH (toast_tuple_target = 8160)',
    name, (casebook.vector_code(codes, storage, 1::smallint, dimensions)).type);
  IF codes < 3 THEN
    EXECUTE pg_catalog.format('ALTER TABLE casebook.%I ALTER COLUMN code SET STORAGE EXTERNAL', name);
  END IF;
  EXECUTE pg_catalog.format('CREATE INDEX %I ON casebook.%I (slice) WHERE slice < 4096', name || '_slice', name);
  EXECUTE pg_catalog.format('ALTER TABLE casebook.%I ENABLE ROW LEVEL SECURITY', name);
  EXECUTE pg_catalog.format(
    'CREATE POLICY one_tenant ON casebook.%I USING (%L = (SELECT NULLIF(pg_catalog.current_setting(''casebook.tenant'', true), '''')))',
    name, tenant);
  EXECUTE pg_catalog.format(
    'CREATE VIEW wall.%I AS SELECT embedding_uid, digest, slice, code FROM casebook.%I '
    'WHERE %L = (SELECT NULLIF(pg_catalog.current_setting(''casebook.tenant'', true), ''''))', name, name, tenant);
  EXECUTE pg_catalog.format('GRANT SELECT ON wall.%I TO casebook_app', name);
  RETURN true;
END
$$;

-- Puts the next vectors into an index that is being filled, at most `most`. Says whether there are more, NULL if another
-- server is at it. What has no code, because a number is too large for one, stays listed.
CREATE FUNCTION wall.fill_vector_index(uid uuid, most integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := casebook.current_tenant();
  i casebook.vector_index;
  s casebook.vector_space;
  seen bigint;
  last_time timestamptz;
  last_uid uuid;
BEGIN
  IF NOT casebook.claim_vector_index(uid) THEN
    RETURN NULL;
  END IF;
  SELECT * INTO i FROM casebook.vector_index AS v WHERE v.tenant_id = tenant AND v.uid = fill_vector_index.uid;
  IF NOT FOUND OR i.state <> 1 THEN
    RETURN false;
  END IF;
  SELECT * INTO s FROM casebook.vector_space AS v WHERE v.tenant_id = tenant AND v.uid = i.space_uid;
  EXECUTE pg_catalog.format(
    'WITH next AS MATERIALIZED (SELECT d.uid, d.create_time, d.vector_digest FROM casebook.embedding AS d '
    'WHERE d.tenant_id = $1 AND d.space_uid = $2 AND d.delete_time IS NULL AND (d.create_time, d.uid) > ($3, $4) '
    -- So that none is purged meanwhile.
    'ORDER BY d.create_time, d.uid LIMIT $5 FOR KEY SHARE), '
    'coded AS (SELECT x.*, %2$s AS fits FROM next AS n JOIN casebook.embedding_vector AS x '
    'ON x.tenant_id = $1 AND x.embedding_uid = n.uid AND x.digest = n.vector_digest), '
    'put AS (INSERT INTO casebook.%1$I (embedding_uid, digest, slice, code) '
    'SELECT x.embedding_uid, x.digest, (''x'' || pg_catalog.left(x.digest, 4))::bit(16)::integer, %3$s FROM coded AS x WHERE x.fits '
    'ON CONFLICT DO NOTHING), '
    'left_out AS (INSERT INTO casebook.embedding_delta (tenant_id, index_uid, embedding_uid, digest) '
    'SELECT $1, $6, x.embedding_uid, x.digest FROM coded AS x WHERE NOT x.fits ON CONFLICT DO NOTHING) '
    'SELECT pg_catalog.count(*), (pg_catalog.array_agg(create_time ORDER BY create_time DESC, uid DESC))[1], '
    '(pg_catalog.array_agg(uid ORDER BY create_time DESC, uid DESC))[1] FROM next',
    'sealed_' || i.number,
    (casebook.vector_code(i.codes, s.storage, s.metric, s.dimensions)).fits,
    (casebook.vector_code(i.codes, s.storage, s.metric, s.dimensions)).code)
  INTO seen, last_time, last_uid
  USING tenant, i.space_uid, i.filled_time, i.filled_uid, most, i.uid;
  UPDATE casebook.vector_index AS v
  SET filled = v.filled + seen, filled_time = COALESCE(last_time, v.filled_time), filled_uid = COALESCE(last_uid, v.filled_uid),
      state = CASE WHEN seen < most THEN 2 ELSE 1 END
  WHERE v.tenant_id = tenant AND v.uid = fill_vector_index.uid;
  RETURN seen = most;
END
$$;

-- Builds the index over the codes. True when it stands, NULL if another server is at it.
CREATE FUNCTION wall.build_vector_index(uid uuid, memory_kb integer, workers integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := casebook.current_tenant();
  i casebook.vector_index;
  s casebook.vector_space;
  name text;
BEGIN
  IF NOT casebook.claim_vector_index(uid) THEN
    RETURN NULL;
  END IF;
  SELECT * INTO i FROM casebook.vector_index AS v WHERE v.tenant_id = tenant AND v.uid = build_vector_index.uid;
  IF NOT FOUND OR i.state = 1 THEN
    RETURN false;
  END IF;
  SELECT * INTO s FROM casebook.vector_space AS v WHERE v.tenant_id = tenant AND v.uid = i.space_uid;
  name := 'sealed_' || i.number;
  PERFORM pg_catalog.set_config('maintenance_work_mem', memory_kb || 'kB', true),
    pg_catalog.set_config('max_parallel_maintenance_workers', workers::text, true);
  -- PostgreSQL gives no workers to a table that it thinks small.
  EXECUTE pg_catalog.format('ALTER TABLE casebook.%I SET (parallel_workers = %s)', name, workers);
  EXECUTE pg_catalog.format('CREATE INDEX IF NOT EXISTS %I ON casebook.%I USING %s (code public.%s_ops) WITH (%s)',
    name || '_code', name, CASE i.method WHEN 1 THEN 'hnsw' ELSE 'ivfflat' END,
    CASE i.codes WHEN 1 THEN 'vector_' WHEN 2 THEN 'halfvec_' ELSE 'bit_hamming' END
    || CASE WHEN i.codes = 3 THEN '' ELSE (ARRAY['cosine', 'l2', 'ip', 'l1'])[s.metric] END,
    CASE i.method WHEN 1 THEN pg_catalog.format('m = %s, ef_construction = %s', i.m, i.ef_construction)
                  ELSE pg_catalog.format('lists = %s', i.lists) END);
  EXECUTE pg_catalog.format('ANALYZE casebook.%I (embedding_uid, slice)', name);
  RETURN true;
END
$$;

-- Removes an index with its table and its list. Searches that go on hold it up; rather than to hold up those behind them,
-- it fails after a moment and is tried again.
CREATE FUNCTION casebook.remove_vector_index(tenant text, index_uid uuid, unfinished_only boolean) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
  name text;
BEGIN
  PERFORM pg_catalog.set_config('lock_timeout', '500ms', true);
  DELETE FROM casebook.vector_index AS i
  WHERE i.tenant_id = tenant AND i.uid = index_uid AND (i.state IN (1, 2) OR NOT unfinished_only)
  RETURNING 'sealed_' || i.number INTO name;
  IF FOUND THEN
    EXECUTE pg_catalog.format('DROP VIEW IF EXISTS wall.%I', name);
    EXECUTE pg_catalog.format('DROP TABLE IF EXISTS casebook.%I', name);
    DELETE FROM casebook.embedding_delta AS u WHERE u.tenant_id = tenant AND u.index_uid = remove_vector_index.index_uid;
  END IF;
END
$$;

-- Makes a built index the one to be searched, and removes those that it takes the place of, in one step. False if it is
-- not built; NULL if another server is at it.
CREATE FUNCTION wall.use_vector_index(uid uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := casebook.current_tenant();
  i casebook.vector_index;
BEGIN
  IF NOT casebook.claim_vector_index(uid) THEN
    RETURN NULL;
  END IF;
  SELECT * INTO i FROM casebook.vector_index AS v WHERE v.tenant_id = tenant AND v.uid = use_vector_index.uid;
  IF NOT FOUND OR NOT EXISTS (
      SELECT FROM pg_catalog.pg_index AS x WHERE x.indisvalid
      AND x.indexrelid = pg_catalog.to_regclass('casebook.sealed_' || i.number || '_code')) THEN
    RETURN false;
  END IF;
  -- Whoever cancels it holds the operation first.
  PERFORM FROM casebook.operation AS o WHERE o.tenant_id = tenant AND o.uid = i.uid AND o.state IN (1, 2) FOR SHARE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  -- This waits for every purge that found it being built.
  UPDATE casebook.vector_index AS v SET state = 3, ready_time = pg_catalog.now()
  WHERE v.tenant_id = tenant AND v.uid = i.uid AND v.state = 2;
  EXECUTE pg_catalog.format(
    'DELETE FROM casebook.%I AS c USING casebook.vector_removal AS r '
    'WHERE r.tenant_id = $1 AND r.index_uid = $2 AND c.embedding_uid = r.embedding_uid', 'sealed_' || i.number)
  USING tenant, i.uid;
  DELETE FROM casebook.vector_removal AS r WHERE r.tenant_id = tenant AND r.index_uid = i.uid;
  PERFORM casebook.remove_vector_index(tenant, v.uid, false) FROM casebook.vector_index AS v
  WHERE v.tenant_id = tenant AND v.space_uid = i.space_uid AND v.uid <> i.uid;
  RETURN true;
END
$$;

-- Removes the indexes of a space, or of them only the one that is named, if it was never ready.
CREATE FUNCTION wall.drop_vector_indexes(space uuid, only_uid uuid) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := casebook.current_tenant();
  gone integer := 0;
  found_uid uuid;
BEGIN
  FOR found_uid IN SELECT v.uid FROM casebook.vector_index AS v
                   WHERE v.tenant_id = tenant AND v.space_uid = space AND v.uid = COALESCE(only_uid, v.uid) LOOP
    PERFORM casebook.remove_vector_index(tenant, found_uid, only_uid IS NOT NULL);
    gone := gone + 1;
  END LOOP;
  RETURN gone;
END
$$;

-- OFFSET 0, here and below, makes looking an embedding up a probe of the primary key: where statistics lag behind, another
-- index seems as good, and is gone through for each.
--
-- Puts vectors that are listed into their index, at most `most`; says how many left the list, NULL if another server is
-- at it.
CREATE FUNCTION wall.seal_vectors(uid uuid, most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := casebook.current_tenant();
  i casebook.vector_index;
  s casebook.vector_space;
  sealed bigint;
BEGIN
  IF NOT casebook.claim_vector_index(uid) THEN
    RETURN NULL;
  END IF;
  SELECT * INTO i FROM casebook.vector_index AS v WHERE v.tenant_id = tenant AND v.uid = seal_vectors.uid;
  IF NOT FOUND OR i.state = 1 THEN
    RETURN 0;
  END IF;
  SELECT * INTO s FROM casebook.vector_space AS v WHERE v.tenant_id = tenant AND v.uid = i.space_uid;
  EXECUTE pg_catalog.format(
    'WITH next AS MATERIALIZED (SELECT u.ctid AS place, x.* FROM casebook.embedding_delta AS u '
    'JOIN casebook.embedding_vector AS x ON x.tenant_id = $1 AND x.embedding_uid = u.embedding_uid AND x.digest = u.digest '
    'WHERE u.tenant_id = $1 AND u.index_uid = $2 AND %2$s LIMIT $3 FOR UPDATE OF u SKIP LOCKED), '
    'taken AS (DELETE FROM casebook.embedding_delta AS u USING next AS n WHERE u.ctid = n.place RETURNING 1), '
    'put AS (INSERT INTO casebook.%1$I (embedding_uid, digest, slice, code) '
    'SELECT x.embedding_uid, x.digest, (''x'' || pg_catalog.left(x.digest, 4))::bit(16)::integer, %3$s FROM next AS x '
    'CROSS JOIN LATERAL (SELECT * FROM casebook.embedding AS e WHERE e.tenant_id = $1 AND e.uid = x.embedding_uid OFFSET 0) AS d '
    'WHERE d.vector_digest = x.digest AND d.delete_time IS NULL ON CONFLICT DO NOTHING) '
    'SELECT pg_catalog.count(*) FROM taken',
    'sealed_' || i.number,
    (casebook.vector_code(i.codes, s.storage, s.metric, s.dimensions)).fits,
    (casebook.vector_code(i.codes, s.storage, s.metric, s.dimensions)).code)
  INTO sealed USING tenant, i.uid, most;
  RETURN sealed;
END
$$;

-- Removes codes that no longer count, those of embeddings that were deleted or have another vector now: of the next `most`
-- codes behind a key. Says how many, and the key of the last one; NULL at the end, or if another server is at it.
CREATE FUNCTION wall.sweep_vector_index(uid uuid, after_uid uuid, after_digest text, most integer)
  RETURNS TABLE (swept bigint, last_uid uuid, last_digest text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := casebook.current_tenant();
  i casebook.vector_index;
BEGIN
  swept := 0;
  IF NOT casebook.claim_vector_index(uid) THEN
    RETURN NEXT;
    RETURN;
  END IF;
  SELECT * INTO i FROM casebook.vector_index AS v WHERE v.tenant_id = tenant AND v.uid = sweep_vector_index.uid;
  IF NOT FOUND THEN
    RETURN NEXT;
    RETURN;
  END IF;
  -- An embedding may come to count again while this looks; whoever makes it so lists it again.
  EXECUTE pg_catalog.format(
    'WITH next AS MATERIALIZED (SELECT c.embedding_uid, c.digest FROM casebook.%1$I AS c '
    'WHERE (c.embedding_uid, c.digest) > ($2, $3) ORDER BY c.embedding_uid, c.digest LIMIT $4), '
    'swept AS (DELETE FROM casebook.%1$I AS c USING next AS n '
    'WHERE c.embedding_uid = n.embedding_uid AND c.digest = n.digest AND NOT EXISTS ('
    'SELECT FROM (SELECT * FROM casebook.embedding AS e WHERE e.tenant_id = $1 AND e.uid = n.embedding_uid OFFSET 0) AS d '
    'WHERE d.vector_digest = n.digest AND d.delete_time IS NULL) RETURNING 1), '
    'last AS (SELECT embedding_uid, digest FROM next ORDER BY embedding_uid DESC, digest DESC LIMIT 1) '
    'SELECT (SELECT pg_catalog.count(*) FROM swept), l.embedding_uid, l.digest FROM (SELECT) AS one '
    'LEFT JOIN last AS l ON (SELECT pg_catalog.count(*) FROM next) = $4', 'sealed_' || i.number)
  INTO swept, last_uid, last_digest USING tenant, after_uid, after_digest, most;
  RETURN NEXT;
END
$$;

-- Removes from an index's list what no longer counts, at most `most`: sealing passes over what has no code. Says how
-- many, NULL if another server is at it.
CREATE FUNCTION wall.sweep_vector_list(uid uuid, most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  tenant text := casebook.current_tenant();
  swept bigint;
BEGIN
  IF NOT casebook.claim_vector_index(uid) THEN
    RETURN NULL;
  END IF;
  -- As in sealing, what is being listed again is passed over.
  WITH dead AS MATERIALIZED (
    SELECT u.ctid AS place FROM casebook.embedding_delta AS u
    WHERE u.tenant_id = tenant AND u.index_uid = sweep_vector_list.uid AND NOT EXISTS (
      SELECT FROM (SELECT * FROM casebook.embedding AS e WHERE e.tenant_id = tenant AND e.uid = u.embedding_uid OFFSET 0) AS d
      WHERE d.vector_digest = u.digest AND d.delete_time IS NULL)
    LIMIT most FOR UPDATE OF u SKIP LOCKED)
  DELETE FROM casebook.embedding_delta AS u USING dead AS n WHERE u.ctid = n.place;
  GET DIAGNOSTICS swept = ROW_COUNT;
  RETURN swept;
END
$$;

-- Removes lists of indexes that are gone, of all tenants, at most `most` rows: a write that had seen one listed its
-- vectors after it was removed.
CREATE FUNCTION wall.sweep_gone_lists(most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  swept bigint;
BEGIN
  -- From list to list by the primary key, however long they are.
  WITH RECURSIVE lists AS (
    (SELECT u.tenant_id, u.index_uid FROM casebook.embedding_delta AS u ORDER BY u.tenant_id, u.index_uid LIMIT 1)
    UNION ALL
    SELECT n.tenant_id, n.index_uid FROM lists AS l CROSS JOIN LATERAL (
      SELECT u.tenant_id, u.index_uid FROM casebook.embedding_delta AS u
      WHERE (u.tenant_id, u.index_uid) > (l.tenant_id, l.index_uid) ORDER BY u.tenant_id, u.index_uid LIMIT 1) AS n),
  gone AS MATERIALIZED (
    SELECT g.place FROM lists AS l CROSS JOIN LATERAL (
      SELECT u.ctid AS place FROM casebook.embedding_delta AS u
      WHERE u.tenant_id = l.tenant_id AND u.index_uid = l.index_uid LIMIT most) AS g
    WHERE NOT EXISTS (SELECT FROM casebook.vector_index AS i WHERE i.tenant_id = l.tenant_id AND i.uid = l.index_uid)
    LIMIT most),
  free AS (
    -- Whoever else sweeps has the others.
    SELECT u.ctid AS place FROM casebook.embedding_delta AS u WHERE u.ctid = ANY(ARRAY(SELECT g.place FROM gone AS g))
    FOR UPDATE SKIP LOCKED)
  DELETE FROM casebook.embedding_delta AS u USING free AS f WHERE u.ctid = f.place;
  GET DIAGNOSTICS swept = ROW_COUNT;
  RETURN swept;
END
$$;

-- What is purged goes from the indexes, too. While one is being built, it is only noted: nobody searches it yet.
CREATE FUNCTION casebook.purge_from_vector_indexes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
  i record;
BEGIN
  -- Held until this is committed, so that building does not begin, nor the index come into use, before either is seen.
  FOR i IN SELECT v.tenant_id, v.uid, v.number, v.state FROM casebook.vector_index AS v
           WHERE EXISTS (SELECT FROM gone AS g WHERE g.tenant_id = v.tenant_id AND g.space_uid = v.space_uid)
           ORDER BY v.uid FOR SHARE OF v LOOP
    IF i.state = 2 THEN
      INSERT INTO casebook.vector_removal (tenant_id, index_uid, embedding_uid)
      SELECT i.tenant_id, i.uid, g.uid FROM gone AS g WHERE g.tenant_id = i.tenant_id ON CONFLICT DO NOTHING;
    ELSE
      EXECUTE pg_catalog.format('DELETE FROM casebook.%I AS c USING gone AS g WHERE c.embedding_uid = g.uid',
                                'sealed_' || i.number);
    END IF;
  END LOOP;
  RETURN NULL;
END
$$;
CREATE TRIGGER purge_from_vector_indexes AFTER DELETE ON casebook.embedding
  REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION casebook.purge_from_vector_indexes();

-- Notes what a look at an index found; one that is not to be trusted is not searched until it was made anew.
CREATE FUNCTION wall.note_vector_probe(uid uuid, recall double precision, state smallint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
  UPDATE casebook.vector_index AS v
  SET probe_time = pg_catalog.now(), probe_recall = recall, state = note_vector_probe.state
  WHERE v.tenant_id = casebook.current_tenant() AND v.uid = note_vector_probe.uid AND v.state = 3
    AND note_vector_probe.state BETWEEN 3 AND 5
$$;

-- All indexes of all tenants: what to search by, and what is left to do.
CREATE FUNCTION wall.vector_indexes() RETURNS TABLE (tenant_id text, uid uuid, number bigint, space_uid uuid,
  method smallint, codes smallint, state smallint, rows bigint, fresh bigint, is_valid boolean, is_space_live boolean,
  probe_time timestamptz, probe_recall double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  SELECT i.tenant_id, i.uid, i.number, i.space_uid, i.method, i.codes, i.state,
    GREATEST(c.reltuples, 0)::bigint,
    (SELECT pg_catalog.count(*) FROM (SELECT FROM casebook.embedding_delta AS u
       WHERE u.tenant_id = i.tenant_id AND u.index_uid = i.uid LIMIT 10000) AS listed),
    EXISTS (SELECT FROM pg_catalog.pg_index AS x JOIN pg_catalog.pg_class AS n ON n.oid = x.indexrelid
            WHERE x.indrelid = c.oid AND x.indisvalid AND n.relname = c.relname || '_code'),
    EXISTS (SELECT FROM casebook.vector_space AS s
            WHERE s.tenant_id = i.tenant_id AND s.uid = i.space_uid AND s.delete_time IS NULL),
    i.probe_time, i.probe_recall
  FROM casebook.vector_index AS i
  LEFT JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass('casebook.sealed_' || i.number)
$$;

-- Operations that are not over, of all tenants, and spaces that want an index of their own accord or have lost theirs.
CREATE FUNCTION wall.open_operations() RETURNS TABLE (tenant_id text, id text, action text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  SELECT o.tenant_id, o.id, o.action FROM casebook.operation AS o WHERE o.delete_time IS NULL AND o.state IN (1, 2)
  ORDER BY o.create_time, o.uid
$$;

CREATE FUNCTION wall.wanting_spaces(rows_min bigint) RETURNS TABLE (tenant_id text, id text, is_lost boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  SELECT s.tenant_id, s.id, COALESCE(s.index_method IN (1, 2), false) FROM casebook.vector_space AS s
  -- The lists of IVFFLAT are made around embeddings that are there.
  CROSS JOIN LATERAL (SELECT CASE WHEN s.index_method = 2 THEN 1000 ELSE rows_min END AS rows) AS least_of
  WHERE s.delete_time IS NULL AND (s.index_method IN (1, 2) OR s.index_mode = 2 AND s.index_method IS NULL)
    AND NOT EXISTS (SELECT FROM casebook.vector_index AS i
                    WHERE i.tenant_id = s.tenant_id AND i.space_uid = s.uid AND i.state <> 4)
    AND NOT EXISTS (SELECT FROM casebook.operation AS o WHERE o.tenant_id = s.tenant_id AND o.space_uid = s.uid
                    AND o.delete_time IS NULL AND (o.state IN (1, 2) OR o.state = 4 AND o.end_time > pg_catalog.now() - interval '1 hour'))
    AND (s.index_method = 1
         OR EXISTS (SELECT FROM casebook.vector_index AS i WHERE i.tenant_id = s.tenant_id AND i.space_uid = s.uid)
         OR (SELECT pg_catalog.count(*) FROM (SELECT FROM casebook.embedding AS d
         WHERE d.tenant_id = s.tenant_id AND d.space_uid = s.uid AND d.delete_time IS NULL LIMIT least_of.rows) AS counted)
         >= least_of.rows)
$$;

-- How large a space is and how far its indexes are.
CREATE FUNCTION wall.vector_space_stats(space uuid) RETURNS TABLE (uid uuid, method smallint, codes smallint, m integer,
  ef_construction integer, lists integer, state smallint, filled bigint, total bigint, fresh bigint, table_bytes bigint,
  index_bytes bigint, build_done bigint, build_total bigint, build_phase text, ready_time timestamptz,
  probe_time timestamptz, probe_recall double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
  SELECT i.uid, i.method, i.codes, i.m, i.ef_construction, i.lists, i.state, i.filled, i.total,
    (SELECT pg_catalog.count(*) FROM (SELECT FROM casebook.embedding_delta AS u
       WHERE u.tenant_id = i.tenant_id AND u.index_uid = i.uid LIMIT 1000000) AS listed),
    COALESCE(pg_catalog.pg_table_size(t.oid), 0), COALESCE(pg_catalog.pg_relation_size(
      pg_catalog.to_regclass('casebook.sealed_' || i.number || '_code')), 0),
    COALESCE(GREATEST(p.tuples_done, p.blocks_done), 0), COALESCE(GREATEST(p.tuples_total, p.blocks_total), 0),
    COALESCE(p.phase, ''), i.ready_time, i.probe_time, i.probe_recall
  FROM casebook.vector_index AS i
  LEFT JOIN pg_catalog.pg_class AS t ON t.oid = pg_catalog.to_regclass('casebook.sealed_' || i.number)
  LEFT JOIN pg_catalog.pg_stat_progress_create_index AS p ON p.relid = t.oid
  WHERE i.tenant_id = casebook.current_tenant() AND i.space_uid = space
  ORDER BY i.create_time
$$;

DO $$
DECLARE
  f text;
BEGIN
  FOREACH f IN ARRAY ARRAY['open_vector_index(uuid, uuid, smallint, smallint, integer, integer, integer)',
      'fill_vector_index(uuid, integer)', 'build_vector_index(uuid, integer, integer)', 'use_vector_index(uuid)',
      'drop_vector_indexes(uuid, uuid)', 'seal_vectors(uuid, integer)', 'sweep_vector_index(uuid, uuid, text, integer)',
      'sweep_vector_list(uuid, integer)', 'sweep_gone_lists(integer)',
      'note_vector_probe(uuid, double precision, smallint)', 'vector_indexes()', 'open_operations()',
      'wanting_spaces(bigint)', 'vector_space_stats(uuid)'] LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION wall.%s FROM PUBLIC', f);
    EXECUTE format('GRANT EXECUTE ON FUNCTION wall.%s TO casebook_app', f);
  END LOOP;
END
$$;
