//! The `pds` program.

mod allocator;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use server::config::Config;
use server::config::settings::{self, Origin};

/// An AT Protocol Personal Data Server whose only source of truth is a log, replicated as it is written.
///
/// Settings come from the environment; `pds check-config --list` prints them all.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (the default).
    Run,
    /// Follow the writer on the same replica: serve reads and the firehose, and take over by command or when it is gone.
    Standby,
    /// Serve on this machine alone, with everything embedded: a did:plc directory, a replica in a directory, an account.
    Dev {
        /// Port to listen on; 0 takes a free one.
        #[arg(long, default_value_t = 2583)]
        port: u16,
        /// Where everything is kept.
        #[arg(long, default_value = "./data")]
        data: PathBuf,
    },
    /// Read the settings, print what is in force or what is wrong, and end.
    CheckConfig {
        /// Print every known setting instead.
        #[arg(long)]
        list: bool,
        /// As the table in the documentation.
        #[arg(long, requires = "list")]
        markdown: bool,
        /// Also send a mail to this address by each configured mail server.
        #[arg(long, value_name = "ADDRESS", conflicts_with = "list")]
        send_test_mail: Option<String>,
    },
    /// Ask the server on this machine whether it lives; for container health checks.
    Healthcheck,
    /// Run the embedded did:plc directory alone, for tests.
    Plc {
        /// Port to listen on; 0 takes a free one.
        #[arg(long, default_value_t = 2582)]
        port: u16,
        /// Where operations are kept.
        #[arg(long)]
        dir: PathBuf,
        /// File to write the port to once it listens.
        #[arg(long)]
        port_file: Option<PathBuf>,
    },
}

/// The exit code of a server that another one took over from.
const EXIT_FENCED: u8 = 3;
/// The exit code of wrong settings.
const EXIT_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command.unwrap_or(Command::Run) {
        Command::CheckConfig {
            list: true, markdown, ..
        } => {
            if markdown {
                print!("{}", settings::markdown());
            } else {
                list_settings();
            }
            ExitCode::SUCCESS
        }
        Command::CheckConfig { send_test_mail, .. } => match Config::from_env() {
            Ok((config, warnings)) => {
                config.summary().iter().for_each(|line| println!("{line}"));
                warnings.iter().for_each(|warning| println!("warning: {warning}"));
                match send_test_mail {
                    Some(address) => in_runtime(server::start::send_test_mail(config, address)),
                    None => ExitCode::SUCCESS,
                }
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(EXIT_CONFIG)
            }
        },
        Command::Run => match Config::from_env() {
            Ok((config, warnings)) => in_runtime(server::start::run(config, warnings)),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(EXIT_CONFIG)
            }
        },
        Command::Standby => match Config::from_env() {
            Ok((mut config, warnings)) => {
                config.succession.standby = true;
                in_runtime(server::start::run(config, warnings))
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(EXIT_CONFIG)
            }
        },
        Command::Dev { port, data } => in_runtime(server::dev::run(port, data)),
        Command::Healthcheck => in_runtime(server::start::healthcheck()),
        Command::Plc { port, dir, port_file } => in_runtime(server::dev::run_plc(port, dir, port_file)),
    }
}

/// Runs a future to its end on a runtime of its own and turns its outcome into an exit code.
fn in_runtime(work: impl Future<Output = Result<(), server::start::ServerError>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(work);
    // Blocking work that still runs (an export, a read of the log) must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "stopped");
            eprintln!("pds: {error:#}");
            if error.is_fenced() {
                ExitCode::from(EXIT_FENCED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn list_settings() {
    for setting in settings::all() {
        let origin = match setting.origin {
            Origin::Reference => "",
            Origin::Ours => " [Azure PDS]",
            Origin::NotYet => " [no effect yet]",
            Origin::Meaningless => " [no effect]",
            Origin::Refused => " [refused]",
        };
        let secret = if setting.secret {
            " [secret; also as a file by _FILE]"
        } else {
            ""
        };
        println!(
            "{}{origin}{secret}\n    default: {}\n    {}",
            setting.name, setting.default, setting.meaning
        );
    }
}
