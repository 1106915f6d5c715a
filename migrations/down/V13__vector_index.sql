DROP TRIGGER purge_from_vector_indexes ON casebook.embedding;
DO $$
DECLARE
  name text;
BEGIN
  FOR name IN SELECT 'sealed_' || number FROM casebook.vector_index LOOP
    EXECUTE format('DROP VIEW IF EXISTS wall.%I', name);
    EXECUTE format('DROP TABLE IF EXISTS casebook.%I', name);
  END LOOP;
END
$$;
DROP FUNCTION wall.open_vector_index(uuid, uuid, smallint, smallint, integer, integer, integer),
  wall.fill_vector_index(uuid, integer), wall.build_vector_index(uuid, integer, integer), wall.use_vector_index(uuid),
  wall.drop_vector_indexes(uuid, uuid), wall.seal_vectors(uuid, integer), wall.sweep_vector_index(uuid, uuid, text, integer),
  wall.sweep_vector_list(uuid, integer), wall.sweep_gone_lists(integer),
  wall.note_vector_probe(uuid, double precision, smallint), wall.vector_indexes(), wall.open_operations(),
  wall.wanting_spaces(bigint), wall.vector_space_stats(uuid), casebook.purge_from_vector_indexes(),
  casebook.remove_vector_index(text, uuid, boolean), casebook.vector_code(smallint, smallint, smallint, integer),
  casebook.claim_vector_index(uuid), casebook.current_tenant();
DROP VIEW wall.vector_removal, wall.embedding_delta, wall.vector_index, wall.operation;
DROP TABLE casebook.vector_removal, casebook.embedding_delta, casebook.vector_index, casebook.operation;
DROP VIEW wall.vector_space;
ALTER TABLE casebook.vector_space DROP COLUMN index_method, DROP COLUMN index_codes, DROP COLUMN index_m,
  DROP COLUMN index_ef_construction, DROP COLUMN index_lists, DROP COLUMN index_mode;
CALL casebook.build_wall('casebook.vector_space');
DROP INDEX casebook.embedding_of_deleted;
