//! Structured logs: text on a terminal, one JSON object a line otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Logging};

/// Starts logging to standard output for the whole process. A second call changes nothing.
///
/// # Errors
/// The level is not a valid filter.
pub fn start(settings: &Logging) -> Result<(), String> {
    if !settings.enabled {
        return Ok(());
    }
    let filter = EnvFilter::try_new(&settings.level)
        .map_err(|error| format!("LOG_LEVEL '{}' is not a valid filter: {error}", settings.level))?;
    let format = settings.format.unwrap_or(if std::io::stdout().is_terminal() {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // An error means that a subscriber is already set, as in tests that start several servers in one process.
    let _already_set = match format {
        LogFormat::Text => builder.with_ansi(std::io::stdout().is_terminal()).try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
    };
    Ok(())
}
