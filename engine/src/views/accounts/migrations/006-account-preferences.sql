-- Preferences of apps: the reference's table account_pref of each actor's store, with the account in front. `place` orders those of an
-- account, and only grows.

CREATE TABLE account_pref (
  did TEXT NOT NULL,
  place INTEGER NOT NULL,
  name TEXT NOT NULL,
  valueJson TEXT NOT NULL,
  PRIMARY KEY (did, place)
);
