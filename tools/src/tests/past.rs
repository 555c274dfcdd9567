//! The store as it was: restored to moments of which the test remembers everything, and what must not go back in time.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use benches::synthetic::{SyntheticRepo, Write};
use engine::engine::Engine;
use engine::entry::{Change, Entry, EntryDraft, EntryKind};
use engine::log::Lsn;
use engine::repo::event::{AccountStatus, Event, decode};
use engine::repo::{Cid, Did};
use engine::views::accounts::{AccountsError, queries};

use super::fixture::*;
use super::running::Running;
use crate::Outcome;

const HOUR: Duration = Duration::from_secs(3_600);

/// The same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// What the store holds at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State(BTreeMap<Did, (Cid, BTreeMap<String, Cid>)>);

impl State {
    fn of_model(repos: &[SyntheticRepo]) -> State {
        let repos = repos.iter().filter_map(|repo| Some((repo, repo.head()?)));
        State(
            repos
                .map(|(repo, head)| (repo.did.clone(), (head.commit, repo.records().clone())))
                .collect(),
        )
    }

    fn of(engine: &Engine) -> State {
        let reader = engine.reader().unwrap();
        let repos = reader.repos(None, 100).unwrap().into_iter().map(|repo| {
            let records = reader.records_from(&repo.did, None).unwrap();
            let records = records.map(|record| {
                let (path, row) = record.unwrap();
                (path.to_string(), row.cid)
            });
            (repo.did, (repo.commit, records.collect()))
        });
        State(repos.collect())
    }
}

fn restore_at(url: &str, at: Lsn, to: &Path, temp: &Path) -> (Result<Outcome, String>, String) {
    let at = at.get().to_string();
    let (to, temp) = (to.to_str().unwrap(), temp.to_str().unwrap());
    tool(&[
        "restore",
        "--replica",
        url,
        "--at",
        &at,
        "--to",
        to,
        "--temp-dir",
        temp,
    ])
}

/// One thing that happens to a repo; yields the LSN behind it.
fn happen(engine: &Engine, repo: &mut SyntheticRepo, random: &mut Random) -> Lsn {
    let paths: Vec<String> = repo.records().keys().cloned().collect();
    let some = |random: &mut Random| paths.get(random.below(paths.len().max(1))).cloned();
    let writes = match (random.below(8), some(random)) {
        (0 | 1, Some(path)) => vec![Write::Delete { path }],
        (2 | 3, Some(path)) => vec![Write::Put {
            path,
            record: benches::synthetic::post(&format!("changed {}", random.0)),
        }],
        (4, Some(_)) => {
            let count = 1 + random.below(30);
            let replaced = repo.replace(count).unwrap();
            let did = repo.did.clone();
            let generation = engine.reader().unwrap().next_generation(&did).unwrap().unwrap();
            let rows = Change::RepoRows {
                did: did.clone(),
                generation,
                rows: replaced.rows,
            };
            append(engine, EntryDraft::private(vec![rows]));
            let head = Change::RepoHead {
                did,
                generation,
                commit: replaced.commit,
            };
            return append(engine, EntryDraft::private(vec![head])).last;
        }
        _ => repo.posts(1 + random.below(20)),
    };
    let draft = repo.commit(&writes).unwrap();
    append(engine, draft).last
}

#[test]
fn the_store_of_twenty_moments_is_what_it_was_then() {
    let running = Running::start(HOUR);
    let mut random = Random(7);
    let mut repos: Vec<SyntheticRepo> = (0..4).map(|number| SyntheticRepo::new(number).unwrap()).collect();
    for (number, repo) in repos.iter().enumerate() {
        create_account(&running.engine, repo, &format!("user{number}.test"));
    }
    let mut moments = Vec::new();
    for step in 0..160 {
        let repo = random.below(repos.len());
        let lsn = happen(&running.engine, &mut repos[repo], &mut random);
        moments.push((lsn, State::of_model(&repos)));
        match step {
            50 | 110 => running.compact(),
            30 | 80 | 130 => running.checkpoint(),
            _ if random.below(12) == 0 => {
                wait(running.engine.log().seal_now()).unwrap();
            }
            _ => {}
        }
    }
    let url = running.url();
    let end = running.engine.appended().get();
    let (dir, _) = running.stop();
    for number in 0..20 {
        let (lsn, expected) = &moments[random.below(moments.len() - 1)];
        let to = dir.path().join(format!("then-{number}"));
        let (outcome, text) = restore_at(&url, *lsn, &to, dir.path());
        assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
        let (outcome, text) = verify(&to);
        assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
        let engine = start(&to);
        assert_eq!(State::of(&engine), *expected, "at {lsn}");
        assert!(engine.appended().get() > end);
        stop(engine, false);
        std::fs::remove_dir_all(&to).unwrap();
    }
    // The past of the past is there, too, and a directory that is in use is refused.
    let (outcome, _) = restore_at(&url, moments[0].0, dir.path(), dir.path());
    assert!(outcome.unwrap_err().contains("not empty"));
    let (outcome, _) = restore_at(&url, end, &dir.path().join("end"), dir.path());
    assert!(outcome.unwrap_err().contains("the replica ends at"));
}

#[test]
fn a_restored_store_starts_on_an_empty_replica_and_not_on_the_one_that_it_came_from() {
    let running = Running::start(HOUR);
    let mut repo = SyntheticRepo::new(0).unwrap();
    create_account(&running.engine, &repo, "user0.test");
    let mut cut = Lsn::ZERO;
    for round in 0..20 {
        let writes = repo.posts(10);
        let lsn = append(&running.engine, repo.commit(&writes).unwrap()).last;
        if round == 9 {
            cut = lsn;
        }
    }
    let url = running.url();
    let (old, _) = running.stop();
    let new = tempfile::tempdir().unwrap();
    let data = new.path().join("data");
    let (outcome, text) = restore_at(&url, cut, &data, new.path());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    let again = std::fs::read_dir(&data).unwrap().count();
    assert!(
        restore_at(&url, cut, &data, new.path())
            .0
            .unwrap_err()
            .contains("not empty")
    );
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), again);

    let Err(refused) = Running::on(old, data.clone(), HOUR) else {
        panic!("it may not go on where it came from");
    };
    assert!(
        refused.to_string().contains("the data directory holds log"),
        "{refused}"
    );

    let running = Running::on(new, data, HOUR).unwrap();
    let state = State::of(&running.engine);
    assert_eq!(state.0[&repo.did].1.len(), 100);
    let url = running.url();
    let (dir, _) = running.stop();
    let (outcome, text) = tool(&["verify", "--replica", &url]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    let third = dir.path().join("third");
    let (outcome, text) = tool(&["restore", "--replica", &url, third.to_str().unwrap()]);
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    let engine = start(&third);
    assert_eq!(State::of(&engine), state);
    stop(engine, false);
}

/// Action, LSN, CID and rev of a version.
type Row = (String, Option<u64>, Option<String>, Option<String>);

fn versions(uri: &str, from: &[&str]) -> Vec<serde_json::Value> {
    let (outcome, text) = tool(&[&["history", uri, "--json"], from].concat());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_versions_of_a_record_are_listed_over_imports_and_compactions() {
    let running = Running::start(HOUR);
    let engine = &running.engine;
    let mut repo = SyntheticRepo::new(0).unwrap();
    create_account(engine, &repo, "user0.test");
    let path = "app.test.thing/one".to_owned();
    let uri = format!("at://{}/{path}", repo.did);
    let put = |repo: &mut SyntheticRepo, text: &str| {
        let write = Write::Put {
            path: path.clone(),
            record: benches::synthetic::post(text),
        };
        let lsn = append(engine, repo.commit(&[write]).unwrap()).last;
        (
            lsn.get(),
            repo.records()[&path].to_string(),
            repo.head().unwrap().rev.to_string(),
        )
    };
    let created = put(&mut repo, "first");
    let writes = repo.posts(3);
    append(engine, repo.commit(&writes).unwrap());
    let updated = put(&mut repo, "second");
    let data = running.dir.path().join("data");
    let rows = |versions: &[serde_json::Value]| -> Vec<Row> {
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        versions
            .iter()
            .map(|row| {
                let action = text(&row["action"]).unwrap();
                (action, row["lsn"].as_u64(), text(&row["cid"]), text(&row["rev"]))
            })
            .collect()
    };
    let all = |what: &str, (lsn, cid, rev): &(u64, String, String)| {
        (what.to_owned(), Some(*lsn), Some(cid.clone()), Some(rev.clone()))
    };
    let at_first = [all("create", &created), all("update", &updated)];
    let local = ["--data", data.to_str().unwrap()];
    assert_eq!(rows(&versions(&uri, &local)), at_first);

    running.compact();
    let replaced = repo.replace(2).unwrap();
    let did = repo.did.clone();
    let rows_of = Change::RepoRows {
        did: did.clone(),
        generation: 2,
        rows: replaced.rows,
    };
    let head = Change::RepoHead {
        did: did.clone(),
        generation: 2,
        commit: replaced.commit,
    };
    append(engine, EntryDraft::private(vec![rows_of]));
    let imported = append(engine, EntryDraft::private(vec![head])).last;
    let gone = (
        "import".to_owned(),
        Some(imported.get()),
        None,
        Some(repo.head().unwrap().rev.to_string()),
    );
    // On the disk the compaction has left the last version; the replica keeps what it replaced.
    let (_, cid, rev) = updated.clone();
    let last = ("compacted".to_owned(), None, Some(cid), Some(rev));
    assert_eq!(rows(&versions(&uri, &local)), [last, gone.clone()]);
    let temp = running.dir.path().to_str().unwrap().to_owned();
    let url = running.url();
    let remote = ["--replica", &url, "--temp-dir", &temp];
    let [first, second] = at_first;
    assert_eq!(rows(&versions(&uri, &remote)), [first, second, gone]);
    assert!(versions(&format!("at://{did}/app.test.thing/two"), &remote).is_empty());
    let (refused, _) = tool(&["history", "at://user0.test/app.test.thing/one", "--replica", &url]);
    assert!(refused.unwrap_err().contains("name its DID"));
    running.stop();
}

fn sql(engine: &Engine, statements: &'static [&'static str]) {
    let prepared = wait(engine.accounts().prepare([], move |tx| {
        for statement in statements {
            tx.execute_batch(statement)?;
        }
        Ok::<_, AccountsError>(())
    }))
    .unwrap();
    let bytes = prepared.changeset;
    let receipt = engine
        .append(vec![EntryDraft::private(vec![Change::AccountsChangeset {
            bytes,
        }])])
        .unwrap();
    prepared.locks.logged();
    wait(receipt.durable()).unwrap();
}

/// What a query of one text column answers.
fn texts(engine: &Engine, query: &'static str) -> Vec<String> {
    let read = engine.accounts().read_blocking(|conn| {
        let mut rows = conn.prepare(query)?;
        let rows = rows.query_map([], |row| row.get(0))?;
        Ok::<_, AccountsError>(rows.collect::<rusqlite::Result<Vec<String>>>()?)
    });
    read.unwrap()
}

#[test]
fn what_was_revoked_taken_down_changed_or_deleted_since_stays_so() {
    let running = Running::start(HOUR);
    let engine = &running.engine;
    let mut repos: Vec<SyntheticRepo> = (0..5).map(|number| SyntheticRepo::new(number).unwrap()).collect();
    for (number, repo) in repos.iter_mut().enumerate().take(4) {
        create_account(engine, repo, &format!("user{number}.test"));
        let writes = repo.posts(3);
        append(engine, repo.commit(&writes).unwrap());
    }
    sql(
        engine,
        &[
            "INSERT INTO refresh_token (id, did, expiresAt) SELECT 'kept-' || handle, did, 'x' FROM actor",
            "INSERT INTO refresh_token (id, did, expiresAt) SELECT 'revoked-' || handle, did, 'x' FROM actor",
            "INSERT INTO app_password (did, name, passwordScrypt, createdAt) SELECT did, 'revoked', 'p', 'x' FROM actor",
            "INSERT INTO invite_code (code, availableUses, forAccount, createdBy, createdAt) VALUES
             ('good', 5, 'admin', 'admin', 'x'), ('bad', 5, 'admin', 'admin', 'x')",
            "UPDATE actor SET takedownRef = 'old' WHERE handle = 'user3.test'",
        ],
    );
    let cut = engine.appended().get();

    let before = State::of_model(&repos[..4]);
    let writes = repos[0].posts(2);
    append(engine, repos[0].commit(&writes).unwrap());
    sql(
        engine,
        &[
            "UPDATE account SET passwordScrypt = 'new' WHERE email = 'user0.test@example.test'",
            "DELETE FROM refresh_token WHERE id LIKE 'revoked-%'",
            "DELETE FROM app_password",
            "INSERT INTO refresh_token (id, did, expiresAt) SELECT 'later-' || handle, did, 'x' FROM actor",
            "UPDATE actor SET takedownRef = 'mod-1' WHERE handle = 'user1.test'",
            "UPDATE actor SET takedownRef = NULL WHERE handle = 'user3.test'",
            "UPDATE invite_code SET disabled = 1 WHERE code = 'bad'",
        ],
    );
    // Two accounts exchange their handles.
    sql(
        engine,
        &["UPDATE actor SET handle = 'x.test' WHERE handle = 'user0.test'"],
    );
    sql(
        engine,
        &["UPDATE actor SET handle = 'user0.test' WHERE handle = 'user1.test'"],
    );
    sql(
        engine,
        &["UPDATE actor SET handle = 'user1.test' WHERE handle = 'x.test'"],
    );
    let gone = repos[2].did.clone();
    let owner = gone.to_string();
    let deleted = wait(
        engine
            .accounts()
            .prepare([], move |tx| queries::delete_account(tx, &owner)),
    )
    .unwrap();
    let changes = vec![
        Change::RepoRemoved { did: gone.clone() },
        Change::AccountsChangeset {
            bytes: deleted.changeset,
        },
    ];
    let receipt = engine.append(vec![EntryDraft::private(changes)]).unwrap();
    deleted.locks.logged();
    wait(receipt.durable()).unwrap();
    create_account(engine, &repos[4], "user4.test");
    let writes = repos[4].posts(1);
    append(engine, repos[4].commit(&writes).unwrap());
    let end = engine.appended().get();
    let url = running.url();
    let (dir, _) = running.stop();

    let to = dir.path().join("then");
    let (outcome, text) = restore_at(&url, cut, &to, dir.path());
    assert_eq!(outcome, Ok(Outcome::Clean), "{text}");
    has_line(&text, &["2 as now", "1 set back"]);
    has_line(&text, &["1 deleted since", "1 created since"]);
    assert!(!text.contains(SECRET));
    assert_eq!(verify(&to).0, Ok(Outcome::Clean));
    let engine = start(&to);

    let mut expected = before;
    expected.0.remove(&gone);
    assert_eq!(State::of(&engine), expected);
    assert_eq!(
        texts(
            &engine,
            "SELECT handle || coalesce(' ' || takedownRef, '') FROM actor ORDER BY handle"
        ),
        ["user0.test mod-1", "user1.test", "user3.test old"]
    );
    assert_eq!(
        texts(
            &engine,
            "SELECT email || ' ' || passwordScrypt FROM account ORDER BY email"
        ),
        [
            "user0.test@example.test new".to_owned(),
            format!("user1.test@example.test {SECRET}"),
            format!("user3.test@example.test {SECRET}")
        ]
    );
    assert_eq!(
        texts(&engine, "SELECT id FROM refresh_token ORDER BY id"),
        ["kept-user0.test", "kept-user1.test", "kept-user3.test"]
    );
    assert_eq!(
        texts(&engine, "SELECT name FROM app_password"),
        Vec::<String>::new()
    );
    assert_eq!(
        texts(
            &engine,
            "SELECT code || ' ' || disabled FROM invite_code ORDER BY code"
        ),
        ["bad 1", "good 0"]
    );
    assert_eq!(
        texts(&engine, "SELECT did || ' ' || rev FROM restored_repo"),
        [format!("{} {}", repos[0].did, repos[0].head().unwrap().rev)]
    );
    // Everything that is said anew lies above everything that was ever said.
    let mut told = Vec::new();
    let mut tail = engine.tail(cut);
    loop {
        let frames = tail.next_batch(Lsn::MAX, 1 << 20).unwrap();
        if frames.is_empty() {
            break;
        }
        for frame in frames {
            assert!(frame.lsn() > end);
            let entry = Entry::decode(&frame).unwrap();
            if entry.kind == EntryKind::Private {
                continue;
            }
            match decode(&entry.public).unwrap() {
                Event::Account(account) => told.push((account.did.to_string(), account.inactive)),
                Event::Identity(identity) => told.push((identity.did.to_string(), None)),
                _ => panic!("{:?}", entry.kind),
            }
        }
    }
    let of = |number: usize| repos[number].did.to_string();
    for expected in [
        (of(2), Some(AccountStatus::Deleted)),
        (of(4), Some(AccountStatus::Deactivated)),
        (of(3), Some(AccountStatus::Takendown)),
        (of(0), None),
        (of(1), None),
    ] {
        assert!(told.contains(&expected), "{expected:?} in {told:?}");
    }
    assert_eq!(told.len(), 5);
    stop(engine, false);
}
