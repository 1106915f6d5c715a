-- The blobs stay, and nothing of these refers to them any more.
DROP INDEX casebook.decision_evidence;
DELETE FROM casebook.blob_reference WHERE kind IN ('evidence_bundle', 'attachment');
DROP VIEW wall.attachment;
DROP TABLE casebook.attachment;
DROP VIEW wall.evidence_bundle;
DROP TABLE casebook.evidence_bundle;
