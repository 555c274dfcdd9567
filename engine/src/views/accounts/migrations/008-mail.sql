-- Mail that is to be sent, was sent, or could not be. Times are microseconds since 1970. `recipient` is a keyed hash of the
-- address, for the budgets; `content` is sealed under the key-encryption key, since letters carry codes that are stored as
-- hashes everywhere else, and is empty once the mail was sent or given up. `state` is queued, sent or dead.

CREATE TABLE mail (
  id TEXT NOT NULL PRIMARY KEY,
  did TEXT NOT NULL,
  kind TEXT NOT NULL,
  recipient TEXT NOT NULL,
  content BLOB NOT NULL,
  state TEXT NOT NULL,
  queuedAt INTEGER NOT NULL,
  expiresAt INTEGER NOT NULL,
  nextAt INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  reason TEXT
);
CREATE INDEX mail_state_idx ON mail (state, nextAt);
CREATE INDEX mail_recipient_idx ON mail (recipient, queuedAt);
CREATE INDEX mail_queued_idx ON mail (queuedAt);
CREATE INDEX mail_did_idx ON mail (did);
