-- Uploads under way are lost; their parts stay accounted for as bytes to be deleted.
DROP FUNCTION wall.count_parts_under_other_keys(text);
DROP FUNCTION wall.expire_blob_uploads(integer, bigint, bigint);
INSERT INTO casebook.blob_intent (tenant_id, uid, store_key, state, due_time)
SELECT p.tenant_id, p.uid, p.store_key, 2, now() FROM casebook.blob_upload_part AS p
UNION ALL
SELECT p.tenant_id, gen_random_uuid(), p.store_key, 2, u.expire_time + interval '10 minutes'
FROM casebook.blob_upload_part AS p JOIN casebook.blob_upload AS u ON u.tenant_id = p.tenant_id AND u.uid = p.upload_uid
WHERE u.transport = 2;
DROP VIEW wall.blob_upload_part;
DROP TABLE casebook.blob_upload_part;
DROP VIEW wall.blob_upload;
DROP TABLE casebook.blob_upload;
