-- Receipts of searches: what was asked, at which revision, and what was found.
CREATE TABLE casebook.search_receipt (
  LIKE casebook.noun INCLUDING DEFAULTS,
  -- Full RPC name.
  method text COLLATE "C" NOT NULL,
  -- The request as it was understood, a protobuf message of that method.
  request bytea NOT NULL,
  -- SHA-256 of it, hex.
  request_digest text COLLATE "C" NOT NULL,
  -- The space that was searched, and the embedding that stood for a vector; absent without.
  space_uid uuid,
  space_id text COLLATE "C" NOT NULL,
  like_uid uuid,
  -- Best first, each with kind, id, uid, version, score and what the legs said.
  hits jsonb NOT NULL,
  -- The number of the log that was read at.
  read_seq bigint NOT NULL,
  exact boolean NOT NULL,
  PRIMARY KEY (tenant_id, uid)
);
CREATE UNIQUE INDEX search_receipt_id ON casebook.search_receipt (tenant_id, id) WHERE delete_time IS NULL;
CREATE INDEX search_receipt_time ON casebook.search_receipt (tenant_id, create_time, uid) WHERE delete_time IS NULL;
CALL casebook.build_wall('casebook.search_receipt');
