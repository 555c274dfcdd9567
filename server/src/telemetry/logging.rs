//! Structured logs: text on a terminal, one JSON object a line otherwise.

use std::io::IsTerminal;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{LogFormat, Logging};

/// What the Azure SDK tells about each failed request is told by whoever asked, if it matters: a standby's look at a chunk that is not
/// there yet is no event. `LOG_LEVEL` may name the target to hear it nevertheless.
const QUIET: &str = "typespec_client_core=error";

/// Starts logging to standard output, or to a file, for the whole process. A second call changes nothing.
///
/// # Errors
/// The level is not a valid filter, or the file cannot be opened.
pub fn start(settings: &Logging) -> Result<(), String> {
    if !settings.enabled {
        return Ok(());
    }
    let filter = EnvFilter::try_new(format!("{QUIET},{}", settings.level))
        .map_err(|error| format!("LOG_LEVEL '{}' is not a valid filter: {error}", settings.level))?;
    let is_terminal = settings.destination.is_none() && std::io::stdout().is_terminal();
    let format = settings.format.unwrap_or(if is_terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let writer = match &settings.destination {
        None => BoxMakeWriter::new(std::io::stdout),
        Some(path) => {
            let file = std::fs::File::options().create(true).append(true).open(path);
            let file = file.map_err(|error| format!("LOG_DESTINATION {}: {error}", path.display()))?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    // An error means that a subscriber is already set, as in tests that start several servers in one process.
    let _already_set = match format {
        LogFormat::Text => builder.with_ansi(is_terminal).try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
    };
    Ok(())
}
