-- The tables of the reference PDS's account.sqlite, after its migrations 001 to 007. Every table declares a primary
-- key without NULLs, since the session extension records only such rows. Times are ISO-8601 UTC with milliseconds,
-- booleans are 0 and 1.

CREATE TABLE actor (
  did TEXT NOT NULL PRIMARY KEY,
  handle TEXT,
  createdAt TEXT NOT NULL,
  takedownRef TEXT,
  deactivatedAt TEXT,
  deleteAfter TEXT
);
CREATE UNIQUE INDEX actor_handle_lower_idx ON actor (lower(handle));
CREATE INDEX actor_cursor_idx ON actor (createdAt, did);

CREATE TABLE account (
  did TEXT NOT NULL PRIMARY KEY,
  email TEXT NOT NULL,
  passwordScrypt TEXT NOT NULL,
  emailConfirmedAt TEXT,
  invitesDisabled INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX account_email_lower_idx ON account (lower(email));

CREATE TABLE app_password (
  did TEXT NOT NULL,
  name TEXT NOT NULL,
  passwordScrypt TEXT NOT NULL,
  createdAt TEXT NOT NULL,
  privileged INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (did, name)
);

CREATE TABLE invite_code (
  code TEXT NOT NULL PRIMARY KEY,
  availableUses INTEGER NOT NULL,
  disabled INTEGER NOT NULL DEFAULT 0,
  forAccount TEXT NOT NULL,
  createdBy TEXT NOT NULL,
  createdAt TEXT NOT NULL
);
CREATE INDEX invite_code_for_account_idx ON invite_code (forAccount);

CREATE TABLE invite_code_use (
  code TEXT NOT NULL,
  usedBy TEXT NOT NULL,
  usedAt TEXT NOT NULL,
  PRIMARY KEY (code, usedBy)
);

CREATE TABLE refresh_token (
  id TEXT NOT NULL PRIMARY KEY,
  did TEXT NOT NULL,
  expiresAt TEXT NOT NULL,
  nextId TEXT,
  appPasswordName TEXT
);
CREATE INDEX refresh_token_did_idx ON refresh_token (did);

CREATE TABLE repo_root (
  did TEXT NOT NULL PRIMARY KEY,
  cid TEXT NOT NULL,
  rev TEXT NOT NULL,
  indexedAt TEXT NOT NULL
);

CREATE TABLE email_token (
  purpose TEXT NOT NULL,
  did TEXT NOT NULL,
  token TEXT NOT NULL,
  requestedAt TEXT NOT NULL,
  PRIMARY KEY (purpose, did)
);
CREATE UNIQUE INDEX email_token_purpose_token_unique ON email_token (purpose, token);

CREATE TABLE authorization_request (
  id TEXT NOT NULL PRIMARY KEY,
  did TEXT,
  deviceId TEXT,
  clientId TEXT NOT NULL,
  clientAuth TEXT NOT NULL,
  parameters TEXT NOT NULL,
  expiresAt TEXT NOT NULL,
  code TEXT
);
CREATE UNIQUE INDEX authorization_request_code_idx ON authorization_request (code) WHERE code IS NOT NULL;
CREATE INDEX authorization_request_expires_at_idx ON authorization_request (expiresAt);

CREATE TABLE device (
  id TEXT NOT NULL PRIMARY KEY,
  sessionId TEXT NOT NULL,
  userAgent TEXT,
  ipAddress TEXT NOT NULL,
  lastSeenAt TEXT NOT NULL
);
CREATE UNIQUE INDEX device_session_id_idx ON device (sessionId);

CREATE TABLE device_account (
  deviceId TEXT NOT NULL,
  did TEXT NOT NULL,
  authenticatedAt TEXT NOT NULL,
  remember INTEGER NOT NULL,
  authorizedClients TEXT NOT NULL,
  PRIMARY KEY (deviceId, did),
  FOREIGN KEY (deviceId) REFERENCES device (id) ON DELETE CASCADE ON UPDATE CASCADE
);

CREATE TABLE account_device (
  deviceId TEXT NOT NULL,
  did TEXT NOT NULL,
  createdAt TEXT NOT NULL,
  updatedAt TEXT NOT NULL,
  PRIMARY KEY (deviceId, did),
  FOREIGN KEY (deviceId) REFERENCES device (id) ON DELETE CASCADE ON UPDATE CASCADE,
  FOREIGN KEY (did) REFERENCES account (did) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX account_device_did_idx ON account_device (did);

CREATE TABLE authorized_client (
  did TEXT NOT NULL,
  clientId TEXT NOT NULL,
  createdAt TEXT NOT NULL,
  updatedAt TEXT NOT NULL,
  data TEXT NOT NULL,
  PRIMARY KEY (did, clientId),
  FOREIGN KEY (did) REFERENCES account (did) ON DELETE CASCADE ON UPDATE CASCADE
);

CREATE TABLE token (
  id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
  did TEXT NOT NULL,
  tokenId TEXT NOT NULL,
  createdAt TEXT NOT NULL,
  updatedAt TEXT NOT NULL,
  expiresAt TEXT NOT NULL,
  clientId TEXT NOT NULL,
  clientAuth TEXT NOT NULL,
  deviceId TEXT,
  parameters TEXT NOT NULL,
  details TEXT,
  code TEXT,
  currentRefreshToken TEXT,
  scope TEXT
);
CREATE UNIQUE INDEX token_token_id_idx ON token (tokenId);
CREATE UNIQUE INDEX token_current_refresh_token_idx ON token (currentRefreshToken);
CREATE UNIQUE INDEX token_code_idx ON token (code) WHERE code IS NOT NULL;
CREATE INDEX token_did_idx ON token (did);

CREATE TABLE used_refresh_token (
  refreshToken TEXT NOT NULL PRIMARY KEY,
  tokenId INTEGER NOT NULL,
  FOREIGN KEY (tokenId) REFERENCES token (id) ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX used_refresh_token_id_idx ON used_refresh_token (tokenId);

CREATE TABLE lexicon (
  nsid TEXT NOT NULL PRIMARY KEY,
  createdAt TEXT NOT NULL,
  updatedAt TEXT NOT NULL,
  lastSucceededAt TEXT,
  uri TEXT,
  lexicon TEXT
);
CREATE INDEX lexicon_failures_idx ON lexicon (updatedAt) WHERE lexicon IS NULL;
