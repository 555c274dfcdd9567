//! Mail by a real mail server: it arrives whole, over a connection that is protected as the settings say; what is put off is tried
//! again, also after the server was killed; what is refused for good is a dead letter; and logs tell neither codes nor addresses.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::process::{Process, program};
use tests::smtp::Smtp;
use tests::stack::{Pds, ReplicaKind, SOON, Settings, Stack};
use tests::{Outcome, skip};

const RESET: &str = "com.atproto.server.requestPasswordReset";
const MISSING: &str = "the mail server of the tests is not installed (tests/smtp/install.sh)";

fn with_mail(settings: Settings, url: &str) -> Settings {
    settings
        .with("PDS_EMAIL_SMTP_URL", url)
        .with("PDS_EMAIL_FROM_ADDRESS", "The PDS <noreply@pds.example.com>")
        .with("PDS_SERVICE_NAME", "Ink & Quill")
}

async fn ask(pds: &Pds, address: &str) -> Result<()> {
    let answer = pds
        .api
        .procedure(RESET, &json!({ "email": address }), None)
        .await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(())
}

fn code(mail: &Value) -> Result<String> {
    let text = mail["text"].as_str().context("no text")?;
    let code = text.split("The code is ").nth(1).and_then(|rest| rest.get(..11));
    Ok(code.with_context(|| text.to_owned())?.to_owned())
}

/// Waits until a metric has a value.
async fn metric(pds: &Pds, line: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let metrics = pds.api.get("/metrics").await?.text();
        if metrics.lines().any(|there| there == line) {
            return Ok(());
        }
        ensure!(started.elapsed() < SOON, "no '{line}' in:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailed_code_works_and_what_is_put_off_outlives_a_kill() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::Directory).await? else {
        return skip("the stack does not start");
    };
    let Some(smtp) = Smtp::start(&stack.place("smtp"), &["auth"]).await? else {
        return skip(MISSING);
    };
    let url = format!("smtp://pds:hunter2@127.0.0.1:{}", smtp.port());
    let settings = with_mail(stack.settings(&stack.place("mail")), &url)
        .with_all(stack.replica(ReplicaKind::Directory, "mail-replica").await?);
    let mut pds = Pds::start(&settings).await?;
    let alice = pds.api.create_account("alice").await?;
    for name in ["greylisted", "bounces"] {
        pds.api.create_account(name).await?;
    }
    ask(&pds, "alice@example.com").await?;
    let mail = smtp.mail_to("alice@example.com", SOON).await?;
    ensure!(
        mail["from"] == "noreply@pds.example.com" && mail["user"] == true,
        "{mail}"
    );
    ensure!(mail["headers"]["subject"] == "Password Reset Requested", "{mail}");
    let html = mail["html"].as_str().unwrap_or_default();
    let first = code(&mail)?;
    ensure!(
        html.contains(&first) && html.contains("Ink &amp; Quill"),
        "{html}"
    );
    let input = json!({ "token": first, "password": "another horse" });
    let reset = pds
        .api
        .procedure("com.atproto.server.resetPassword", &input, None)
        .await?;
    ensure!(reset.status == 200, "{}", reset.text());
    let input = json!({ "identifier": alice.handle, "password": "another horse" });
    let session = pds
        .api
        .procedure("com.atproto.server.createSession", &input, None)
        .await?;
    ensure!(session.status == 200, "{}", session.text());

    ask(&pds, "bounces@example.com").await?;
    metric(&pds, "pds_mail_dead_letters 1").await?;
    ask(&pds, "greylisted@example.com").await?;
    metric(&pds, "pds_mail_total{outcome=\"retried\"} 1").await?;
    pds.process.kill().await?;
    let before = pds.process.output();
    let pds = Pds::start(&settings).await?;
    let late = smtp.mail_to("greylisted@example.com", SOON).await?;
    metric(&pds, "pds_mail_queued 0").await?;
    let taken = smtp.told().iter().filter(|told| told["to"].is_array()).count();
    ensure!(taken == 2, "a mail came twice: {:?}", smtp.told());

    let log = before + &pds.process.output();
    for private in [first.as_str(), &code(&late)?, "@example.com", "hunter2"] {
        ensure!(!log.contains(private), "the log has '{private}'");
    }
    ensure!(log.contains("SMTP 550") && log.contains("SMTP 451"), "{log}");
    pds.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_is_protected_as_the_settings_say_or_not_sent() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::None).await? else {
        return skip("the stack does not start");
    };
    for (name, modes, url, options) in [
        (
            "starttls",
            ["auth", "starttls"].as_slice(),
            "smtp",
            "?requireTLS=true",
        ),
        ("tls", &["auth", "tls"], "smtps", ""),
    ] {
        let Some(smtp) = Smtp::start(&stack.place(name), modes).await? else {
            return skip(MISSING);
        };
        let url = format!("{url}://pds:hunter2@localhost:{}{options}", smtp.port());
        let settings = with_mail(stack.settings(&stack.place(&format!("pds-{name}"))), &url);
        let pds = Pds::start(&settings.clone().with_all(vec![smtp.trust()])).await?;
        pds.api.create_account("alice").await?;
        ask(&pds, "alice@example.com").await?;
        let mail = smtp.mail_to("alice@example.com", SOON).await?;
        ensure!(mail["tls"] == true && mail["user"] == true, "{name}: {mail}");
        pds.stop().await?;

        // Without trust nothing is sent, and it is tried again: an operator can put it right.
        let pds = Pds::start(&settings).await?;
        pds.api.create_account("bob").await?;
        ask(&pds, "bob@example.com").await?;
        metric(&pds, "pds_mail_total{outcome=\"retried\"} 1").await?;
        ensure!(smtp.told().len() == 1, "{name}: {:?}", smtp.told());
        pds.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_try_the_mail_settings() -> Outcome {
    let dir = tempfile::TempDir::with_prefix("pds-test-")?;
    let Some(smtp) = Smtp::start(&dir.path().join("smtp"), &["auth"]).await? else {
        return skip(MISSING);
    };
    let run = |password: &str, address: &str| {
        let url = format!("smtp://pds:{password}@127.0.0.1:{}", smtp.port());
        let env = [
            ("PDS_JWT_SECRET", "0123456789abcdef0123"),
            ("PDS_ADMIN_PASSWORD", "an admin password"),
            (
                "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
                "1111111111111111111111111111111111111111111111111111111111111111",
            ),
            ("PDS_EMAIL_SMTP_URL", &*url),
            ("PDS_EMAIL_FROM_ADDRESS", "noreply@pds.example.com"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let arguments = ["check-config", "--send-test-mail", address].map(OsStr::new);
        let output = dir.path().join(format!("{password}-{address}.out"));
        Process::spawn(&program("pds")?, &arguments, &env, &output)
    };
    let mut good = run("hunter2", "operator@example.com")?;
    let status = good.wait(SOON).await?;
    ensure!(status.success(), "{}", good.tail());
    ensure!(!good.output().contains("hunter2"), "{}", good.output());
    let mail = smtp.mail_to("operator@example.com", SOON).await?;
    ensure!(mail["headers"]["subject"] == "Test", "{mail}");
    for (password, address, told) in [
        ("wrong", "operator@example.com", "SMTP 535"),
        ("hunter2", "bounces@example.com", "SMTP 550"),
    ] {
        let mut bad = run(password, address)?;
        let status = bad.wait(SOON).await?;
        ensure!(
            !status.success() && bad.output().contains(told),
            "{}",
            bad.output()
        );
    }
    Ok(())
}
