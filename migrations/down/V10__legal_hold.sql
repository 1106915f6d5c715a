DROP FUNCTION wall.purge(text, text[], uuid[]);
DROP VIEW wall.retention_policy, wall.legal_hold;
DROP TABLE casebook.retention_policy, casebook.legal_hold;
