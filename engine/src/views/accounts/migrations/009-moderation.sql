-- Records and blobs that are hidden by moderators. A record is named by its path within the repo, a blob by its CID. Accounts that are
-- taken down are told by `actor` alone.

CREATE TABLE subject_takedown (
  did TEXT NOT NULL,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  takedownRef TEXT NOT NULL,
  createdAt TEXT NOT NULL,
  PRIMARY KEY (did, kind, subject)
);

-- What administrators and moderators have asked for, before it was done. `id` ascends with time.

CREATE TABLE admin_audit (
  id TEXT NOT NULL PRIMARY KEY,
  at TEXT NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  subject TEXT NOT NULL,
  detail TEXT NOT NULL
);
