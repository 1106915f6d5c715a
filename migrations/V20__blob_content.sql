-- The bytes of small blobs, beside the rows that say whose they are.

-- As many bytes as stored_size_bytes of the blob says, encrypted where its row says so. A row is here as long as a live
-- blob's storage_backend is "database": it comes with the blob's row in one transaction, and goes by the trigger below. So
-- no foreign key is held here, which would be looked up for each row.
CREATE TABLE casebook.blob_content (
  tenant_id text COLLATE "C" NOT NULL DEFAULT NULLIF(current_setting('casebook.tenant', true), ''),
  blob_uid uuid NOT NULL,
  bytes bytea NOT NULL,
  PRIMARY KEY (tenant_id, blob_uid)
);
-- Most are no longer than a page, and stay in one piece there. What is encrypted does not shrink, and what is not is too
-- short for it to be worth the time.
ALTER TABLE casebook.blob_content SET (toast_tuple_target = 8160);
ALTER TABLE casebook.blob_content ALTER COLUMN bytes SET STORAGE EXTERNAL;
CALL casebook.build_wall('casebook.blob_content', 'SELECT, INSERT, UPDATE');

-- When a blob is deleted, or its bytes lie elsewhere, those here go, whatever version of the server it was that did it.
CREATE FUNCTION casebook.drop_blob_content() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
  DELETE FROM casebook.blob_content WHERE tenant_id = NEW.tenant_id AND blob_uid = NEW.uid;
  RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION casebook.drop_blob_content() FROM PUBLIC;
CREATE TRIGGER drop_content AFTER UPDATE ON casebook.blob FOR EACH ROW
WHEN (OLD.storage_backend = 'database' AND (NEW.delete_time IS NOT NULL OR NEW.storage_backend <> 'database'))
EXECUTE FUNCTION casebook.drop_blob_content();
