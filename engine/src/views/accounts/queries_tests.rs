//! Every statement of the account database against a bare schema.

use super::model::Actor;
use super::model::{ActorStatus, AppPassword, PasswordHash, RefreshToken, Rotation, SigningKey};
use super::tests::{actor, bare, login};
use super::{iso_time, queries};

#[test]
fn refresh_tokens_rotate_with_a_grace_time_that_reuse_does_not_extend() {
    const HOUR: u64 = 3_600_000_000;
    const NOW: u64 = 1_767_225_600_000_000;
    let conn = bare();
    let token = |id: &str, expires: u64| RefreshToken {
        id: id.to_owned(),
        did: "did:plc:a".to_owned(),
        expires_at: iso_time(expires),
        next_id: None,
        app_password_name: Some("phone".to_owned()),
    };
    let rotate = |id: &str, next: &str, now: u64| {
        queries::rotate_refresh_token(&conn, id, next, now, &iso_time(now + 1000 * HOUR)).unwrap()
    };
    let next_of = |rotation: Rotation| match rotation {
        Rotation::Rotated { next_id, .. } => next_id,
        other => panic!("{other:?}"),
    };
    let expiry = |id: &str| queries::refresh_token(&conn, id).unwrap().unwrap().expires_at;

    assert_eq!(rotate("none", "x", NOW), Rotation::Revoked);
    queries::insert_refresh_token(&conn, &token("first", NOW + 100 * HOUR)).unwrap();
    queries::insert_refresh_token(&conn, &token("stale", NOW - HOUR)).unwrap();

    assert_eq!(next_of(rotate("first", "second", NOW)), "second");
    assert_eq!(
        expiry("first"),
        iso_time(NOW + 2 * HOUR),
        "shortened to the grace time"
    );
    assert_eq!(expiry("second"), iso_time(NOW + 1000 * HOUR));
    assert!(
        queries::refresh_token(&conn, "stale").unwrap().is_none(),
        "expired ones go"
    );
    let second = queries::refresh_token(&conn, "second").unwrap().unwrap();
    assert_eq!(
        second.app_password_name.as_deref(),
        Some("phone"),
        "the session stays what it was"
    );

    assert_eq!(
        next_of(rotate("first", "other", NOW + HOUR)),
        "second",
        "reuse gives the same successor"
    );
    assert_eq!(
        expiry("first"),
        iso_time(NOW + 2 * HOUR),
        "and does not extend the grace"
    );
    assert_eq!(expiry("second"), iso_time(NOW + 1000 * HOUR), "nor the successor");
    assert!(queries::refresh_token(&conn, "other").unwrap().is_none());

    assert_eq!(
        rotate("first", "x", NOW + 2 * HOUR),
        Rotation::Expired,
        "at its very end it is over"
    );
    assert_eq!(
        rotate("first", "x", NOW + 2 * HOUR),
        Rotation::Revoked,
        "and gone"
    );

    queries::insert_refresh_token(&conn, &token("short", NOW + HOUR)).unwrap();
    assert_eq!(next_of(rotate("short", "short2", NOW)), "short2");
    assert_eq!(expiry("short"), iso_time(NOW + HOUR), "never later than it was");

    assert!(queries::delete_refresh_token(&conn, "second").unwrap());
    assert!(!queries::delete_refresh_token(&conn, "second").unwrap());
    assert_eq!(
        queries::delete_refresh_tokens_of_app_password(&conn, "did:plc:a", "phone").unwrap(),
        2
    );
    assert_eq!(queries::delete_refresh_tokens_of(&conn, "did:plc:a").unwrap(), 0);
}

#[test]
fn accounts_are_found_by_did_handle_and_address_in_any_case() {
    let conn = bare();
    queries::insert_actor(&conn, &actor("did:plc:a", "Alice.test")).unwrap();
    queries::insert_login(&conn, "did:plc:a", &login("Alice@Example.com")).unwrap();
    queries::insert_actor(&conn, &actor("did:plc:b", "bob.test")).unwrap();
    let alice = queries::account_by_did(&conn, "did:plc:a").unwrap().unwrap();
    assert_eq!(alice.login.as_ref().unwrap().email, "alice@example.com");
    assert!(!format!("{alice:?}").contains("salt"), "hashes are not printed");
    assert_eq!(
        queries::account_by_handle(&conn, "aLICE.test").unwrap().as_ref(),
        Some(&alice)
    );
    assert_eq!(
        queries::account_by_email(&conn, "ALICE@example.COM")
            .unwrap()
            .as_ref(),
        Some(&alice)
    );
    assert_eq!(
        queries::account_by_did(&conn, "did:plc:b")
            .unwrap()
            .unwrap()
            .login,
        None
    );
    assert_eq!(queries::account_by_handle(&conn, "nobody.test").unwrap(), None);
    assert!(queries::set_handle(&conn, "did:plc:b", "Robert.test").unwrap());
    assert!(
        queries::account_by_handle(&conn, "robert.test")
            .unwrap()
            .is_some()
    );
    assert!(queries::set_password(&conn, "did:plc:a", &PasswordHash("new".into())).unwrap());
    assert!(!queries::set_password(&conn, "did:plc:b", &PasswordHash("new".into())).unwrap());
}

#[test]
fn a_takedown_wins_over_deactivation_and_keeps_it() {
    let conn = bare();
    queries::insert_actor(&conn, &actor("did:plc:a", "a.test")).unwrap();
    let status = || {
        queries::account_by_did(&conn, "did:plc:a")
            .unwrap()
            .unwrap()
            .actor
            .status()
    };
    assert_eq!(status(), ActorStatus::Active);
    assert!(queries::deactivate(&conn, "did:plc:a", "t", Some("later")).unwrap());
    assert_eq!(status().wire_name(), Some("deactivated"));
    assert_eq!(queries::count_actors(&conn).unwrap().deactivated, 1);
    assert!(queries::set_takedown(&conn, "did:plc:a", Some("t")).unwrap());
    assert_eq!(status().wire_name(), Some("takendown"));
    assert!(
        !queries::activate(&conn, "did:plc:a").unwrap(),
        "not while taken down"
    );
    let counts = queries::count_actors(&conn).unwrap();
    assert_eq!((counts.active, counts.deactivated, counts.takendown), (0, 0, 1));
    assert!(queries::set_takedown(&conn, "did:plc:a", None).unwrap());
    assert_eq!(status(), ActorStatus::Deactivated);
    assert!(queries::activate(&conn, "did:plc:a").unwrap());
    assert!(status().is_active());
}

#[test]
fn actors_are_listed_by_creation_then_did_from_a_cursor() {
    let conn = bare();
    for (did, at) in [
        ("did:plc:c", 1),
        ("did:plc:a", 2),
        ("did:plc:b", 2),
        ("did:plc:d", 3),
    ] {
        let row = Actor {
            created_at: iso_time(at * 1_000),
            ..actor(did, did)
        };
        queries::insert_actor(&conn, &row).unwrap();
    }
    let mut seen = Vec::new();
    let mut cursor: Option<(String, String)> = None;
    loop {
        let after = cursor.as_ref().map(|(at, did)| (at.as_str(), did.as_str()));
        let page = queries::list_actors(&conn, after, 3).unwrap();
        let Some(last) = page.last() else { break };
        cursor = Some((last.created_at.clone(), last.did.clone()));
        seen.extend(page.into_iter().map(|actor| actor.did));
    }
    assert_eq!(seen, ["did:plc:c", "did:plc:a", "did:plc:b", "did:plc:d"]);
}

#[test]
fn keys_and_app_passwords_are_stored_and_found() {
    let conn = bare();
    assert_eq!(queries::signing_key(&conn, "did:plc:a").unwrap(), None);
    let key = |wrapped: &[u8]| SigningKey {
        did: "did:plc:a".into(),
        public_key: "did:key:z".into(),
        wrapped: wrapped.to_vec(),
        created_at: "t".into(),
    };
    queries::put_signing_key(&conn, &key(&[1, 2])).unwrap();
    queries::put_signing_key(&conn, &key(&[3])).unwrap();
    assert_eq!(queries::signing_key(&conn, "did:plc:a").unwrap(), Some(key(&[3])));

    conn.execute(
        "INSERT INTO app_password VALUES ('did:plc:a', 'phone', 'h', 't', 1)",
        [],
    )
    .unwrap();
    let phone = AppPassword {
        name: "phone".into(),
        created_at: "t".into(),
        privileged: true,
    };
    let by_hash = |hash: &str| queries::app_password_by_hash(&conn, "did:plc:a", &PasswordHash(hash.into()));
    assert_eq!(by_hash("h").unwrap(), Some(phone.clone()));
    assert_eq!(by_hash("other").unwrap(), None);
    assert_eq!(
        queries::app_password_by_name(&conn, "did:plc:a", "phone").unwrap(),
        Some(phone)
    );
}
