-- Sign-ups that have begun: the did:plc operation that is about to go to the directory, which takes part in no
-- transaction of ours. A row that outlives its sign-up tells the next start which identity to bury.

CREATE TABLE plc_intent (
  did TEXT NOT NULL PRIMARY KEY,
  operation TEXT NOT NULL,
  createdAt TEXT NOT NULL
);
