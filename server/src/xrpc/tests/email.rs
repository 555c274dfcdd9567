//! What goes by way of codes that are mailed: an address is confirmed, or changed. For passwords see `accounts`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::testkit::{Answer, PASSWORD, Server, User, user};

const ASK_CONFIRM: &str = "com.atproto.server.requestEmailConfirmation";
const CONFIRM: &str = "com.atproto.server.confirmEmail";
const ASK_UPDATE: &str = "com.atproto.server.requestEmailUpdate";
const UPDATE: &str = "com.atproto.server.updateEmail";
const SESSION: &str = "com.atproto.server.getSession";

/// The code of the newest mail, which must be to `to` and be about `subject`.
pub(super) fn mailed(server: &Server, to: &str, subject: &str) -> String {
    let mail = server.app.mailer.kept().unwrap().swap_remove(0);
    assert_eq!((mail.to.as_str(), mail.subject.as_str()), (to, subject));
    let code = mail.text.split("The code is ").nth(1).unwrap();
    let code = code.split(' ').next().unwrap().to_owned();
    assert_eq!(code.len(), 11, "{code}");
    code
}

fn mails(server: &Server) -> usize {
    server.app.mailer.kept().unwrap().len()
}

pub(super) fn done(answer: &Answer) {
    assert_eq!(
        (answer.status.as_u16(), answer.body.len()),
        (200, 0),
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
}

async fn confirm(server: &Server, user: &User) {
    done(&server.poke_as(&user.access, ASK_CONFIRM).await);
    let email = session(server, user).await["email"].as_str().unwrap().to_owned();
    let code = mailed(server, &email, "Email Confirmation");
    let input = json!({"email": email, "token": code});
    done(&server.call_as(&user.access, CONFIRM, &input).await);
}

async fn session(server: &Server, user: &User) -> Value {
    server.query_as(&user.access, SESSION, "").await.ok()
}

#[tokio::test]
async fn an_address_is_confirmed_with_the_newest_code_once() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    let ask = async |user: &User, email: &str| {
        done(&server.poke_as(&user.access, ASK_CONFIRM).await);
        mailed(&server, email, "Email Confirmation")
    };
    let try_code = async |user: &User, email: &str, token: &str| {
        let input = json!({"email": email, "token": token});
        server.call_as(&user.access, CONFIRM, &input).await
    };
    let old = ask(&alice, "alice@example.com").await;
    let of_bobby = ask(&bobby, "bobby@example.com").await;
    let code = ask(&alice, "alice@example.com").await;
    for (email, token, name) in [
        ("alice@example.com", old.as_str(), "InvalidToken"),
        ("alice@example.com", of_bobby.as_str(), "InvalidToken"),
        ("alice@example.com", "", "InvalidToken"),
        ("bobby@example.com", code.as_str(), "InvalidEmail"),
        ("nobody@example.com", code.as_str(), "InvalidEmail"),
    ] {
        let answer = try_code(&alice, email, token).await;
        assert_eq!(answer.error(), (400, name.to_owned()), "{email} {token}");
    }
    assert_eq!(session(&server, &alice).await["emailConfirmed"], false);
    done(&try_code(&alice, "Alice@Example.com", &code.to_lowercase()).await);
    assert_eq!(session(&server, &alice).await["emailConfirmed"], true);
    assert_eq!(session(&server, &bobby).await["emailConfirmed"], false);
    let again = try_code(&alice, "alice@example.com", &code).await;
    assert_eq!(again.error(), (400, "InvalidToken".into()));
    let late = ask(&bobby, "bobby@example.com").await;
    server.clock.advance(Duration::from_secs(14 * 60));
    let other = server
        .call_as(&bobby.access, CONFIRM, &json!({"email": "x", "token": late}))
        .await;
    assert_eq!(
        other.error(),
        (400, "InvalidEmail".into()),
        "asked for before the code"
    );
    server.clock.advance(Duration::from_secs(61));
    let answer = try_code(&bobby, "bobby@example.com", &late).await;
    assert_eq!(answer.error(), (400, "ExpiredToken".into()));
    let missing = server
        .call_as(&bobby.access, CONFIRM, &json!({"email": "x"}))
        .await;
    assert_eq!(missing.error(), (400, "InvalidRequest".into()));
}

#[tokio::test]
async fn an_unconfirmed_address_changes_at_once_and_a_confirmed_one_with_a_code() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    let update = async |input: Value| server.call_as(&alice.access, UPDATE, &input).await;
    for (email, message) in [
        (
            "nope",
            "This email address is not supported, please use a different email.",
        ),
        (
            "Bobby@example.com",
            "This email address is already in use, please use a different email.",
        ),
    ] {
        let answer = update(json!({ "email": email })).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()));
        assert_eq!(answer.json()["message"], message);
    }
    let required = server.poke_as(&alice.access, ASK_UPDATE).await.ok();
    assert_eq!((required, mails(&server)), (json!({"tokenRequired": false}), 0));
    done(&update(json!({"email": "First@example.com"})).await);
    assert_eq!(session(&server, &alice).await["email"], "first@example.com");
    confirm(&server, &alice).await;

    assert_eq!(
        update(json!({"email": "second@example.com"})).await.error(),
        (400, "TokenRequired".into())
    );
    let required = server.poke_as(&alice.access, ASK_UPDATE).await.ok();
    assert_eq!(required, json!({"tokenRequired": true}));
    let code = mailed(&server, "first@example.com", "Email Update Requested");
    confirm(&server, &bobby).await;
    server.poke_as(&bobby.access, ASK_UPDATE).await.ok();
    let of_bobby = mailed(&server, "bobby@example.com", "Email Update Requested");
    for wrong in [of_bobby.as_str(), "AAAAA-AAAAA", ""] {
        let answer = update(json!({"email": "second@example.com", "token": wrong})).await;
        assert_eq!(answer.error(), (400, "InvalidToken".into()));
    }
    let taken = update(json!({"email": "bobby@example.com", "token": code})).await;
    assert_eq!(
        taken.error(),
        (400, "InvalidRequest".into()),
        "and the code is still good"
    );
    done(&server.poke_as(&alice.access, ASK_CONFIRM).await);
    let to_the_old = mailed(&server, "first@example.com", "Email Confirmation");
    let before = mails(&server);
    done(&update(json!({"email": "second@example.com", "token": code})).await);
    assert_eq!(mails(&server), before, "the new address gets no mail by itself");
    let now = session(&server, &alice).await;
    assert_eq!(
        (&now["email"], &now["emailConfirmed"]),
        (&json!("second@example.com"), &json!(false))
    );
    let input = json!({"email": "second@example.com", "token": to_the_old});
    let answer = server.call_as(&alice.access, CONFIRM, &input).await;
    assert_eq!(
        answer.error(),
        (400, "InvalidToken".into()),
        "codes that went to the old address are gone"
    );
    assert_eq!(
        server.count("SELECT count(*) FROM email_token").await,
        1,
        "Bobby's"
    );
    // Sessions stay.
    server
        .poke_as(&alice.refresh, "com.atproto.server.refreshSession")
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_code_changes_an_address_once_however_many_use_it_at_once() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    confirm(&server, &alice).await;
    server.poke_as(&alice.access, ASK_UPDATE).await.ok();
    let code = mailed(&server, "alice@example.com", "Email Update Requested");
    let inputs: Vec<Value> = (0..6)
        .map(|n| json!({"email": format!("new{n}@example.com"), "token": code}))
        .collect();
    let updates = inputs
        .iter()
        .map(|input| server.call_as(&alice.access, UPDATE, input));
    let answers = futures_util::future::join_all(updates).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!(answer.error(), (400, "InvalidToken".into()));
    }
}

#[tokio::test]
async fn app_passwords_confirm_an_address_and_do_not_change_it() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let made = server
        .call_as(
            &alice.access,
            "com.atproto.server.createAppPassword",
            &json!({"name": "x"}),
        )
        .await
        .ok();
    let input = json!({"identifier": "alice.test", "password": made["password"]});
    let app = user(&server.call("com.atproto.server.createSession", &input).await.ok());
    confirm(&server, &app).await;
    for answer in [
        server.poke_as(&app.access, ASK_UPDATE).await,
        server
            .poke_as(&app.access, "com.atproto.server.requestAccountDelete")
            .await,
        server
            .call_as(&app.access, UPDATE, &json!({"email": "x@example.com"}))
            .await,
    ] {
        assert_eq!(answer.error(), (400, "InvalidToken".into()));
    }
}

#[tokio::test]
async fn accounts_that_are_taken_down_or_have_no_address_get_no_codes() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let input = json!({"handle": "marvin.test", "email": "r@example.com"});
    let robot = user(&server.call("com.atproto.server.createAccount", &input).await.ok());
    for ask in [ASK_CONFIRM, ASK_UPDATE] {
        let answer = server.poke_as(&robot.access, ask).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()));
        assert_eq!(answer.json()["message"], "account does not have an email address");
    }
    let answer = server
        .call_as(&robot.access, UPDATE, &json!({"email": "r@example.com"}))
        .await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));
    server
        .sql("UPDATE actor SET takedownRef = 'x' WHERE did = ?1", &alice.did)
        .await;
    for ask in [ASK_CONFIRM, ASK_UPDATE] {
        let answer = server.poke_as(&alice.access, ask).await;
        assert_eq!(answer.error(), (401, "AccountTakedown".into()));
    }
    assert_eq!(mails(&server), 0);
    // A password is reset whatever the account's state.
    done(
        &server
            .call(
                "com.atproto.server.requestPasswordReset",
                &json!({"email": "alice@example.com"}),
            )
            .await,
    );
    let code = mailed(&server, "alice@example.com", "Password Reset Requested");
    let input = json!({"token": format!(" {code} "), "password": PASSWORD});
    done(&server.call("com.atproto.server.resetPassword", &input).await);
}

#[tokio::test]
async fn a_code_is_for_one_purpose() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    done(&server.poke_as(&alice.access, ASK_CONFIRM).await);
    let code = mailed(&server, "alice@example.com", "Email Confirmation");
    let input = json!({"token": code, "password": "new"});
    let answer = server.call("com.atproto.server.resetPassword", &input).await;
    assert_eq!(answer.error(), (400, "InvalidToken".into()));
    let input = json!({"did": alice.did, "token": code, "password": PASSWORD});
    let answer = server.call("com.atproto.server.deleteAccount", &input).await;
    assert_eq!(answer.error(), (400, "InvalidToken".into()));
}
