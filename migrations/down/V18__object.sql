DROP VIEW wall.object_version;
DROP TABLE casebook.object_version;
DROP VIEW wall.object;
DROP TABLE casebook.object;
DELETE FROM casebook.blob_reference WHERE kind = 'object_version';
