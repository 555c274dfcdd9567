-- Changes of identities that have begun: the did:plc operation that is about to go to the directory, and what the account has here
-- once the directory has taken it: a handle, or a signing key. A row that outlives its request is looked at before the next
-- change of the identity, and at the next start: the directory says what became of it.

CREATE TABLE identity_intent (
  did TEXT NOT NULL PRIMARY KEY,
  operation TEXT NOT NULL,
  handle TEXT,
  publicKey TEXT,
  wrapped BLOB,
  createdAt TEXT NOT NULL
);
CREATE INDEX identity_intent_handle_idx ON identity_intent (handle);
