//! Queued mail leaves.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::clock::{Entropy, SystemEntropy};
use tokio_util::sync::CancellationToken;

use super::ServerError;
use crate::app::App;
use crate::config::Config;
use crate::service::mail::{Letter, Mailer, SmtpTransport};

/// Shortest time between two looks at the queue.
const SHORTEST: Duration = Duration::from_millis(100);
/// How long it is left alone when the queue cannot be read or written.
const AFTER_FAILURE: Duration = Duration::from_secs(15);

/// Sends mail until `stop`; what is being sent then is let finish, so that it is not sent twice.
pub(super) async fn mail(app: Arc<App>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let wait = match app.accounts.deliver_mail().await {
            Ok(wait) => wait.max(SHORTEST),
            Err(error) => {
                tracing::warn!(%error, "the queue of mail cannot be worked on");
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = app.mailer.woken() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Sends a mail by each configured server, at once and without the queue, and prints what came of it.
///
/// # Errors
/// No server is configured, or one did not take the mail.
pub async fn send_test_mail(config: Config, address: String) -> Result<(), ServerError> {
    crate::client::ensure_tls_provider();
    let servers = [&config.mail.ordinary, &config.mail.moderation];
    let mut failed = 0;
    for server in servers.iter().copied().flatten() {
        let place = format!("{}:{}", server.host, server.port);
        let transport = SmtpTransport::new(server, &config).map_err(ServerError::Other)?;
        let mail =
            Mailer::new(&config)
                .map_err(ServerError::Other)?
                .render(&address, &Letter::Test, String::new());
        let mut random = [0; 16];
        SystemEntropy
            .fill(&mut random)
            .map_err(|error| ServerError::io("randomness", error))?;
        let id = data_encoding::HEXLOWER.encode(&random);
        match transport.send(&id, &mail, SystemTime::now()).await {
            Ok(()) => println!("mail server {place} took the mail to {address}"),
            Err(failure) => {
                failed += 1;
                println!("mail server {place} did not take the mail: {}", failure.reason);
            }
        }
    }
    if servers.iter().all(|server| server.is_none()) {
        return Err(ServerError::Other("PDS_EMAIL_SMTP_URL is not set".to_owned()));
    }
    if failed > 0 {
        return Err(ServerError::Other("a test mail was not taken".to_owned()));
    }
    Ok(())
}
