//! From settings to a serving process, and from a signal to a stopped one.
//!
//! Start: listen (health answers at once) → agree with the replica (look; beside a living writer follow it and ask for the
//! hand-over; claim, restore) → open log and views (replay) → ship → finish interrupted sign-ups → serve. Stop: take no more requests → drain → ship everything and hand over →
//! persist the views → end. A standby whose log the writer has compacted goes from its
//! stop to its start in one process. Whoever fences us, or a failing log, ends the process: it answers errors until it is gone.

mod beginning;
mod checkpoints;
mod compaction;
mod compose;
mod deletions;
mod drills;
mod error;
mod follow;
mod handover;
mod identities;
mod lease;
mod mail;
mod pursuit;
mod removals;
mod running;
mod threads;
mod tiering;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::clock::{Clock, Entropy};
use engine::storage::Storage;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::Config;
use crate::gate::Gate;
use crate::listen;
use crate::service::mail::Mailer;
use crate::telemetry;
pub use error::ServerError;
pub use mail::send_test_mail;
use running::{Running, Served};
pub use tiering::DiskUse;

/// Serves until a signal or a failure.
///
/// # Errors
/// See [`ServerError`].
pub async fn run(config: Config, warnings: Vec<String>) -> Result<(), ServerError> {
    let mailer = Mailer::new(&config).map_err(ServerError::Other)?;
    Box::pin(run_with(config, warnings, mailer, |_| async { Ok(()) })).await
}

/// As [`run`]; `ready` runs once requests are served.
///
/// # Errors
/// See [`ServerError`].
pub async fn run_with<F, R>(
    mut config: Config,
    warnings: Vec<String>,
    mailer: Mailer,
    ready: F,
) -> Result<(), ServerError>
where
    F: FnOnce(Arc<App>) -> R,
    R: Future<Output = Result<(), ServerError>>,
{
    telemetry::logging::start(&config.logging).map_err(ServerError::Other)?;
    let _recorder = telemetry::metrics::handle();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        stop_signal().await;
        tracing::info!("asked to stop");
        signal.cancel();
    });

    allow_many_connections();
    // A file that may not grow is an error like a full disk, and not the end of the process.
    let _file_size = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::from_raw(
        rustix::process::Signal::XFSZ.as_raw(),
    ));
    let (mailer, mut ready, mut lead) = (Arc::new(mailer), Some(ready), false);
    loop {
        let address = SocketAddr::new(config.bind, config.port);
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| ServerError::io(format!("listen on {address}"), error))?;
        let port = listener
            .local_addr()
            .map_err(|error| ServerError::io("listen", error))?
            .port();
        config.port = port;
        let gate = Gate::default();
        let http_stop = CancellationToken::new();
        let http = tokio::spawn({
            let (gate, limits, http_stop) = (gate.clone(), config.http, http_stop.clone());
            async move { listen::serve(listener, gate, limits, http_stop).await }
        });
        if let Some(file) = config.port_file.clone() {
            write_port_file(&file, port)?;
        }
        tracing::info!(%address, port, url = config.public_url(), "listening");

        let started = Instant::now();
        let mut running = tokio::select! {
            running = Running::start(Arc::new(config.clone()), mailer.clone(), &gate, lead) => running?,
            () = stop.cancelled() => return Ok(()),
        };
        tracing::info!(ms = millis(started.elapsed()), "serving");
        if let Some(ready) = ready.take() {
            ready(running.app.clone()).await?;
        }
        match running.serve(&gate, &stop).await {
            Served::Ended(failure) => return running.stop(failure, http_stop, http).await,
            Served::Anew { lead: next } => {
                running.stop(None, http_stop, http).await?;
                lead = next;
            }
        }
    }
}

/// Lets this process have as many files and sockets as the system allows it; the usual default is a thousand.
fn allow_many_connections() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The doors to time, chance, the disk and people's mail.
struct Doors {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    storage: Arc<dyn Storage>,
    mailer: Arc<Mailer>,
}

/// Resolves on SIGTERM or SIGINT.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    match (terminate, interrupt) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without handlers the signals end the process at once, which the log survives.
        _ => std::future::pending::<()>().await,
    }
}

/// Asks the server on this machine whether it lives.
///
/// # Errors
/// It does not answer 200 within a few seconds.
pub async fn healthcheck() -> Result<(), ServerError> {
    let (config, _) = Config::from_env()?;
    crate::client::ensure_tls_provider();
    let host = if config.bind.is_unspecified() {
        "127.0.0.1".to_owned()
    } else {
        config.bind.to_string()
    };
    let url = format!("http://{host}:{}/_health/live", config.port);
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(4))
        .no_proxy()
        .build()
        .map_err(|error| ServerError::Other(error.to_string()))?;
    let answer = client
        .get(&url)
        .send()
        .await
        .map_err(|error| ServerError::Other(error.to_string()))?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(ServerError::Other(format!("{url} answered {}", answer.status())))
    }
}

/// Writes the port in one step, so that whoever waits for the file never reads half a number.
pub(crate) fn write_port_file(path: &Path, port: u16) -> Result<(), ServerError> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, port.to_string()).map_err(|error| ServerError::io(&temporary, error))?;
    std::fs::rename(&temporary, path).map_err(|error| ServerError::io(path, error))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
