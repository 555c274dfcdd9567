//! Every method, with whatever its lexicon allows and much that it does not, by everybody who may have credentials. No answer is a
//! 5xx, none takes long, the memory stays inside its budget, and what was written is whole. A seed decides what is asked; what is
//! asked at once may meet in any order.

mod values;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use data_encoding::BASE64;
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use tests::api::{Account, Api, PASSWORD, field};
use tests::random::Random;
use tests::stack::{ADMIN_PASSWORD, Pds, ReplicaKind, Stack};
use tests::tools::verified;
use tests::{Outcome, number, root, skip};
use values::{Known, Values, pick};

/// How long any answer may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many requests are under way at once.
const AT_ONCE: usize = 8;
/// After so many there are new accounts: those before may be gone by then.
const ROUND: u64 = 250;
/// A body of more bytes may be refused while it is sent; the smallest limit of a body is near it.
const EARLY_REFUSAL: usize = 100 << 10;
/// Characters of a query. What is longer than the HTTP libraries take is asked over a bare socket (`bad_input`).
const QUERY_LIMIT: usize = 2000;

/// Who asks, and what they know.
struct Cast {
    credentials: Vec<String>,
    account: Account,
    known: Known,
    car: Vec<u8>,
}

impl Cast {
    async fn new(api: &Api, round: u64) -> Result<Cast> {
        let alice = api.create_account(&format!("alice{round}")).await?;
        let bob = api.create_account(&format!("bob{round}")).await?;
        let post = api.post(&alice, "one").await?;
        let note = api
            .put(&alice, "com.example.note", "note", json!({ "text": "two" }))
            .await?;
        let blob = api
            .upload(&alice, "text/plain", format!("round {round}").into_bytes())
            .await?;
        let app = |privileged: bool| {
            let input = json!({ "name": format!("app {privileged}"), "privileged": privileged });
            let alice = &alice;
            async move {
                let made = api
                    .procedure(
                        "com.atproto.server.createAppPassword",
                        &input,
                        Some(&alice.access),
                    )
                    .await?
                    .ok()?;
                let input = json!({ "identifier": alice.did, "password": field(&made, "/password")? });
                let session = api
                    .procedure("com.atproto.server.createSession", &input, None)
                    .await?
                    .ok()?;
                field(&session, "/accessJwt")
            }
        };
        let (plain, privileged) = (app(false).await?, app(true).await?);
        let car = api
            .query("com.atproto.sync.getRepo", &[("did", alice.did.as_str())], None)
            .await?;
        ensure!(car.status == 200, "no export: {}", car.text());
        let known = Known {
            texts: object(json!({
                "did": [alice.did, bob.did],
                "handle": [alice.handle, bob.handle, format!("new{round}.test")],
                "at-identifier": [alice.did, bob.did, alice.handle, bob.handle],
                "at-uri": [format!("at://{}/{}/{}", alice.did, post.collection, post.rkey), format!("at://{}", bob.did)],
                "cid": [post.cid, note.cid, post.commit, blob["ref"]["$link"]],
                "nsid": [post.collection, note.collection, "com.atproto.repo.uploadBlob"],
                "tid": [post.rev, note.rev],
                "record-key": [post.rkey, note.rkey, "self", "another"],
                "datetime": ["2026-11-20T08:30:15.250Z", "2099-01-01T00:00:00Z"],
                "uri": ["https://example.com/"],
                "language": ["en"],
            }))?,
            named: object(json!({
                "identifier": [alice.handle, bob.did, format!("alice{round}@example.com")],
                "password": [PASSWORD, "wrong", "another password"],
                "email": [format!("alice{round}@example.com"), format!("bob{round}@example.com"), format!("new{round}@example.com")],
                "account": [alice.did, bob.did],
                "accounts": [alice.did, bob.did],
                "forAccounts": [alice.did, bob.did],
                "aud": [alice.did, "did:web:localhost"],
                "name": ["app true", "app false", "new"],
                "swapRecord": [post.cid, note.cid],
                "swapCommit": [post.commit, note.commit],
            }))?,
            blobs: vec![blob],
        };
        let basic =
            |password: &str| format!("Basic {}", BASE64.encode(format!("admin:{password}").as_bytes()));
        let mut forged = alice.access.clone();
        forged.pop();
        let credentials = vec![
            String::new(),
            format!("Bearer {}", alice.access),
            format!("Bearer {}", bob.access),
            format!("Bearer {}", alice.refresh),
            format!("Bearer {plain}"),
            format!("Bearer {privileged}"),
            basic(ADMIN_PASSWORD),
            basic("wrong"),
            format!("Bearer {forged}"),
            "Bearer eyJhbGciOiJub25lIn0.e30.".to_owned(),
            "DPoP x".to_owned(),
            "Basic ====".to_owned(),
            "Bearer".to_owned(),
        ];
        Ok(Cast {
            credentials,
            account: alice,
            known,
            car: car.body,
        })
    }
}

fn object(value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map),
        other => anyhow::bail!("{other} is no object"),
    }
}

/// A request, ready to be sent.
struct Ask {
    method: String,
    verb: reqwest::Method,
    query: Vec<(String, String)>,
    credentials: String,
    /// The method that a service token is wanted for, instead of the credentials.
    service: bool,
    content_type: Option<&'static str>,
    body: Vec<u8>,
}

/// What is asked, for a seed.
fn ask(seed: u64, description: &Value, cast: &Cast) -> Result<Ask> {
    let methods = description["methods"].as_object().context("no methods")?;
    let mut values = Values {
        random: Random::new(seed),
        definitions: &description["definitions"],
        known: &cast.known,
    };
    // The generator's first numbers of neighbouring seeds are far apart, too.
    let names: Vec<&String> = methods.keys().collect();
    let name = *pick(&mut values.random, &names).context("no methods")?;
    let method = &methods[name];
    let is_query = (method["type"] == "query") != values.chance(2);
    let mut ask = Ask {
        method: name.clone(),
        verb: if is_query {
            reqwest::Method::GET
        } else {
            reqwest::Method::POST
        },
        query: Vec::new(),
        credentials: String::new(),
        service: values.chance(5),
        content_type: None,
        body: Vec::new(),
    };
    // Most know what they want.
    ask.credentials = if values.chance(50) {
        let who = if name.contains(".admin.") || name.contains("InviteCode") {
            6
        } else {
            1
        };
        cast.credentials[who].clone()
    } else {
        pick(&mut values.random, &cast.credentials)
            .cloned()
            .unwrap_or_default()
    };
    if let Value::Object(params) = values.object(&method["parameters"], 0) {
        let mut room = QUERY_LIMIT;
        for (name, value) in params {
            let many = match value {
                Value::Array(many) => many,
                one => vec![one],
            };
            for value in many {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let cut = |text: &str| text.chars().take(room).collect::<String>();
                let pair = (cut(&name), cut(&text));
                room = room.saturating_sub(pair.0.chars().count() + pair.1.chars().count());
                ask.query.push(pair);
            }
        }
    }
    let input = &method["input"];
    match input["encoding"].as_str() {
        Some("application/json") if !is_query => {
            ask.content_type = Some("application/json");
            ask.body = serde_json::to_vec(&values.value("", &input["schema"], 0))?;
        }
        Some("application/vnd.ipld.car") => {
            ask.content_type = Some("application/vnd.ipld.car");
            ask.body.clone_from(&cast.car);
            for _ in 0..values.random.between(0, 4) {
                let at = usize::try_from(values.random.between(0, ask.body.len() as u64))?;
                ask.body[at] ^= u8::try_from(values.random.between(1, 256))?;
            }
        }
        Some(_) => {
            ask.content_type = Some(values.random.choose(&["image/png", "text/plain", "*/*", "x"]));
            let length = values.random.choose(&[0, 1, 1000, 6_000_000]);
            ask.body = vec![b'x'; length];
        }
        None => {}
    }
    if values.chance(4) {
        let end = usize::try_from(values.random.between(0, ask.body.len() as u64))?;
        ask.body.truncate(end);
    }
    if values.chance(3) {
        ask.content_type =
            Some(
                values
                    .random
                    .choose(&["text/plain", "application/json", "application/cbor", ""]),
            );
    }
    if values.chance(1) {
        ask.body = "[".repeat(100_000).into_bytes();
    }
    if is_query && values.chance(90) {
        ask.body.clear();
    }
    Ok(ask)
}

/// Sends a request and says what is wrong with the answer, if anything is.
async fn send(http: &reqwest::Client, url: &str, api: &Api, cast: &Cast, ask: &Ask) -> Result<u16> {
    let mut credentials = ask.credentials.clone();
    if ask.service {
        let params = [("aud", "did:web:localhost"), ("lxm", &ask.method)];
        let given = api
            .query(
                "com.atproto.server.getServiceAuth",
                &params,
                Some(&cast.account.access),
            )
            .await?;
        if given.status == 200 {
            credentials = format!("Bearer {}", field(&given.json()?, "/token")?);
        }
    }
    let mut request = http
        .request(ask.verb.clone(), format!("{url}/xrpc/{}", ask.method))
        .query(&ask.query);
    if !credentials.is_empty() {
        request = request.header("authorization", &credentials);
    }
    if let Some(kind) = ask.content_type {
        request = request.header("content-type", kind);
    }
    let answer = match request.body(ask.body.clone()).send().await {
        Ok(answer) => answer,
        // A refusal need not wait for all of a body that is too large.
        Err(error) if ask.body.len() > EARLY_REFUSAL && !error.is_timeout() => return Ok(413),
        Err(error) => return Err(error).context("no answer"),
    };
    let status = answer.status().as_u16();
    let again = answer.headers().contains_key("retry-after");
    let body = answer.bytes().await.context("half an answer")?;
    let text = String::from_utf8_lossy(body.get(..body.len().min(300)).unwrap_or_default());
    // Somebody else was asked, who is not there.
    let elsewhere = ask.method.contains(".identity.") && status == 502 && text.contains("UpstreamFailure");
    // At its limits the server says when to come back (I9).
    let busy = status == 503 && again && text.contains("NotEnoughResources");
    ensure!(status < 500 || elsewhere || busy, "{status} {text}");
    if status >= 400 {
        let told: Value = serde_json::from_slice(&body).with_context(|| format!("{status} {text}"))?;
        ensure!(
            told["error"].is_string() && told["message"].is_string(),
            "an error without a name: {status} {text}"
        );
    }
    Ok(status)
}

/// A service that knows nothing, so that what is sent on is answered.
async fn unknowing() -> Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let app = axum::Router::new().fallback(|_: axum::body::Bytes| async {
        let body = json!({ "error": "InvalidRequest", "message": "nothing is known here" });
        (StatusCode::BAD_REQUEST, axum::Json(body))
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_is_answered_and_nothing_breaks() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::Directory).await? else {
        return skip("the stack does not start");
    };
    let (first, count) = (
        number("PDS_FUZZ_SEED", 1),
        number("PDS_FUZZ_REQUESTS", 500).max(1),
    );
    let text = std::fs::read_to_string(root().join("tests/methods.json"))?;
    let description: Value = serde_json::from_str(&text)?;
    every_method_is_described(&description)?;
    let app_view = unknowing().await?;
    let (data, replica) = (
        stack.place("data"),
        stack.replica(ReplicaKind::Directory, "replica").await?,
    );
    let mut settings = stack.settings(&data).with_all(replica.clone());
    for name in ["BSKY_APP_VIEW", "MOD_SERVICE", "REPORT_SERVICE"] {
        settings = settings
            .with(&format!("PDS_{name}_URL"), &app_view)
            .with(&format!("PDS_{name}_DID"), "did:web:nobody.example.com");
    }
    let pds = Pds::start(&settings).await?;
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        // A connection that a request has spoilt is closed, perhaps while the next one is on its way.
        .pool_max_idle_per_host(0)
        .build()?;

    let statuses = Mutex::new(std::collections::BTreeMap::<u16, u64>::new());
    let (mut slowest, mut wrong) = (Duration::ZERO, Vec::new());
    for round in 0..count.div_ceil(ROUND) {
        let cast = Cast::new(&pds.api, round).await?;
        let seeds = (round * ROUND..count.min((round + 1) * ROUND)).map(|at| first.wrapping_add(at));
        let answers = futures_util::stream::iter(seeds).map(|seed| {
            let (http, pds, cast, description, statuses) = (&http, &pds, &cast, &description, &statuses);
            async move {
                let ask = ask(seed, description, cast)?;
                let started = Instant::now();
                let outcome = send(http, &pds.url, &pds.api, cast, &ask).await;
                let took = started.elapsed();
                let problem = match outcome {
                    Ok(status) => {
                        if let Ok(mut statuses) = statuses.lock() {
                            *statuses.entry(status).or_default() += 1;
                        }
                        None
                    }
                    Err(error) => {
                        let body: String = String::from_utf8_lossy(&ask.body).chars().take(600).collect();
                        let query: String = format!("{:?}", ask.query).chars().take(600).collect();
                        Some(format!(
                            "PDS_FUZZ_SEED={seed} PDS_FUZZ_REQUESTS=1: {} {} {query} {body}: {error:#} ({took:?})",
                            ask.verb, ask.method
                        ))
                    }
                };
                anyhow::Ok((took, problem))
            }
        });
        let mut answers = answers.buffer_unordered(AT_ONCE);
        while let Some(answer) = answers.next().await {
            let (took, problem) = answer?;
            slowest = slowest.max(took);
            wrong.extend(problem);
        }
        let grown = pds.process.allocated_bytes()?;
        ensure!(grown <= 256 << 20, "{} MiB after round {round}", grown >> 20);
    }
    ensure!(
        wrong.is_empty(),
        "{} of {count} went wrong:\n{}\n{}",
        wrong.len(),
        wrong.join("\n"),
        pds.process.tail()
    );
    println!(
        "{count} requests from seed {first}: {:?}, the slowest took {slowest:?}, {} MiB at the end",
        statuses
            .lock()
            .map(|statuses| statuses.clone())
            .unwrap_or_default(),
        pds.process.allocated_bytes()? >> 20
    );
    // It goes on as before, and all of it is whole.
    let last = pds.api.create_account("the-last").await?;
    pds.api.post(&last, "still here").await?;
    pds.stop().await?;
    verified(&["verify", &data.display().to_string()], &replica).await?;
    stack.stop().await
}

/// The description has the methods of the server's table.
fn every_method_is_described(description: &Value) -> Result<()> {
    let table = std::fs::read_to_string(root().join("server/src/xrpc/mod.rs"))?;
    let rows = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" "));
    let mut served: Vec<&str> = rows
        .filter(|(_, rest)| rest.starts_with("Query ") || rest.starts_with("Procedure "))
        .map(|(name, _)| name)
        .collect();
    served.sort_unstable();
    let described = description["methods"].as_object().context("no methods")?;
    let described: Vec<&str> = described.keys().map(String::as_str).collect();
    ensure!(
        described == served,
        "tests/node/methods.mjs has to be run again: {served:?} are served, {described:?} described"
    );
    Ok(())
}
