//! `com.atproto.admin.*` but for invite codes: what administrators and moderators see and do. Whatever changes something is
//! written down first.

use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use engine::repo::{AtIdentifier, Cid, Did, RepoPath, datetime};
use engine::views::accounts::model;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::auth::{acting_moderator, admin};
use super::error::{XrpcError, XrpcResult};
use super::invites::invite_json;
use super::request::{JSON_LIMIT, Request, empty, json as json_answer};
use crate::app::App;
use crate::auth::replay::Use;
use crate::service::accounts::Account;
use crate::service::identity::By;
use crate::service::mail::Letter;
use crate::service::moderation::{AccountView, ModerationError, Subject, Takedown};

/// Who acts where only the administrator may.
pub(super) const ADMIN: &str = "admin";
/// Subject of a moderator's mail that has none.
const DEFAULT_SUBJECT: &str = "Message via your PDS";

/// `getAccountInfo`.
pub async fn get_account_info(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Did = request.params.parsed("did")?;
    let (_, used) = acting_moderator(&app, &request.headers, "com.atproto.admin.getAccountInfo").await?;
    request.no_body().await?;
    let found = app.moderation.accounts(vec![did]).await?;
    let view = found
        .first()
        .ok_or_else(|| XrpcError::bad("NotFound", "Account not found"))?;
    keep(used);
    json_answer(&view_json(view))
}

/// `getAccountInfos`: what is not here is left out.
pub async fn get_account_infos(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let dids: Vec<Did> = request.params.all("dids")?;
    if dids.is_empty() {
        return Err(XrpcError::invalid(
            "Error: Params must have the property \"dids\"",
        ));
    }
    let (_, used) = acting_moderator(&app, &request.headers, "com.atproto.admin.getAccountInfos").await?;
    request.no_body().await?;
    let found = app.moderation.accounts(dids).await?;
    keep(used);
    json_answer(&json!({ "infos": found.iter().map(view_json).collect::<Vec<_>>() }))
}

/// `searchAccounts`: by a part of the address, in order of creation.
pub async fn search_accounts(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let email = request.params.optional("email")?.map(str::to_owned);
    let limit = request.params.integer("limit", 1..=100, 50)?;
    let cursor = request.params.optional("cursor")?.map(parse_cursor).transpose()?;
    let (_, used) = acting_moderator(&app, &request.headers, "com.atproto.admin.searchAccounts").await?;
    request.no_body().await?;
    let found = app.moderation.search(email, cursor, limit).await?;
    let mut answer = Map::new();
    if let Some(last) = found.last().filter(|_| found.len() == limit) {
        let actor = &last.account.actor;
        answer.insert(
            "cursor".into(),
            format!("{}::{}", actor.created_at, actor.did).into(),
        );
    }
    answer.insert("accounts".into(), found.iter().map(view_json).collect());
    keep(used);
    json_answer(&Value::Object(answer))
}

/// `getSubjectStatus`: of a blob, a record or an account, in this order.
pub async fn get_subject_status(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let did: Option<Did> = request.params.parsed_optional("did")?;
    let uri = request.params.optional("uri")?.map(parse_uri).transpose()?;
    let blob: Option<Cid> = request.params.parsed_optional("blob")?;
    let (_, used) = acting_moderator(&app, &request.headers, "com.atproto.admin.getSubjectStatus").await?;
    request.no_body().await?;
    let missing = || XrpcError::bad("NotFound", "Subject not found");
    let answer = match (did, uri, blob) {
        (None, _, Some(_)) => return Err(XrpcError::invalid("Must provide a did to request blob state")),
        (Some(did), _, Some(cid)) => {
            let known = app.engine.reader().and_then(|reader| reader.blob(&did, &cid));
            if known.map_err(XrpcError::internal)?.is_none() {
                return Err(missing());
            }
            let hidden = app.moderation.takedown_of(&did, &Subject::Blob(cid)).await?;
            json!({
                "subject": { "$type": BLOB_REF, "did": did, "cid": cid.to_string() },
                "takedown": takedown_json(hidden.as_deref()),
            })
        }
        (_, Some((did, path)), None) => {
            let known = crate::service::repos::read::record(&app.engine, &did, &path)?;
            let record = known.ok_or_else(missing)?;
            let uri = format!("at://{did}/{path}");
            let hidden = app.moderation.takedown_of(&did, &Subject::Record(path)).await?;
            json!({
                "subject": { "$type": STRONG_REF, "uri": uri, "cid": record.cid.to_string() },
                "takedown": takedown_json(hidden.as_deref()),
            })
        }
        (Some(did), None, None) => {
            let found = app.moderation.accounts(vec![did.clone()]).await?;
            let actor = &found.first().ok_or_else(missing)?.account.actor;
            json!({
                "subject": { "$type": REPO_REF, "did": did },
                "takedown": takedown_json(actor.takedown_ref.as_deref()),
                "deactivated": { "applied": actor.deactivated_at.is_some() },
            })
        }
        (None, None, None) => return Err(XrpcError::invalid("No provided subject")),
    };
    keep(used);
    json_answer(&answer)
}

const REPO_REF: &str = "com.atproto.admin.defs#repoRef";
const STRONG_REF: &str = "com.atproto.repo.strongRef";
const BLOB_REF: &str = "com.atproto.admin.defs#repoBlobRef";

/// `updateSubjectStatus`: hides and shows accounts, records and blobs; switches accounts off and on.
pub async fn update_subject_status(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        subject: Value,
        takedown: Option<Attr>,
        deactivated: Option<Attr>,
    }
    #[derive(Deserialize)]
    struct Attr {
        applied: bool,
        #[serde(rename = "ref")]
        reference: Option<String>,
    }
    let method = "com.atproto.admin.updateSubjectStatus";
    let (actor, used) = acting_moderator(&app, &request.headers, method).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let (did, part) = parse_subject(&input.subject)?;
    let off = input.deactivated.as_ref().map(|attr| attr.applied);
    if off == Some(false) && input.takedown.as_ref().is_some_and(|attr| attr.applied) {
        return Err(XrpcError::invalid(
            "Cannot takedown an account and activate it at the same time",
        ));
    }
    let takedown = input.takedown.map(|attr| Takedown {
        applied: attr.applied,
        reference: attr.reference,
    });
    let told = takedown.as_ref().map(|takedown| {
        let mut told = json!({ "applied": takedown.applied });
        if let Some(reference) = &takedown.reference {
            told["ref"] = reference.as_str().into();
        }
        told
    });
    let detail = json!({ "subject": input.subject, "takedown": told, "deactivated": off });
    let act = async {
        match part {
            None => {
                // What activation does is told by itself.
                if takedown.is_some() || off != Some(false) {
                    app.moderation
                        .set_account(&did, takedown, off == Some(true))
                        .await?;
                }
                if off == Some(false) {
                    app.accounts.activate(&did).await?;
                }
            }
            Some(subject) => {
                if let Some(takedown) = takedown {
                    app.moderation.set_takedown(&did, &subject, takedown).await?;
                }
            }
        }
        Ok(())
    };
    recorded(&app, &actor, method, did.as_str(), detail, act).await?;
    keep(used);
    let mut answer = Map::new();
    answer.insert("subject".into(), input.subject);
    if let Some(told) = told {
        answer.insert("takedown".into(), told);
    }
    json_answer(&Value::Object(answer))
}

/// `updateAccountEmail`.
pub async fn update_account_email(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        account: AtIdentifier,
        email: String,
    }
    admin(&app, &request.headers)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let account = app.accounts.find(&input.account).await?;
    let account =
        account.ok_or_else(|| XrpcError::invalid(format!("Account does not exist: {}", input.account)))?;
    let act = async {
        let set = app.accounts.set_email_by_admin(&account.did, &input.email).await;
        Ok(set?)
    };
    let method = "com.atproto.admin.updateAccountEmail";
    recorded(&app, ADMIN, method, account.did.as_str(), json!({}), act).await?;
    Ok(empty())
}

/// `updateAccountHandle`: reserved names are allowed.
pub async fn update_account_handle(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        did: Did,
        handle: String,
    }
    admin(&app, &request.headers)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let account = known(&app, &input.did).await?;
    let detail = json!({ "handle": input.handle });
    let act = async {
        let updated = app
            .identities
            .update_handle(&account.did, &input.handle, By::Admin);
        Ok(updated.await?)
    };
    let method = "com.atproto.admin.updateAccountHandle";
    recorded(&app, ADMIN, method, account.did.as_str(), detail, act).await?;
    Ok(empty())
}

/// `updateAccountPassword`: ends the account's sessions.
pub async fn update_account_password(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        did: Did,
        password: String,
    }
    admin(&app, &request.headers)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let account = known(&app, &input.did).await?;
    let act = async {
        let set = app.accounts.set_password_by_admin(&account.did, &input.password);
        Ok(set.await?)
    };
    let method = "com.atproto.admin.updateAccountPassword";
    recorded(&app, ADMIN, method, account.did.as_str(), json!({}), act).await?;
    Ok(empty())
}

/// `updateAccountSigningKey`: to a key that this server has made by `reserveSigningKey`, since it has to sign with it.
pub async fn update_account_signing_key(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        did: Did,
        signing_key: String,
    }
    admin(&app, &request.headers)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let account = known(&app, &input.did).await?;
    let detail = json!({ "signingKey": input.signing_key });
    let act = async {
        let updated = app
            .identities
            .update_signing_key(&account.did, &input.signing_key);
        Ok(updated.await?)
    };
    let method = "com.atproto.admin.updateAccountSigningKey";
    recorded(&app, ADMIN, method, account.did.as_str(), detail, act).await?;
    Ok(empty())
}

/// `deleteAccount`: as its owner would, without code and password.
pub async fn delete_account(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        did: Did,
    }
    admin(&app, &request.headers)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let account = known(&app, &input.did).await?;
    let detail = json!({ "handle": account.handle_text() });
    let act = async { Ok(app.accounts.delete_by_admin(&account).await?) };
    let method = "com.atproto.admin.deleteAccount";
    recorded(&app, ADMIN, method, account.did.as_str(), detail, act).await?;
    Ok(empty())
}

/// `sendEmail`: what a moderator writes, by the moderators' mail server if they have one. Accounts in every state get it.
pub async fn send_email(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        recipient_did: Did,
        content: String,
        subject: Option<String>,
        sender_did: Option<Did>,
        comment: Option<String>,
    }
    let method = "com.atproto.admin.sendEmail";
    let (actor, used) = acting_moderator(&app, &request.headers, method).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let account = app.accounts.by_did(&input.recipient_did).await?;
    let account = account.ok_or_else(|| XrpcError::invalid("Recipient not found"))?;
    let address = account
        .email
        .as_deref()
        .ok_or_else(|| XrpcError::invalid("account does not have an email address"))?;
    let subject = input.subject.unwrap_or_else(|| DEFAULT_SUBJECT.to_owned());
    // What the mail says is between the two of them.
    let detail = json!({ "subject": subject, "sender": input.sender_did, "comment": input.comment });
    let letter = Letter::Moderation {
        subject,
        content: input.content,
    };
    let act = async {
        let queued = app
            .accounts
            .mail(account.did.as_str(), address, letter, Vec::new(), |_| Ok(()));
        Ok(queued.await?)
    };
    recorded(&app, &actor, method, account.did.as_str(), detail, act).await?;
    keep(used);
    json_answer(&json!({ "sent": true }))
}

/// Writes down what is about to be done, does it, and writes down what came of it. An error is written down by its name: its
/// message may tell what is nobody's business.
pub(super) async fn recorded<T>(
    app: &App,
    actor: &str,
    action: &str,
    subject: &str,
    detail: Value,
    act: impl Future<Output = XrpcResult<T>>,
) -> XrpcResult<T> {
    let detail = match detail {
        Value::Object(detail) => detail,
        _ => Map::new(),
    };
    let noted = app.moderation.note(actor, action, subject, detail).await?;
    let done = act.await;
    let outcome = done.as_ref().map_or_else(|error| error.name.as_ref(), |_| "done");
    app.moderation.conclude(noted, outcome).await;
    done
}

async fn known(app: &App, did: &Did) -> XrpcResult<Account> {
    let account = app.accounts.by_did(did).await?;
    account.ok_or_else(|| XrpcError::invalid(format!("Account does not exist: {did}")))
}

fn keep(used: Option<Use>) {
    if let Some(used) = used {
        used.keep();
    }
}

fn takedown_json(reference: Option<&str>) -> Value {
    match reference {
        Some(reference) => json!({ "applied": true, "ref": reference }),
        None => json!({ "applied": false }),
    }
}

fn view_json(view: &AccountView) -> Value {
    let model::Account { actor, login } = &view.account;
    let mut answer = Map::new();
    answer.insert("did".into(), actor.did.as_str().into());
    let handle = actor.handle.as_deref().unwrap_or("handle.invalid");
    answer.insert("handle".into(), handle.into());
    answer.insert("indexedAt".into(), actor.created_at.as_str().into());
    if let Some(login) = login {
        answer.insert("email".into(), login.email.as_str().into());
        if let Some(at) = &login.email_confirmed_at {
            answer.insert("emailConfirmedAt".into(), at.as_str().into());
        }
    }
    if let Some(invite) = &view.invited_by {
        answer.insert("invitedBy".into(), invite_json(invite));
    }
    answer.insert("invites".into(), view.invites.iter().map(invite_json).collect());
    let disabled = login.as_ref().is_some_and(|login| login.invites_disabled);
    answer.insert("invitesDisabled".into(), disabled.into());
    if let Some(at) = &actor.deactivated_at {
        answer.insert("deactivatedAt".into(), at.as_str().into());
    }
    Value::Object(answer)
}

/// An account, or a part of what it has.
fn parse_subject(subject: &Value) -> XrpcResult<(Did, Option<Subject>)> {
    let text = |field: &str| {
        let found = subject.get(field).and_then(Value::as_str);
        found.ok_or_else(|| XrpcError::invalid(format!("Invalid request body: subject.{field} is missing")))
    };
    let invalid =
        |error: &dyn std::fmt::Display| XrpcError::invalid(format!("Invalid request body: {error}"));
    match text("$type")? {
        REPO_REF => Ok((text("did")?.parse().map_err(|error| invalid(&error))?, None)),
        STRONG_REF => {
            let (did, path) = parse_uri(text("uri")?)?;
            Ok((did, Some(Subject::Record(path))))
        }
        BLOB_REF => {
            let did = text("did")?.parse().map_err(|error| invalid(&error))?;
            let cid = text("cid")?.parse().map_err(|error| invalid(&error))?;
            Ok((did, Some(Subject::Blob(cid))))
        }
        _ => Err(XrpcError::invalid("Invalid subject")),
    }
}

/// `at://<did>/<collection>/<key>`.
fn parse_uri(uri: &str) -> XrpcResult<(Did, RepoPath)> {
    let parsed = uri.strip_prefix("at://").and_then(|rest| {
        let (did, path) = rest.split_once('/')?;
        Some((did.parse().ok()?, RepoPath::from_bytes(path.as_bytes()).ok()?))
    });
    parsed.ok_or_else(|| {
        XrpcError::invalid("Error: uri must be the at-uri of a record under its account's DID")
    })
}

/// `<creation time>::<did>`.
fn parse_cursor(cursor: &str) -> XrpcResult<(String, String)> {
    let malformed = || XrpcError::invalid("Malformed cursor");
    let (at, did) = cursor.split_once("::").ok_or_else(malformed)?;
    datetime::parse_datetime(at).map_err(|_| malformed())?;
    did.parse::<Did>().map_err(|_| malformed())?;
    Ok((at.to_owned(), did.to_owned()))
}

impl From<ModerationError> for XrpcError {
    fn from(error: ModerationError) -> XrpcError {
        match error {
            ModerationError::NoAccount => XrpcError::bad("NotFound", "Subject not found"),
            ModerationError::Change(change) => change.into(),
        }
    }
}
