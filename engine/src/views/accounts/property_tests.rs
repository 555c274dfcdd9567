//! Random transactions: preparing and applying is executing, and transactions that are prepared side by side fit
//! together in any order.

use proptest::prelude::*;
use rusqlite::Connection;
use rusqlite::types::Value;

use super::model::{RefreshToken, SigningKey};
use super::tests::{actor, bare, changeset, dump, dump_view, login, open};
use super::{AccountsError, iso_time, queries};
use crate::views::View;

/// A random statement over a few rows, so that the same ones are met often.
#[derive(Clone, Debug)]
enum Statement {
    Actor(u8, u8),
    Login(u8, u8),
    Handle(u8, u8),
    Token(u8, u8),
    Rotate(u8, u8),
    Key(u8, Vec<u8>),
    Client(u8, u8),
    OauthToken(u8, u8),
    DeleteTokens(u8),
    DeleteAccount(u8),
    Takedown(u8, bool),
}

impl Statement {
    /// Failures are part of the game: a statement that fails changes nothing.
    fn run(&self, conn: &Connection) {
        let did = |number: &u8| format!("did:plc:{number}");
        let _ = match self {
            Statement::Actor(a, h) => queries::insert_actor(conn, &actor(&did(a), &format!("h{h}.test"))),
            Statement::Login(a, e) => queries::insert_login(conn, &did(a), &login(&format!("{e}@test"))),
            Statement::Handle(a, h) => queries::set_handle(conn, &did(a), &format!("H{h}.test")).map(drop),
            Statement::Token(a, t) => queries::insert_refresh_token(
                conn,
                &RefreshToken {
                    id: format!("t{t}"),
                    did: did(a),
                    expires_at: iso_time(u64::from(*t) << 33),
                    next_id: None,
                    app_password_name: None,
                },
            ),
            Statement::Rotate(t, next) => {
                let expires = iso_time(1 << 40);
                queries::rotate_refresh_token(conn, &format!("t{t}"), &format!("t{next}"), 1 << 34, &expires)
                    .map(drop)
            }
            Statement::Key(a, wrapped) => queries::put_signing_key(
                conn,
                &SigningKey {
                    did: did(a),
                    public_key: String::new(),
                    wrapped: wrapped.clone(),
                    created_at: String::new(),
                },
            ),
            Statement::Client(a, c) => conn
                .execute("INSERT INTO authorized_client VALUES (?1, ?2, 't', 't', '{}')", (did(a), c.to_string()))
                .map(drop)
                .map_err(AccountsError::from),
            Statement::OauthToken(a, t) => conn
                .execute(
                    "INSERT INTO token (id, did, tokenId, createdAt, updatedAt, expiresAt, clientId, clientAuth,
                        parameters) VALUES (?1, ?2, ?3, '', '', '', '', '', '')",
                    (t, did(a), format!("tok{t}")),
                )
                .and_then(|_| conn.execute("INSERT INTO used_refresh_token VALUES (?1, ?1)", [t]))
                .map(drop)
                .map_err(AccountsError::from),
            Statement::DeleteTokens(a) => queries::delete_refresh_tokens_of(conn, &did(a)).map(drop),
            Statement::DeleteAccount(a) => queries::delete_account(conn, &did(a)).map(drop),
            Statement::Takedown(a, on) => {
                queries::set_takedown(conn, &did(a), on.then_some("ref")).map(drop)
            }
        };
    }
}

fn statement() -> impl Strategy<Value = Statement> {
    let few = 0_u8..4;
    prop_oneof![
        (few.clone(), few.clone()).prop_map(|(a, h)| Statement::Actor(a, h)),
        (few.clone(), few.clone()).prop_map(|(a, e)| Statement::Login(a, e)),
        (few.clone(), few.clone()).prop_map(|(a, h)| Statement::Handle(a, h)),
        (few.clone(), few.clone()).prop_map(|(a, t)| Statement::Token(a, t)),
        (few.clone(), few.clone()).prop_map(|(t, next)| Statement::Rotate(t, next)),
        (few.clone(), proptest::collection::vec(any::<u8>(), 0..4)).prop_map(|(a, k)| Statement::Key(a, k)),
        (few.clone(), few.clone()).prop_map(|(a, c)| Statement::Client(a, c)),
        (few.clone(), few.clone()).prop_map(|(a, t)| Statement::OauthToken(a, t)),
        few.clone().prop_map(Statement::DeleteTokens),
        few.clone().prop_map(Statement::DeleteAccount),
        (few, any::<bool>()).prop_map(|(a, on)| Statement::Takedown(a, on)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A transaction that is refused as unreplayable is left out of the direct execution as well.
    #[test]
    fn preparing_and_applying_is_the_same_as_executing(
        transactions in proptest::collection::vec(proptest::collection::vec(statement(), 1..8), 1..10),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut view = open(dir.path());
        let mut direct = bare();
        let mut log = Vec::new();
        for (statements, number) in transactions.into_iter().zip(10..) {
            let same = statements.clone();
            let prepared = runtime.block_on(view.handle().prepare([], move |tx| {
                same.iter().for_each(|statement| statement.run(tx));
                Ok::<_, AccountsError>(())
            }));
            match prepared {
                Ok(prepared) => {
                    let tx = direct.transaction().unwrap();
                    statements.iter().for_each(|statement| statement.run(&tx));
                    tx.commit().unwrap();
                    log.push(changeset(number, &prepared.changeset));
                    view.apply(&log[log.len() - 1..]).unwrap();
                }
                Err(AccountsError::Unreplayable { .. }) => {}
                Err(other) => prop_assert!(false, "{other}"),
            }
            let rows = |all: Vec<(String, Vec<Vec<Value>>)>| -> Vec<_> {
                all.into_iter().filter(|(table, _)| table != "sqlite_sequence").collect()
            };
            prop_assert_eq!(rows(dump_view(&view)), rows(dump(&direct)));
        }
        let fresh = tempfile::tempdir().unwrap();
        let mut replayed = open(fresh.path());
        replayed.apply(&log).unwrap();
        prop_assert_eq!(dump_view(&replayed), dump_view(&view));
    }

    /// No lock keys at all: what the net lets through can be applied in any order, to the same rows.
    #[test]
    fn what_is_prepared_side_by_side_fits_in_any_order(
        before in proptest::collection::vec(statement(), 0..20),
        transactions in proptest::collection::vec(proptest::collection::vec(statement(), 1..4), 2..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut forward, mut backward) = (open(one.path()), open(two.path()));
        let accounts = forward.handle();
        let prepare = |statements: Vec<Statement>| {
            runtime.block_on(accounts.prepare([], move |tx| {
                statements.iter().for_each(|statement| statement.run(tx));
                Ok::<_, AccountsError>(())
            }))
        };
        if let Ok(setup) = prepare(before) {
            forward.apply(&[changeset(10, &setup.changeset)]).unwrap();
            backward.apply(&[changeset(10, &setup.changeset)]).unwrap();
        }
        let prepared: Vec<_> = transactions.into_iter().filter_map(|all| prepare(all).ok()).collect();
        for (prepared, number) in prepared.iter().zip(11..) {
            forward.apply(&[changeset(number, &prepared.changeset)]).unwrap();
        }
        for (prepared, number) in prepared.iter().rev().zip(11..) {
            backward.apply(&[changeset(number, &prepared.changeset)]).unwrap();
        }
        prop_assert_eq!(dump_view(&forward), dump_view(&backward));
    }
}
