//! Invite codes: those of `com.atproto.server.*`, and of `com.atproto.admin.*` for moderators.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use engine::repo::Did;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::admin::{ADMIN, recorded};
use super::auth::{account_in_standing, acting_moderator, admin, moderator};
use super::error::{XrpcError, XrpcResult};
use super::request::{JSON_LIMIT, Request, empty, json as json_answer};
use crate::app::App;
use crate::auth::permission::Access;
use crate::auth::replay::Use;
use crate::service::accounts::{Invite, InviteCursor, InviteError, InviteOrder};

/// What the audit log calls the subject of an action on many codes.
const CODES: &str = "invite codes";

/// `createInviteCode`, for the administrator.
pub async fn create_one(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        use_count: u32,
        for_account: Option<Did>,
    }
    admin(&app, &request.headers)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let owner = input.for_account.as_ref().map_or(ADMIN, Did::as_str);
    let act = async { Ok(app.accounts.create_invite(input.use_count, owner).await?) };
    let method = "com.atproto.server.createInviteCode";
    let detail = json!({ "useCount": input.use_count });
    let code = recorded(&app, ADMIN, method, owner, detail, act).await?;
    json_answer(&json!({ "code": code }))
}

/// `createInviteCodes`, for the administrator.
pub async fn create(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Input {
        code_count: u32,
        use_count: u32,
        for_accounts: Option<Vec<Did>>,
    }
    admin(&app, &request.headers)?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let accounts: Vec<String> = match input.for_accounts {
        Some(accounts) => accounts.iter().map(Did::to_string).collect(),
        None => vec![ADMIN.to_owned()],
    };
    let count = usize::try_from(input.code_count).unwrap_or(usize::MAX);
    let detail = json!({ "codeCount": input.code_count, "useCount": input.use_count, "accounts": accounts });
    let act = async {
        let made = app.accounts.create_invites(input.use_count, count, accounts);
        Ok(made.await?)
    };
    let method = "com.atproto.server.createInviteCodes";
    let made = recorded(&app, ADMIN, method, CODES, detail, act).await?;
    let codes = made
        .into_iter()
        .map(|(account, codes)| json!({ "account": account, "codes": codes }));
    json_answer(&json!({ "codes": codes.collect::<Vec<Value>>() }))
}

/// `getAccountInviteCodes`, with the account's own password only.
pub async fn of_account(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let include_used = request.params.flag_or("includeUsed", true)?;
    let create_available = request.params.flag_or("createAvailable", true)?;
    let account = account_in_standing(&app, &request.headers, Access::Full).await?;
    request.no_body().await?;
    let invites = app.accounts.invites_of(&account.did, create_available).await;
    let invites = match invites {
        Err(error @ InviteError::NoAccount) => return Err(XrpcError::bad("NotFound", error.to_string())),
        invites => invites?,
    };
    let has_uses = |invite: &Invite| (invite.uses.len() as u64) < u64::from(invite.available);
    let shown = invites
        .iter()
        .filter(|invite| include_used || has_uses(invite))
        .map(invite_json);
    json_answer(&json!({ "codes": shown.collect::<Vec<Value>>() }))
}

/// `com.atproto.admin.getInviteCodes`.
pub async fn all(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    let order = match request.params.optional("sort")? {
        None | Some("recent") => InviteOrder::Recent,
        Some("usage") => InviteOrder::Usage,
        Some(other) => return Err(XrpcError::invalid(format!("unknown sort method: {other}"))),
    };
    let limit = request.params.integer("limit", 1..=500, 100)?;
    let cursor = request.params.optional("cursor")?.map(parse_cursor).transpose()?;
    let used = moderator(&app, &request.headers, "com.atproto.admin.getInviteCodes").await?;
    request.no_body().await?;
    let (invites, next) = app.accounts.invites(order, cursor, limit).await?;
    let mut answer = Map::new();
    if let Some(next) = next {
        answer.insert("cursor".into(), format!("{}::{}", next.key, next.code).into());
    }
    answer.insert("codes".into(), invites.iter().map(invite_json).collect());
    keep(used);
    json_answer(&Value::Object(answer))
}

/// `com.atproto.admin.disableInviteCodes`.
pub async fn disable(app: Arc<App>, mut request: Request) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        codes: Option<Vec<String>>,
        accounts: Option<Vec<String>>,
    }
    let method = "com.atproto.admin.disableInviteCodes";
    let (actor, used) = acting_moderator(&app, &request.headers, method).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let (codes, accounts) = (
        input.codes.unwrap_or_default(),
        input.accounts.unwrap_or_default(),
    );
    let detail = json!({ "codes": codes, "accounts": accounts });
    let act = async { Ok(app.accounts.disable_invites(codes, accounts).await?) };
    recorded(&app, &actor, method, CODES, detail, act).await?;
    keep(used);
    Ok(empty())
}

/// `com.atproto.admin.disableAccountInvites`.
pub async fn disable_account(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    set_account(&app, request, "com.atproto.admin.disableAccountInvites", true).await
}

/// `com.atproto.admin.enableAccountInvites`.
pub async fn enable_account(app: Arc<App>, request: Request) -> XrpcResult<Response<Body>> {
    set_account(&app, request, "com.atproto.admin.enableAccountInvites", false).await
}

async fn set_account(
    app: &App,
    mut request: Request,
    method: &str,
    disabled: bool,
) -> XrpcResult<Response<Body>> {
    #[derive(Deserialize)]
    struct Input {
        account: Did,
        note: Option<String>,
    }
    let (actor, used) = acting_moderator(app, &request.headers, method).await?;
    let input: Input = request.json(JSON_LIMIT).await?;
    let act = async {
        let set = app.accounts.set_invites_disabled(&input.account, disabled);
        Ok(set.await?)
    };
    let detail = json!({ "note": input.note });
    recorded(app, &actor, method, input.account.as_str(), detail, act).await?;
    keep(used);
    Ok(empty())
}

fn keep(used: Option<Use>) {
    if let Some(used) = used {
        used.keep();
    }
}

/// A code as `com.atproto.server.defs#inviteCode`.
pub(super) fn invite_json(invite: &Invite) -> Value {
    let uses = invite
        .uses
        .iter()
        .map(|(by, at)| json!({ "usedBy": by, "usedAt": at }));
    json!({
        "code": invite.code,
        "available": invite.available,
        "disabled": invite.disabled,
        "forAccount": invite.for_account,
        "createdBy": invite.created_by,
        "createdAt": invite.created_at,
        "uses": uses.collect::<Vec<Value>>(),
    })
}

/// `<creation time in ms>::<code>`, or `<uses>::<code>`.
fn parse_cursor(cursor: &str) -> XrpcResult<InviteCursor> {
    let malformed = || XrpcError::invalid("Malformed cursor");
    let (key, code) = cursor.split_once("::").ok_or_else(malformed)?;
    let key: u64 = key.parse().map_err(|_| malformed())?;
    // As far as a time goes, which the other kind stays far below.
    if key >= (1 << 53) / 1000 || code.is_empty() {
        return Err(malformed());
    }
    Ok(InviteCursor {
        key,
        code: code.to_owned(),
    })
}

impl From<InviteError> for XrpcError {
    fn from(error: InviteError) -> XrpcError {
        match error {
            InviteError::NoAccount | InviteError::TooMany | InviteError::Admin => {
                XrpcError::invalid(error.to_string())
            }
            InviteError::Change(change) => change.into(),
        }
    }
}
