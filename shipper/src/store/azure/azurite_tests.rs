//! The contract against Azurite, the emulator: what breaks here would break fencing or restore in the cloud. Needs Node
//! and `npm ci` in `tests/node`; without them the tests say so and pass, unless `PDS_TESTS_REQUIRE_ALL=1`.

use std::path::PathBuf;
use std::process::Stdio;

use azure_core::hmac::hmac_sha256;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::super::contract;
use super::super::counted::{CountedStore, Purpose};
use super::*;
use crate::blobs::ReplicaBlobs;
use crate::ledger::Ledger;

const ACCOUNT: &str = "devstoreaccount1";
const START_LIMIT: Duration = Duration::from_secs(60);
const TEST_LIMIT: Duration = Duration::from_secs(120);

/// A running emulator, which dies with this value.
struct Azurite {
    child: Child,
    url: String,
    // Open, so that the emulator may go on writing to it.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Azurite {
    /// Starts one on a free port of this machine; `None`, with a word, if it is not installed.
    async fn start() -> Option<Azurite> {
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/node/node_modules/azurite/dist/src/blob/main.js");
        let node = Command::new("node")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .await;
        if !program.exists() || !node.is_ok_and(|status| status.success()) {
            assert!(
                std::env::var("PDS_TESTS_REQUIRE_ALL").as_deref() != Ok("1"),
                "Azurite is required: install Node, then `npm ci` in tests/node"
            );
            println!("skipped: no Azurite (install Node, then `npm ci` in tests/node)");
            return None;
        }
        let mut child = Command::new("node")
            .arg(program)
            .args(["--blobHost", "127.0.0.1", "--blobPort", "0", "--silent"])
            .args([
                "--inMemoryPersistence",
                "--skipApiVersionCheck",
                "--disableTelemetry",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Azurite starts");
        let mut output = BufReader::new(child.stdout.take().expect("its output")).lines();
        let listening = timeout(START_LIMIT, async {
            while let Some(line) = output.next_line().await.expect("its output") {
                if let Some((_, url)) = line.split_once("successfully listens on ") {
                    return url.trim().to_owned();
                }
            }
            panic!("Azurite ended before it listened");
        });
        let url = listening.await.expect("Azurite listens in time");
        Some(Azurite {
            child,
            url: format!("{url}/{ACCOUNT}"),
            _output: output,
        })
    }

    fn config(&self, container: &str) -> AzureConfig {
        let mut config =
            AzureConfig::from_connection_string("UseDevelopmentStorage=true", container).unwrap();
        config.service_url.clone_from(&self.url);
        config
    }

    async fn stop(mut self) {
        timeout(START_LIMIT, self.child.kill())
            .await
            .expect("Azurite ends in time")
            .expect("Azurite ends");
    }
}

/// A signature over the whole account for the next years, as the portal makes them.
fn account_signature(config: &AzureConfig) -> Secret {
    let AzureAuth::SharedKey { account, key } = &config.auth else {
        panic!("{config:?}")
    };
    let (permissions, expiry, version) = ("rwdlac", "2099-01-01T00:00:00Z", "2021-08-06");
    let text = format!("{account}\n{permissions}\nb\nsco\n\n{expiry}\n\nhttps,http\n{version}\n\n");
    let signature = hmac_sha256(&text, key).unwrap();
    let mut query = Url::parse("http://x").unwrap();
    query.query_pairs_mut().extend_pairs([
        ("sv", version),
        ("ss", "b"),
        ("srt", "sco"),
        ("sp", permissions),
        ("se", expiry),
        ("spr", "https,http"),
        ("sig", &signature),
    ]);
    Secret::new(query.query().unwrap().to_owned())
}

async fn keeps_the_contract(config: &AzureConfig) {
    let store = AzureStore::new(config).unwrap();
    assert_eq!(store.ensure_container().await, Ok(Created::Created));
    assert_eq!(store.ensure_container().await, Ok(Created::Exists));
    contract::all(Arc::new(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn azurite_keeps_the_contract() {
    let Some(azurite) = Azurite::start().await else {
        return;
    };
    let work = async {
        keeps_the_contract(&azurite.config("key")).await;
        let with_prefix = azurite.config("prefixed").with_prefix("one/log");
        keeps_the_contract(&with_prefix).await;
        let mut with_signature = azurite.config("signed");
        with_signature.auth = AzureAuth::Sas(account_signature(&with_signature));
        keeps_the_contract(&with_signature).await;
        // A neighbour's objects are none of ours.
        let neighbour = AzureStore::new(&azurite.config("prefixed").with_prefix("one/lo")).unwrap();
        assert_eq!(neighbour.list("", None, 10).await, Ok(vec![]));
    };
    timeout(TEST_LIMIT, Box::pin(work)).await.expect("done in time");
    azurite.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_request_to_azurite_is_counted_and_no_other() {
    let Some(azurite) = Azurite::start().await else {
        return;
    };
    let store = AzureStore::new(&azurite.config("counted")).unwrap();
    store.ensure_container().await.unwrap();
    let ledger = Arc::new(Ledger::default());
    let store = CountedStore::new(Arc::new(store), ledger.clone());
    let of = |class| ledger.of_class(class);
    let (small, large): (ObjectName, ObjectName) = ("wal/1".parse().unwrap(), "seg/1".parse().unwrap());

    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(2 * BLOCK_BYTES + 7).unwrap();
    let created = store.create_from_file(&large, file.path()).await;
    assert_eq!(created, Ok(Created::Created));
    // A look whether it is there, three blocks, and their list.
    assert_eq!((of(Class::Read), of(Class::Write)), (1, 4));
    assert_eq!(ledger.up(Purpose::Segment), 2 * BLOCK_BYTES + 7);

    store.create(&small, Bytes::from_static(b"12345")).await.unwrap();
    assert_eq!(of(Class::Write), 5);
    assert_eq!(store.get_range(&small, 1..4).await.unwrap().len(), 3);
    assert_eq!(ledger.down(Purpose::Chunk), 3);
    assert!(
        store.get(&"wal/2".parse().unwrap(), 10).await.is_err(),
        "it is not there"
    );
    assert_eq!(of(Class::Read), 3, "what is not found is asked all the same");
    assert_eq!(store.list("", None, 10).await.unwrap().len(), 2);
    assert_eq!(of(Class::List), 1);
    let uncounted = AzureStore::new(&azurite.config("counted")).unwrap();
    for (n, tier) in [Tier::Cool, Tier::Cold].into_iter().enumerate() {
        assert_eq!(store.set_tier(&large, tier).await, Ok(TierSet::Set));
        assert_eq!(of(Class::Write), 6 + n as u64);
        let properties = uncounted.blob(&large).get_properties(None).await.unwrap();
        let there = properties.access_tier().unwrap().map(|word| word.to_lowercase());
        assert_eq!(there.as_deref(), Some(tier.word()));
    }
    store.delete(&small).await.unwrap();
    assert_eq!(of(Class::Delete), 1);
    azurite.stop().await;
    store.delete(&large).await.unwrap_err();
    assert_eq!(of(Class::Delete), 1, "a connection that is refused is no request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn azurite_keeps_media() {
    let Some(azurite) = Azurite::start().await else {
        return;
    };
    let store = AzureStore::new(&azurite.config("media")).unwrap();
    store.ensure_container().await.unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let blobs = ReplicaBlobs::open(Arc::new(store), scratch.path()).unwrap();
    let work = engine::blobs::contract::all(&blobs);
    timeout(TEST_LIMIT, Box::pin(work)).await.expect("done in time");
    azurite.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_wrong_with_azurite_is_told_apart_and_without_secrets() {
    let Some(azurite) = Azurite::start().await else {
        return;
    };
    let name: ObjectName = "a".parse().unwrap();

    let absent = AzureStore::new(&azurite.config("absent")).unwrap();
    let error = absent.create(&name, Bytes::new()).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::NotFound { object } if object.contains("container absent")),
        "{error}"
    );

    let mut config = azurite.config("absent");
    config.auth = AzureAuth::SharedKey {
        account: ACCOUNT.to_owned(),
        key: Secret::new("d3Jvbmc="),
    };
    let stranger = AzureStore::new(&config).unwrap();
    for error in [
        stranger.create(&name, Bytes::new()).await.unwrap_err(),
        stranger.size(&name).await.unwrap_err(),
        stranger.list("", None, 1).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        assert!(
            error.to_string().contains("Storage Blob Data Contributor"),
            "{error}"
        );
    }

    let mut config = azurite.config("absent");
    config.auth = AzureAuth::Sas(account_signature(&config));
    let AzureAuth::Sas(signature) = &config.auth else {
        panic!("{config:?}")
    };
    let secret = signature.secret().split("sig=").nth(1).unwrap().to_owned();
    let signed = AzureStore::new(&config).unwrap();
    azurite.stop().await;
    let error = signed.create(&name, Bytes::new()).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Unavailable { sent: false, .. }),
        "{error:?}"
    );
    assert!(error.is_retryable() && !error.outcome_unknown());
    for text in [
        format!("{error:?} {error}"),
        signed.describe(),
        format!("{signed:?}"),
        format!("{config:?}"),
    ] {
        assert!(!text.contains(&secret) && !text.contains("sig="), "{text}");
    }
}

#[tokio::test]
async fn a_service_that_never_answers_is_given_up_in_time() {
    // Takes connections into its queue and never reads.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/{ACCOUNT}", silent.local_addr().unwrap());
    let mut config = AzureConfig::from_connection_string("UseDevelopmentStorage=true", "pds").unwrap();
    config.service_url = url;
    config.request_timeout = Duration::from_millis(200);
    let store = AzureStore::new(&config).unwrap();
    let name: ObjectName = "a".parse().unwrap();
    let outcome = timeout(TEST_LIMIT, store.create(&name, Bytes::new()))
        .await
        .expect("given up");
    let error = outcome.unwrap_err();
    assert_eq!(
        error,
        StoreError::Timeout {
            after: config.request_timeout
        }
    );
    assert!(error.outcome_unknown());
}

#[test]
fn a_token_is_never_sent_over_plain_http() {
    let auth = AzureAuth::ManagedIdentity { client_id: None };
    let config = AzureConfig::new("http://127.0.0.1:1/account", "pds", auth);
    assert!(matches!(
        AzureStore::new(&config),
        Err(StoreError::Invalid { .. })
    ));
}
