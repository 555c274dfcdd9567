//! The reference server (`@atproto/pds`) as a process, with the settings that ours has in tests.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::api::Api;
use crate::process::Process;
use crate::stack::{ADMIN_PASSWORD, Stack};
use crate::{node, root};

/// Why it cannot be started.
pub const MISSING: &str =
    "the reference server is not installed (tests/reference/install.sh), or Node is too old for it";
/// It stands on the SQLite of Node, as far as this one has it.
const OLDEST_NODE: u32 = 24;

/// A running reference server.
#[derive(Debug)]
pub struct Reference {
    /// The process.
    pub process: Process,
    /// Base URL, as it names itself.
    pub url: String,
    /// A client of it.
    pub api: Api,
}

impl Reference {
    /// Starts one that keeps its data in `<name>` below the stack's place and mails by `smtp_port`; `None` when it is not installed.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub async fn start(stack: &Stack, name: &str, smtp_port: Option<u16>) -> Result<Option<Reference>> {
        let folder = root().join("tests/reference");
        let installed = folder.join("node_modules/@atproto/pds").exists();
        let Some(node) = node::program().filter(|node| installed && is_new_enough(node)) else {
            return Ok(None);
        };
        let place = stack.place(name);
        let blobs = place.join("blobs");
        std::fs::create_dir_all(&blobs)?;
        let (data, blobs) = (place.display().to_string(), blobs.display().to_string());
        // It asks no host that is only an address.
        let plc_url = stack.plc_url.replace("127.0.0.1", "localhost");
        let (did, key) = (format!("did:web:{name}.test"), rotation_key(name));
        let mut env: Vec<(String, String)> = [
            ("PDS_HOSTNAME", "localhost"),
            // Servers of one machine have to be told apart.
            ("PDS_SERVICE_DID", &did),
            ("PDS_SERVICE_HANDLE_DOMAINS", ".test"),
            ("PDS_DEV_MODE", "true"),
            ("PDS_INVITE_REQUIRED", "false"),
            ("PDS_JWT_SECRET", &key),
            ("PDS_ADMIN_PASSWORD", ADMIN_PASSWORD),
            ("PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX", &key),
            ("PDS_DATA_DIRECTORY", &data),
            ("PDS_BLOBSTORE_DISK_LOCATION", &blobs),
            ("PDS_DID_PLC_URL", &plc_url),
            // It keeps preferences only where it has an AppView. Nobody asks this one anything.
            ("PDS_BSKY_APP_VIEW_URL", "http://127.0.0.1:1"),
            ("PDS_BSKY_APP_VIEW_DID", "did:web:api.example.com"),
            ("LOG_ENABLED", "true"),
            ("LOG_LEVEL", "warn"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        if let Some(port) = smtp_port {
            env.push((
                "PDS_EMAIL_SMTP_URL".to_owned(),
                format!("smtp://127.0.0.1:{port}"),
            ));
            env.push((
                "PDS_EMAIL_FROM_ADDRESS".to_owned(),
                "noreply@reference.example.com".to_owned(),
            ));
        }
        let script = folder.join("serve.mjs");
        let mut process = Process::spawn(
            &node,
            &[script.as_os_str()],
            &env,
            &stack.place(&format!("{name}.log")),
        )?;
        let started = Instant::now();
        let url = loop {
            let output = process.output();
            if let Some(url) = output.lines().find_map(|line| line.strip_prefix("listens on ")) {
                break url.trim().to_owned();
            }
            process.check_alive(started).await?;
        };
        let api = Api::new(&url)?;
        let health = api.get("/xrpc/_health").await?;
        ensure!(health.status == 200, "{}", health.text());
        Ok(Some(Reference { process, url, api }))
    }
}

/// A key of 32 bytes that belongs to a name.
fn rotation_key(name: &str) -> String {
    use sha2::Digest;
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(name))
}

fn is_new_enough(node: &Path) -> bool {
    let told = std::process::Command::new(node)
        .arg("--version")
        .stderr(Stdio::null())
        .output();
    told.ok()
        .and_then(|told| String::from_utf8(told.stdout).ok())
        .and_then(|text| {
            text.trim_start_matches('v')
                .split('.')
                .next()?
                .parse::<u32>()
                .ok()
        })
        .is_some_and(|major| major >= OLDEST_NODE)
}
