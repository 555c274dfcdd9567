//! The accounts that carry the load, and the file that keeps their sessions from run to run.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::api::{self, Api, ApiError, patiently};
use crate::args::Common;

/// New sessions after which the file is written, so that an interrupted run keeps most of them.
const SAVE_EVERY: usize = 64;

/// A session as the server gives it and the file keeps it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    did: String,
    access_jwt: String,
    refresh_jwt: String,
}

/// An account with a session.
pub struct Account {
    handle: String,
    did: String,
    session: Mutex<Arc<Session>>,
    /// Held while the session is renewed, so that many requests renew it once.
    renewing: tokio::sync::Mutex<()>,
}

impl Account {
    fn new(handle: &str, session: Session) -> Arc<Account> {
        Arc::new(Account {
            handle: handle.to_owned(),
            did: session.did.clone(),
            session: Mutex::new(Arc::new(session)),
            renewing: tokio::sync::Mutex::new(()),
        })
    }

    /// Whose repo it is.
    #[must_use]
    pub fn did(&self) -> &str {
        &self.did
    }

    /// The name it was created with.
    #[must_use]
    pub fn handle(&self) -> &str {
        &self.handle
    }

    /// Calls a procedure as this account; an expired session is renewed on the way.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn procedure(&self, api: &Api, nsid: &str, body: &[u8]) -> Result<Vec<u8>, ApiError> {
        let session = self.session();
        match api.procedure(nsid, Some(body), Some(&session.access_jwt)).await {
            Err(error) if error.is_named("ExpiredToken") => {
                let session = self.renewed(api, &session).await?;
                api.procedure(nsid, Some(body), Some(&session.access_jwt)).await
            }
            answer => answer,
        }
    }

    /// The token that requests carry now.
    #[must_use]
    pub fn access(&self) -> String {
        self.session().access_jwt.clone()
    }

    fn session(&self) -> Arc<Session> {
        self.session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the server still knows the session, which is renewed if it has expired.
    async fn check(&self, api: &Api) -> Result<(), ApiError> {
        let nsid = "com.atproto.server.getSession";
        let session = self.session();
        let answer = match api.query(nsid, &[], Some(&session.access_jwt)).await {
            Err(error) if error.is_named("ExpiredToken") => {
                let session = self.renewed(api, &session).await?;
                api.query(nsid, &[], Some(&session.access_jwt)).await
            }
            answer => answer,
        };
        answer.map(drop)
    }

    /// The session that follows the expired one.
    async fn renewed(&self, api: &Api, expired: &Session) -> Result<Arc<Session>, ApiError> {
        let _one_at_a_time = self.renewing.lock().await;
        let current = self.session();
        if current.access_jwt != expired.access_jwt {
            return Ok(current);
        }
        let answer = patiently(|| {
            api.procedure(
                "com.atproto.server.refreshSession",
                None,
                Some(&current.refresh_jwt),
            )
        })
        .await?;
        let session = Arc::new(api::json::<Session>(&answer)?);
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session.clone();
        Ok(session)
    }
}

/// The file of sessions.
pub struct Sessions {
    path: PathBuf,
    by_handle: BTreeMap<String, Session>,
}

impl Sessions {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// It cannot be read or is not a file of sessions.
    pub fn load(path: &Path) -> Result<Sessions> {
        let by_handle = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} holds no sessions; delete it", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(Sessions {
            path: path.to_owned(),
            by_handle,
        })
    }

    /// Notes the accounts' sessions and writes the file, which is replaced as a whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&mut self, accounts: &[Arc<Account>]) -> Result<()> {
        for account in accounts {
            self.by_handle
                .insert(account.handle.clone(), Session::clone(&account.session()));
        }
        let json = serde_json::to_vec(&self.by_handle).context("sessions as JSON")?;
        self.write(&json)
            .with_context(|| format!("sessions cannot be kept in {}", self.path.display()))
    }

    fn write(&self, json: &[u8]) -> std::io::Result<()> {
        if let Some(parent) = self.path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut unfinished = self.path.clone().into_os_string();
        unfinished.push(".new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(json)?;
        fs::rename(&unfinished, &self.path)
    }
}

/// Accounts with these handles, in this order: with the session of an earlier run, else new, else logged in.
///
/// # Errors
/// One of them can neither be created nor logged in, or the sessions cannot be kept.
pub async fn prepare(
    api: &Api,
    common: &Common,
    sessions: &mut Sessions,
    handles: &[String],
) -> Result<Vec<Arc<Account>>> {
    let known: Vec<Option<Session>> = handles
        .iter()
        .map(|handle| sessions.by_handle.get(handle).cloned())
        .collect();
    let wanted = handles.iter().zip(known);
    // Ordered, as scenarios take turns by index.
    let mut prepared = stream::iter(wanted)
        .map(|(handle, known)| account(api, common, handle, known))
        .buffered(usize::try_from(common.setup_connections).unwrap_or(1));
    let mut accounts = Vec::with_capacity(handles.len());
    let mut saved = 0;
    while let Some(outcome) = prepared.next().await {
        match outcome {
            Ok(account) => accounts.push(account),
            Err(error) => {
                sessions.save(accounts.get(saved..).unwrap_or_default())?;
                return Err(error);
            }
        }
        if accounts.len() - saved >= SAVE_EVERY {
            sessions.save(accounts.get(saved..).unwrap_or_default())?;
            saved = accounts.len();
        }
    }
    drop(prepared);
    sessions.save(accounts.get(saved..).unwrap_or_default())?;
    Ok(accounts)
}

async fn account(api: &Api, common: &Common, handle: &str, known: Option<Session>) -> Result<Arc<Account>> {
    if let Some(session) = known {
        let account = Account::new(handle, session);
        match patiently(|| account.check(api)).await {
            Ok(()) => return Ok(account),
            // Of another server, or of this one before it began anew.
            Err(error) if error.is_final() => {}
            Err(error) => return Err(error).with_context(|| format!("the session of {handle}")),
        }
    }
    let mut create = json!({
        "handle": handle,
        "password": common.password,
        "email": format!("{}@example.com", handle.replace('.', "-")),
    });
    if let (Some(code), Some(fields)) = (&common.invite_code, create.as_object_mut()) {
        fields.insert("inviteCode".to_owned(), code.as_str().into());
    }
    let login = json!({ "identifier": handle, "password": common.password });
    let not_created = match session(api, "com.atproto.server.createAccount", &create).await {
        Ok(session) => return Ok(Account::new(handle, session)),
        Err(error) if error.is_final() => error,
        Err(error) => return Err(error).with_context(|| format!("creating the account {handle}")),
    };
    match session(api, "com.atproto.server.createSession", &login).await {
        Ok(session) => Ok(Account::new(handle, session)),
        Err(error) => bail!("{handle} can neither be created ({not_created}) nor logged in ({error})"),
    }
}

async fn session(api: &Api, nsid: &str, input: &serde_json::Value) -> Result<Session, ApiError> {
    let input = input.to_string();
    let answer = patiently(|| api.procedure(nsid, Some(input.as_bytes()), None)).await?;
    api::json(&answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_session(access: &str) -> Session {
        Session {
            did: "did:plc:abc".to_owned(),
            access_jwt: access.to_owned(),
            refresh_jwt: format!("refresh of {access}"),
        }
    }

    /// A server that gives these answers, one a connection, and tells the first line and the bearer of each request.
    async fn scripted(answers: Vec<(u16, &'static str)>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for (status, body) in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                // The bodies of these tests are one byte, so the request ends soon after its head.
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    assert_ne!(
                        socket.read_buf(&mut head).await.unwrap(),
                        0,
                        "a request broke off"
                    );
                }
                let head = String::from_utf8(head).unwrap();
                let bearer = head
                    .lines()
                    .find_map(|line| line.strip_prefix("authorization: Bearer "));
                let path = head.split(' ').nth(1).unwrap();
                requests.push(format!("{path} by {}", bearer.unwrap_or("nobody")));
                let answer = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        (url, task)
    }

    #[tokio::test]
    async fn an_expired_session_is_renewed_and_the_request_sent_again() {
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        let renewed = r#"{"did":"did:plc:abc","accessJwt":"second","refreshJwt":"r","handle":"load-0.test"}"#;
        let (url, server) = scripted(vec![
            (400, r#"{"error":"ExpiredToken","message":"Token has expired"}"#),
            (503, r#"{"error":"NotEnoughResources","message":"busy"}"#),
            (200, renewed),
            (200, "{}"),
        ])
        .await;
        let api = Api::new(&url, 1).unwrap();
        let account = Account::new("load-0.test", test_session("first"));
        let answer = account.procedure(&api, "x.y.write", b" ").await.unwrap();
        assert_eq!(answer, b"{}");
        assert_eq!(account.session().access_jwt, "second");
        let refresh = "/xrpc/com.atproto.server.refreshSession by refresh of first";
        assert_eq!(
            server.await.unwrap(),
            [
                "/xrpc/x.y.write by first",
                refresh,
                refresh,
                "/xrpc/x.y.write by second"
            ]
        );
    }

    #[test]
    fn sessions_are_found_again_and_only_their_owner_reads_them() {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("loadgen-sessions-{}", std::process::id()));
        let path = dir.join("sessions.json");
        let mut sessions = Sessions::load(&path).unwrap();
        assert!(sessions.by_handle.is_empty());
        let account = Account::new("load-0.test", test_session("first"));
        sessions.save(&[account]).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Sessions::load(&path).unwrap();
        assert_eq!(again.by_handle["load-0.test"].did, "did:plc:abc");
        fs::write(&path, "not json").unwrap();
        assert!(Sessions::load(&path).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
