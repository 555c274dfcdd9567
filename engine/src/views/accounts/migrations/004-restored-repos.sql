-- Repos that the store's restore to an earlier moment has set back: consumers have seen newer commits than there are now. Before
-- the server serves anything it signs a commit of each whose rev is above all that were ever seen, and announces it.

CREATE TABLE restored_repo (
  did TEXT NOT NULL PRIMARY KEY,
  rev TEXT NOT NULL
);
