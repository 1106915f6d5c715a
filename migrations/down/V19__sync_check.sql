DROP FUNCTION wall.note_sync_check(text, text, bigint, bigint, bigint, bigint, boolean);
DROP FUNCTION wall.claim_sync_checks(text, integer, bigint, bigint);
DROP VIEW wall.sync_check;
DROP TABLE casebook.sync_check;
