//! An account moves between this server and the reference, both ways and back again, by the official client library. Each is a process
//! of its own; they share a did:plc directory and a mail server. `tests/node/migrate.mjs` says what must hold.

use anyhow::Context;
use tests::reference::{self, Reference};
use tests::smtp::Smtp;
use tests::stack::{Pds, ReplicaKind, Stack};
use tests::{Outcome, node, number, skip};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_moves_from_the_reference_to_us_and_back_and_here_again() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::Directory).await? else {
        return skip("the stack does not start");
    };
    let Some(smtp) = Smtp::start(&stack.place("smtp"), &[]).await? else {
        return skip("the mail server of the tests is not installed (tests/smtp/install.sh)");
    };
    let port = Some(smtp.port());
    let (Some(one), Some(two)) = tokio::try_join!(
        Reference::start(&stack, "one", port),
        Reference::start(&stack, "two", port)
    )?
    else {
        return skip(reference::MISSING);
    };
    let settings = stack
        .settings(&stack.place("ours"))
        .with_all(stack.replica(ReplicaKind::Directory, "ours-replica").await?)
        .with("PDS_SERVICE_DID", "did:web:ours.test")
        // Preferences are kept for an AppView. Nobody asks this one anything.
        .with("PDS_BSKY_APP_VIEW_URL", "http://127.0.0.1:1")
        .with("PDS_BSKY_APP_VIEW_DID", "did:web:api.example.com")
        .with("PDS_EMAIL_SMTP_URL", &format!("smtp://127.0.0.1:{}", smtp.port()))
        .with("PDS_EMAIL_FROM_ADDRESS", "noreply@ours.example.com");
    let pds = Pds::start(&settings).await?;
    let mail = stack.place("smtp/smtp.log").display().to_string();
    let records = number("PDS_MIGRATION_RECORDS", 30).to_string();
    let arguments = [
        &*one.url,
        &pds.url,
        &two.url,
        &pds.url,
        "--ours",
        &pds.url,
        "--plc",
        &stack.plc_url,
        "--mail",
        &mail,
        "--records",
        &records,
    ];
    let moves = node::run("migrate.mjs", &arguments).await.with_context(|| {
        [&one.process, &pds.process, &two.process]
            .map(tests::process::Process::tail)
            .join("\n")
    })?;
    anyhow::ensure!(moves.len() == 3, "{moves:?}");
    pds.stop().await?;
    stack.stop().await
}
