-- Repo signing keys, one per account, each wrapped under a key-encryption key that is not in this database. The
-- reference keeps them as plain files; here everything that must survive the machine is in the log.

CREATE TABLE signing_key (
  did TEXT NOT NULL PRIMARY KEY,
  publicKey TEXT NOT NULL,
  wrapped BLOB NOT NULL,
  createdAt TEXT NOT NULL
);
