//! `pds dev`: everything on one machine without a network — the server, an embedded did:plc directory, a replica in a
//! directory, and a first account.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::clock::{Clock, Entropy, SystemClock, SystemEntropy};
use engine::repo::SigningKey;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::app::App;
use crate::config::Config;
use crate::plc::directory::PlcDirectory;
use crate::service::accounts::CreateAccount;
use crate::service::mail::Mailer;
use crate::start::{self, ServerError, write_port_file};

/// Handle of the account that a fresh installation gets.
const FIRST_HANDLE: &str = "alice.test";
/// File below the data directory with what must stay the same over restarts.
const SECRETS_FILE: &str = "dev-secrets.json";

/// The secrets of a development installation. They protect nothing but one's own machine.
#[derive(Serialize, Deserialize)]
struct DevSecrets {
    jwt_secret: String,
    admin_password: String,
    rotation_key_hex: String,
    first_password: String,
}

/// Runs the development server until it is told to stop.
///
/// # Errors
/// Something does not start; the message says what.
pub async fn run(port: u16, data: PathBuf) -> Result<(), ServerError> {
    std::fs::create_dir_all(&data).map_err(|error| ServerError::io(&data, error))?;
    let data = data
        .canonicalize()
        .map_err(|error| ServerError::io(&data, error))?;
    let secrets = load_or_create(&data.join(SECRETS_FILE))?;

    let plc = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(|error| ServerError::io("plc", error))?;
    let plc_url = format!(
        "http://{}",
        plc.local_addr().map_err(|error| ServerError::io("plc", error))?
    );
    let directory = open_directory(&data.join("plc"))?;
    let plc_server = tokio::spawn(async move { axum::serve(plc, directory.router()).await });

    let defaults = [
        ("PDS_HOSTNAME", "localhost".to_owned()),
        ("PDS_PORT", port.to_string()),
        ("PDS_DATA_DIRECTORY", data.join("pds").display().to_string()),
        (
            "PDS_REPLICA_URL",
            format!("file://{}", data.join("replica").display()),
        ),
        (
            "PDS_BLOBSTORE_DISK_LOCATION",
            data.join("blocks").display().to_string(),
        ),
        ("PDS_JWT_SECRET", secrets.jwt_secret.clone()),
        ("PDS_ADMIN_PASSWORD", secrets.admin_password.clone()),
        (
            "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
            secrets.rotation_key_hex.clone(),
        ),
        ("PDS_DID_PLC_URL", plc_url),
        ("PDS_INVITE_REQUIRED", "false".to_owned()),
        ("PDS_DEV_MODE", "true".to_owned()),
        ("LOG_LEVEL", "warn".to_owned()),
    ];
    let (config, warnings) = Config::from_env_over(&defaults)?;
    let mailer = Mailer::new(&config).map_err(ServerError::Other)?.or_page();
    let served = start::run_with(config, warnings, mailer, |app| async move {
        welcome(&app, &secrets).await
    });
    let outcome = Box::pin(served).await;
    plc_server.abort();
    outcome
}

/// Runs the embedded did:plc directory alone.
///
/// # Errors
/// It cannot listen or read its directory.
pub async fn run_plc(port: u16, dir: PathBuf, port_file: Option<PathBuf>) -> Result<(), ServerError> {
    let listener = TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        .await
        .map_err(|error| ServerError::io("plc", error))?;
    let address = listener
        .local_addr()
        .map_err(|error| ServerError::io("plc", error))?;
    let directory = open_directory(&dir)?;
    if let Some(file) = port_file {
        write_port_file(&file, address.port())?;
    }
    println!("did:plc directory on http://{address}");
    axum::serve(listener, directory.router())
        .with_graceful_shutdown(start::stop_signal())
        .await
        .map_err(|error| ServerError::io("plc", error))
}

fn open_directory(dir: &Path) -> Result<PlcDirectory, ServerError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    PlcDirectory::open(dir, clock).map_err(|error| ServerError::Other(format!("did:plc directory: {error}")))
}

/// Makes the first account if there is none, and says how to use it.
async fn welcome(app: &App, secrets: &DevSecrets) -> Result<(), ServerError> {
    let handle = FIRST_HANDLE
        .parse()
        .map_err(|_| ServerError::Other("the first handle is not one".to_owned()))?;
    let known = app
        .accounts
        .by_handle(&handle)
        .await
        .map_err(|error| ServerError::Other(error.to_string()))?;
    if known.is_none() {
        app.accounts
            .create(CreateAccount {
                did: None,
                handle: FIRST_HANDLE.to_owned(),
                email: Some("alice@example.com".to_owned()),
                password: Some(secrets.first_password.clone()),
                invite_code: None,
                recovery_key: None,
            })
            .await
            .map_err(|error| ServerError::Other(format!("the first account: {error}")))?;
    }
    let url = app.config.public_url();
    let password = &secrets.first_password;
    let mut text = String::new();
    let _infallible = write!(
        text,
        "\n  Azure PDS for development: {url}\n\n  \
         handle         {FIRST_HANDLE}\n  \
         password       {password}\n  \
         admin password {admin}\n  \
         did:plc        {plc}\n  \
         mail           {url}/dev/mail\n  \
         data           {data}\n\n  \
         A first post:\n\n\
         curl -s {url}/xrpc/com.atproto.repo.createRecord -H 'content-type: application/json' \
         -H \"authorization: Bearer $(curl -s {url}/xrpc/com.atproto.server.createSession -H 'content-type: application/json' \
         -d '{{\"identifier\":\"{FIRST_HANDLE}\",\"password\":\"{password}\"}}' | sed 's/.*\"accessJwt\":\"\\([^\"]*\\)\".*/\\1/')\" \
         -d '{{\"repo\":\"{FIRST_HANDLE}\",\"collection\":\"app.bsky.feed.post\",\
         \"record\":{{\"text\":\"Hello from my own PDS\",\"createdAt\":\"'$(date -u +%Y-%m-%dT%H:%M:%SZ)'\"}}}}'\n\n",
        admin = secrets.admin_password,
        plc = app.config.plc_url,
        data = app.config.data_dir.display(),
    );
    println!("{text}");
    Ok(())
}

fn load_or_create(path: &Path) -> Result<DevSecrets, ServerError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            ServerError::Other(format!(
                "{}: {error}; delete the file to start anew",
                path.display()
            ))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secrets = DevSecrets {
                jwt_secret: random_hex(16)?,
                admin_password: random_hex(8)?,
                rotation_key_hex: data_encoding::HEXLOWER.encode(
                    SigningKey::generate(&SystemEntropy)
                        .map_err(|error| ServerError::Other(error.to_string()))?
                        .to_bytes()
                        .as_slice(),
                ),
                first_password: random_hex(8)?,
            };
            let json =
                serde_json::to_vec_pretty(&secrets).map_err(|error| ServerError::Other(error.to_string()))?;
            write_private(path, &json).map_err(|error| ServerError::io(path, error))?;
            Ok(secrets)
        }
        Err(error) => Err(ServerError::io(path, error)),
    }
}

/// Creates a file that only its owner can read.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn random_hex(bytes: usize) -> Result<String, ServerError> {
    let mut random = vec![0; bytes];
    SystemEntropy
        .fill(&mut random)
        .map_err(|error| ServerError::Other(error.to_string()))?;
    Ok(data_encoding::HEXLOWER.encode(&random))
}
