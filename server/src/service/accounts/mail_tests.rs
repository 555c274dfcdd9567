use std::time::Duration;

use serde_json::json;

use super::*;
use crate::service::mail::stub::Stub;
use crate::testkit::{Answer, Options, Server};

const RESET: &str = "com.atproto.server.requestPasswordReset";
const ADDRESS: &str = "alice@example.com";

/// A server that sends by `stub`, with the account of alice.
async fn server(stub: &Stub, extra: &[(&'static str, &str)]) -> Server {
    let mut vars = vec![
        ("PDS_EMAIL_SMTP_URL", stub.url("", "")),
        ("PDS_EMAIL_FROM_ADDRESS", "noreply@pds.example.com".to_owned()),
    ];
    vars.extend(extra.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let server = Server::with(Options {
        vars,
        ..Options::default()
    })
    .await;
    server.sign_up("alice").await;
    server
}

async fn ask(server: &Server, address: &str) -> Answer {
    server.call(RESET, &json!({ "email": address })).await
}

/// State, attempts, reason and length of the content of the only row.
async fn row(server: &Server) -> (String, u32, Option<String>, usize) {
    let read = server.app.engine.accounts().read(|conn| {
        conn.query_row("SELECT state, attempts, reason, content FROM mail", [], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get::<_, Vec<u8>>(3)?.len(),
            ))
        })
        .map_err(AccountsError::from)
    });
    read.await.unwrap()
}

async fn deliver(server: &Server) -> Duration {
    server.app.accounts.deliver_mail().await.unwrap()
}

#[tokio::test]
async fn a_mail_that_is_not_taken_outlives_a_restart_and_is_sent_once() {
    let stub = Stub::start(&[("RCPT", &["451 later", "451 later", "250 ok"])]).await;
    let server = server(&stub, &[]).await;
    assert_eq!(ask(&server, ADDRESS).await.status, 200);
    assert_eq!(row(&server).await.0, "queued", "nobody has delivered it yet");
    let wait = deliver(&server).await;
    assert!(wait <= FIRST_DELAY && wait > Duration::ZERO, "{wait:?}");
    let (state, attempts, reason, length) = row(&server).await;
    assert_eq!(
        (state.as_str(), attempts, reason.as_deref()),
        ("queued", 1, Some("SMTP 451"))
    );
    assert!(length > 0);

    let server = server.restart().await;
    deliver(&server).await;
    assert_eq!(row(&server).await.1, 1, "it is not due yet");
    server.clock.advance(delay(1));
    assert!(deliver(&server).await > delay(1), "each try waits longer");
    server.clock.advance(delay(2));
    assert_eq!(deliver(&server).await, LOOK);
    assert_eq!(row(&server).await, ("sent".to_owned(), 3, None, 0));
    deliver(&server).await;
    let messages = stub.messages();
    assert_eq!(messages.len(), 1);
    let code = messages[0]
        .split("The code is ")
        .nth(1)
        .unwrap()
        .get(..11)
        .unwrap();
    let input = json!({ "token": code, "password": "new horse" });
    let reset = server.call("com.atproto.server.resetPassword", &input).await;
    assert_eq!(reset.status, 200);
}

#[tokio::test]
async fn a_mail_that_is_refused_for_good_is_a_dead_letter_without_content() {
    let stub = Stub::start(&[("RCPT", &["550 <alice@example.com> is unknown"])]).await;
    let server = server(&stub, &[]).await;
    ask(&server, ADDRESS).await;
    assert_eq!(deliver(&server).await, LOOK);
    let dead = ("dead".to_owned(), 1, Some("SMTP 550".to_owned()), 0);
    assert_eq!(row(&server).await, dead);
    server.clock.advance(Duration::from_secs(25 * 3600));
    deliver(&server).await;
    assert_eq!(row(&server).await, dead, "the operator can still see it");
    server.clock.advance(DEAD_KEPT);
    deliver(&server).await;
    assert_eq!(server.count("SELECT count(*) FROM mail").await, 0);
}

#[tokio::test]
async fn a_mail_expires_with_its_code_and_wrong_credentials_do_not_end_it_before() {
    let stub = Stub::start(&[("AUTH", &["535 wrong"])]).await;
    let url = stub.url("user:hunter2@", "");
    let server = server(&stub, &[("PDS_EMAIL_SMTP_URL", &url)]).await;
    ask(&server, ADDRESS).await;
    let mut tries = 0;
    loop {
        let wait = deliver(&server).await;
        let (state, attempts, reason, length) = row(&server).await;
        tries += 1;
        assert_eq!(attempts, tries);
        if state == "dead" {
            let reason = reason.unwrap();
            assert!(reason.starts_with("given up: SMTP 535"), "{reason}");
            assert_eq!(length, 0);
            break;
        }
        assert!(tries < 20, "it is tried for ever");
        server.clock.advance(wait);
    }
    assert!(tries > 5, "{tries}");

    ask(&server, ADDRESS).await;
    server.clock.advance(Duration::from_secs(16 * 60));
    deliver(&server).await;
    let expired = "SELECT count(*) FROM mail WHERE state = 'dead' AND reason = 'expired'";
    assert_eq!(server.count(expired).await, 1);
}

#[tokio::test]
async fn budgets_bound_what_one_address_and_all_get_in_a_day() {
    let stub = Stub::start(&[]).await;
    let vars = [
        ("PDS_EMAIL_DAILY_PER_ADDRESS", "2"),
        ("PDS_EMAIL_DAILY_TOTAL", "3"),
    ];
    let server = server(&stub, &vars).await;
    server.sign_up("bob").await;
    server.sign_up("carol").await;
    for _ in 0..2 {
        assert_eq!(ask(&server, ADDRESS).await.status, 200);
        deliver(&server).await;
    }
    let token = "SELECT count(*) FROM email_token";
    let refused = ask(&server, "Alice@Example.com").await;
    assert_eq!(refused.error(), (429, "RateLimitExceeded".to_owned()));
    assert_eq!(ask(&server, "bob@example.com").await.status, 200);
    let refused = ask(&server, "carol@example.com").await;
    assert_eq!(refused.error(), (429, "RateLimitExceeded".to_owned()));
    assert_eq!(
        server.count(token).await,
        2,
        "no code is made for a mail that is refused"
    );
    server.clock.advance(SENT_KEPT + Duration::from_secs(1));
    deliver(&server).await;
    assert_eq!(ask(&server, ADDRESS).await.status, 200);
    assert_eq!(
        server
            .count("SELECT count(*) FROM mail WHERE state = 'sent'")
            .await,
        0,
        "sent mail is forgotten after a day"
    );
}

#[tokio::test]
async fn neither_the_log_nor_the_database_has_codes_or_addresses_of_queued_mail() {
    let stub = Stub::start(&[]).await;
    let server = server(&stub, &[]).await;
    ask(&server, ADDRESS).await;
    let content = server.app.engine.accounts().read(|conn| {
        conn.query_row("SELECT content, recipient FROM mail", [], |row| {
            Ok([row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?.into_bytes()].concat())
        })
        .map_err(AccountsError::from)
    });
    let content = content.await.unwrap();
    deliver(&server).await;
    let message = stub.messages().swap_remove(0);
    let code = message
        .split("The code is ")
        .nth(1)
        .unwrap()
        .get(..11)
        .unwrap()
        .to_owned();
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(!has(&content, "alice") && !has(&content, &code));
    for file in crate::testkit::files(server.dir.path()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!has(&bytes, &code), "{} has the code", file.display());
    }
}

#[tokio::test]
async fn what_moderators_write_is_bounded_and_leaves_by_their_server() {
    let (ordinary, theirs) = (Stub::start(&[]).await, Stub::start(&[]).await);
    let vars = [
        ("PDS_MODERATION_EMAIL_SMTP_URL", &*theirs.url("", "")),
        ("PDS_MODERATION_EMAIL_ADDRESS", "Team <mod@pds.example.com>"),
    ];
    let server = server(&ordinary, &vars).await;
    let write = |content: String| {
        let letter = Letter::Moderation {
            subject: "A word".to_owned(),
            content,
        };
        server
            .app
            .accounts
            .mail("did:plc:x", ADDRESS, letter, Vec::new(), |_| Ok(()))
    };
    assert!(matches!(write("x".repeat(70_000)).await, Err(MailError::TooLong)));
    write("<p>Hello <b>there</b></p>".to_owned()).await.unwrap();
    deliver(&server).await;
    assert!(ordinary.messages().is_empty());
    let message = theirs.messages().swap_remove(0);
    assert!(message.contains("From: Team <mod@pds.example.com>"), "{message}");
    assert!(message.contains("Hello <b>there</b>") && message.contains("\nHello there\n"));
}
