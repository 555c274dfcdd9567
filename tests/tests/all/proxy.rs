//! Requests that other services answer: the official libraries on both sides, an app before the server and the services behind
//! it, which take our tokens.

use std::ffi::OsStr;

use anyhow::{Context, Result};
use tests::process::Process;
use tests::stack::{Pds, ReplicaKind, Stack};
use tests::{node, skip};

#[tokio::test(flavor = "multi_thread")]
async fn official_services_accept_what_is_sent_on_to_them() -> Result<()> {
    let Some(program) = node::program() else {
        return skip("Node or the packages of tests/node are missing (`npm ci` there)");
    };
    let stack = Stack::start(ReplicaKind::None)
        .await?
        .context("nothing is needed for it")?;
    let (script, port_file) = (node::folder().join("app-view.mjs"), stack.place("app-view.port"));
    let arguments = [
        script.as_os_str(),
        OsStr::new("--plc"),
        OsStr::new(&stack.plc_url),
        OsStr::new("--port-file"),
        port_file.as_os_str(),
    ];
    let mut services = Process::spawn(&program, &arguments, &[], &stack.place("app-view.log"))?;
    let port = services.port(&port_file).await?;
    let url = format!("http://localhost:{port}");
    let settings = stack
        .settings(&stack.place("data"))
        .with("PDS_BSKY_APP_VIEW_URL", &url)
        .with("PDS_BSKY_APP_VIEW_DID", "did:web:api.example.com")
        .with(
            "PDS_BSKY_APP_VIEW_CDN_URL_PATTERN",
            "https://cdn.example.com/img/%s/%s/%s",
        )
        .with("PDS_MOD_SERVICE_URL", &url)
        .with("PDS_MOD_SERVICE_DID", "did:web:mod.example.com");
    let pds = Pds::start(&settings).await?;
    let chat = format!("did:web:localhost%3A{port}");
    node::run("proxy.mjs", &[&pds.url, "--plc", &stack.plc_url, "--chat", &chat])
        .await
        .with_context(|| format!("{}\n{}", pds.process.tail(), services.tail()))?;
    pds.stop().await?;
    services.kill().await?;
    stack.stop().await
}
