-- Repo signing keys that were promised before there is an account: under the DID of who asked, or else under the key itself. Wrapped
-- under that name, as those of accounts are.

CREATE TABLE reserved_key (
  name TEXT NOT NULL PRIMARY KEY,
  publicKey TEXT NOT NULL,
  wrapped BLOB NOT NULL,
  createdAt TEXT NOT NULL
);
CREATE INDEX reserved_key_created_at_idx ON reserved_key (createdAt);
