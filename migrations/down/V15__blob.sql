-- The bytes stay in the object store: only their rows go.
DROP FUNCTION wall.blobs_under_other_keys(text, text, text, uuid, integer);
DROP FUNCTION wall.claim_blob_scrubs(integer, bigint, bigint);
DROP VIEW wall.blob_scrub;
DROP TABLE casebook.blob_scrub;
DROP FUNCTION wall.count_blob_intents();
DROP FUNCTION wall.claim_blob_intents(integer, bigint);
DROP VIEW wall.blob_intent;
DROP TABLE casebook.blob_intent;
DROP VIEW wall.blob_reference;
DROP TABLE casebook.blob_reference;
DROP VIEW wall.blob;
DROP TABLE casebook.blob;
