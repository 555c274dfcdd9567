use std::time::{Duration, SystemTime};

use super::super::stub::{CLOSE, HANG, Stub, config};
use super::super::{Letter, Mailer};
use super::*;

const LOGIN: &str = "user:hunter2@";

fn transport(url: &str) -> SmtpTransport {
    let config = config(url);
    SmtpTransport::new(config.mail.ordinary.as_ref().unwrap(), &config).unwrap()
}

async fn send(transport: &SmtpTransport, to: &str) -> Result<(), SmtpFailure> {
    let letter = Letter::ResetPassword {
        handle: "alice.test".to_owned(),
        token: "ABCDE-23456".to_owned(),
    };
    let mail = Mailer::none().render(to, &letter, String::new());
    transport.send("0123", &mail, SystemTime::UNIX_EPOCH).await
}

#[tokio::test]
async fn a_mail_has_two_forms_and_the_headers_that_receivers_want() {
    let stub = Stub::start(&[]).await;
    send(&transport(&stub.url(LOGIN, "")), "alice@example.com")
        .await
        .unwrap();
    assert!(stub.heard("EHLO pds.example.com"));
    assert!(stub.heard("AUTH PLAIN"));
    assert!(stub.heard("MAIL FROM:<noreply@pds.example.com>"));
    assert!(stub.heard("RCPT TO:<alice@example.com>"));
    let messages = stub.messages();
    let [message] = &messages[..] else {
        panic!("{messages:?}")
    };
    for part in [
        "Message-ID: <0123@pds.example.com>",
        "Date: Thu, 01 Jan 1970 00:00:00 +0000",
        "From: \"pds.example.com PDS\" <noreply@pds.example.com>",
        "To: alice@example.com",
        "Subject: Password Reset Requested",
        "Auto-Submitted: auto-generated",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "The code is ABCDE-23456",
    ] {
        assert!(message.contains(part), "{part} is missing in:\n{message}");
    }
}

#[tokio::test]
async fn what_servers_say_decides_whether_a_mail_is_tried_again_and_is_not_repeated() {
    type Case = (&'static str, &'static [&'static str], &'static str, bool);
    let cases: &[Case] = &[
        ("greeting", &["421 later"], "SMTP 421", false),
        (
            "greeting",
            &["what do you want"],
            "the server does not speak SMTP",
            false,
        ),
        ("MAIL", &["451 busy"], "SMTP 451", false),
        ("RCPT", &["450 greylisted"], "SMTP 450", false),
        (
            "RCPT",
            &["550 5.1.1 <alice@example.com> is unknown"],
            "SMTP 550",
            true,
        ),
        ("DATA", &["554 no"], "SMTP 554", true),
        ("message", &["452 disk full"], "SMTP 452", false),
        ("message", &["554 spam ABCDE-23456"], "SMTP 554", true),
        (
            "AUTH",
            &["535 wrong"],
            "SMTP 535: the server does not accept our credentials",
            false,
        ),
    ];
    for (verb, answers, reason, is_final) in cases {
        let stub = Stub::start(&[(verb, answers)]).await;
        let failure = send(&transport(&stub.url(LOGIN, "")), "alice@example.com")
            .await
            .unwrap_err();
        let wanted = SmtpFailure {
            reason: (*reason).to_owned(),
            is_final: *is_final,
        };
        assert_eq!(failure, wanted, "{verb} {answers:?}");
        assert!(stub.messages().is_empty());
    }
}

#[tokio::test]
async fn connections_that_break_or_hang_or_are_refused_are_tried_again() {
    for verb in ["greeting", "EHLO", "RCPT", "message"] {
        let stub = Stub::start(&[(verb, &[CLOSE])]).await;
        let failure = send(&transport(&stub.url("", "")), "alice@example.com")
            .await
            .unwrap_err();
        assert!(!failure.is_final, "{verb}: {failure:?}");
    }
    for verb in ["greeting", "RCPT", "message"] {
        let stub = Stub::start(&[(verb, &[HANG])]).await;
        let mut transport = transport(&stub.url("", ""));
        transport.limit = Duration::from_millis(300);
        let failure = send(&transport, "alice@example.com").await.unwrap_err();
        assert_eq!(
            failure,
            SmtpFailure {
                reason: "the server took too long".to_owned(),
                is_final: false
            }
        );
    }
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("smtp://127.0.0.1:{}", gone.local_addr().unwrap().port());
    drop(gone);
    let failure = send(&transport(&url), "alice@example.com").await.unwrap_err();
    assert!(
        !failure.is_final && failure.reason.contains("refused"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_password_is_not_sent_where_tls_is_required_or_offered_and_fails() {
    let without = Stub::start(&[]).await;
    let required = transport(&without.url(LOGIN, "?requireTLS=true"));
    let failure = send(&required, "alice@example.com").await.unwrap_err();
    assert!(!failure.is_final, "{failure:?}");
    assert!(!without.heard("AUTH") && !without.heard("MAIL"));

    let offer = "250-stub\r\n250-STARTTLS\r\n250 AUTH PLAIN";
    let broken = Stub::start(&[("EHLO", &[offer]), ("STARTTLS", &["220 go on\r\nnot TLS at all"])]).await;
    let failure = send(&transport(&broken.url(LOGIN, "")), "alice@example.com")
        .await
        .unwrap_err();
    assert!(!failure.is_final, "{failure:?}");
    assert!(broken.heard("STARTTLS") && !broken.heard("AUTH") && !broken.heard("MAIL"));
}

#[tokio::test]
async fn a_receiver_that_is_no_address_is_refused_for_good_and_reaches_no_server() {
    let stub = Stub::start(&[]).await;
    for to in ["nobody", "a@b.co\r\nRCPT TO:<c@d.co>", "a@b.co>, <c@d.co"] {
        let failure = send(&transport(&stub.url("", "")), to).await.unwrap_err();
        assert!(failure.is_final && !failure.reason.contains('@'), "{failure:?}");
    }
    assert!(!stub.heard("EHLO"));
}

#[test]
fn neither_settings_nor_their_summary_show_the_password() {
    let config = config("smtps://user:hunter2@mail.example.com");
    let shown = format!("{config:?} {:?}", config.summary());
    assert!(
        !shown.contains("hunter2@") && !shown.contains("hunter2\""),
        "{shown}"
    );
    assert!(
        config
            .summary()
            .iter()
            .any(|line| line.contains("mail.example.com:465, TLS"))
    );
}
