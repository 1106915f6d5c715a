-- The bytes that lie here lie nowhere else.
DO $$
DECLARE
  blobs bigint := (SELECT pg_catalog.count(*) FROM casebook.blob_content);
BEGIN
  IF blobs > 0 THEN
    RAISE EXCEPTION 'the bytes of % blobs lie in the database, and an older version could not read them; delete these blobs first', blobs;
  END IF;
END
$$;
DROP TRIGGER drop_content ON casebook.blob;
DROP FUNCTION casebook.drop_blob_content();
DROP VIEW wall.blob_content;
DROP TABLE casebook.blob_content;
