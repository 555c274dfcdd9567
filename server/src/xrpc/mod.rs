//! XRPC over HTTP: the table of methods, and the order of checks that every request passes.
//!
//! Order: verb → parameters → authentication → body → handler, so a bad parameter wins over missing credentials and
//! those over a bad body (<https://atproto.com/specs/xrpc>). A handler reads as a sentence: it takes what it needs
//! from the [`Request`], calls a service and shapes the answer.

pub mod actor;
pub mod admin;
pub mod auth;
pub mod error;
pub mod feed;
pub mod identity;
pub mod invites;
pub mod moderation;
pub mod notification;
pub mod params;
pub mod repo;
pub mod request;
pub mod room;
pub mod server;
pub mod service_auth;
pub mod sync;
pub mod temp;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Method, Response, header};

use crate::app::App;
use crate::auth::methods::{CREATE_REPORT, REGISTER_PUSH, UNREGISTER_PUSH};
use crate::limits::Meter;
use crate::limits::buckets::{self, CountedBy};
use crate::proxy::{Call, catch_all};
use error::{XrpcError, XrpcResult};
use params::Params;
use request::{Metered, Request};

type Answer = Pin<Box<dyn Future<Output = XrpcResult<Response<Body>>> + Send>>;

/// Whether a method reads or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Query,
    Procedure,
}

/// One row of the table.
pub struct Row {
    nsid: &'static str,
    verb: Verb,
    /// Whether the answer depends on who asks, so that no shared cache may keep it.
    private: bool,
    call: fn(Arc<App>, Request) -> Answer,
}

macro_rules! rows {
    ($($nsid:literal $verb:ident $privacy:ident $handler:path;)*) => {
        &[$(Row {
            nsid: $nsid,
            verb: Verb::$verb,
            private: rows!(@$privacy),
            call: |app, request| Box::pin($handler(app, request)),
        }),*]
    };
    (@private) => { true };
    (@public) => { false };
}

/// Every method that is served here. `subscribeRepos` is a WebSocket and routed by the firehose.
static METHODS: &[Row] = rows! {
    "com.atproto.server.describeServer" Query public server::describe_server;
    "com.atproto.server.createAccount" Procedure private server::create_account;
    "com.atproto.server.createInviteCode" Procedure private invites::create_one;
    "com.atproto.server.createInviteCodes" Procedure private invites::create;
    "com.atproto.server.getAccountInviteCodes" Query private invites::of_account;
    "com.atproto.admin.getAccountInfo" Query private admin::get_account_info;
    "com.atproto.admin.getAccountInfos" Query private admin::get_account_infos;
    "com.atproto.admin.searchAccounts" Query private admin::search_accounts;
    "com.atproto.admin.getSubjectStatus" Query private admin::get_subject_status;
    "com.atproto.admin.updateSubjectStatus" Procedure private admin::update_subject_status;
    "com.atproto.admin.updateAccountEmail" Procedure private admin::update_account_email;
    "com.atproto.admin.updateAccountHandle" Procedure private admin::update_account_handle;
    "com.atproto.admin.updateAccountPassword" Procedure private admin::update_account_password;
    "com.atproto.admin.updateAccountSigningKey" Procedure private admin::update_account_signing_key;
    "com.atproto.admin.deleteAccount" Procedure private admin::delete_account;
    "com.atproto.admin.sendEmail" Procedure private admin::send_email;
    "com.atproto.admin.getInviteCodes" Query private invites::all;
    "com.atproto.admin.disableInviteCodes" Procedure private invites::disable;
    "com.atproto.admin.disableAccountInvites" Procedure private invites::disable_account;
    "com.atproto.admin.enableAccountInvites" Procedure private invites::enable_account;
    "com.atproto.server.createSession" Procedure public server::create_session;
    "com.atproto.server.refreshSession" Procedure private server::refresh_session;
    "com.atproto.server.getSession" Query private server::get_session;
    "com.atproto.server.deleteSession" Procedure private server::delete_session;
    "com.atproto.server.createAppPassword" Procedure private server::app_passwords::create;
    "com.atproto.server.listAppPasswords" Query private server::app_passwords::list;
    "com.atproto.server.revokeAppPassword" Procedure private server::app_passwords::revoke;
    "com.atproto.server.getServiceAuth" Query private service_auth::get_service_auth;
    "com.atproto.server.requestPasswordReset" Procedure public server::email::request_password_reset;
    "com.atproto.server.resetPassword" Procedure public server::email::reset_password;
    "com.atproto.server.requestEmailConfirmation" Procedure private server::email::request_confirmation;
    "com.atproto.server.confirmEmail" Procedure private server::email::confirm;
    "com.atproto.server.requestEmailUpdate" Procedure private server::email::request_update;
    "com.atproto.server.updateEmail" Procedure private server::email::update;
    "com.atproto.server.requestAccountDelete" Procedure private server::deletion::request;
    "com.atproto.server.activateAccount" Procedure private server::life::activate;
    "com.atproto.server.deactivateAccount" Procedure private server::life::deactivate;
    "com.atproto.server.checkAccountStatus" Query private server::life::check_status;
    "com.atproto.server.reserveSigningKey" Procedure public server::life::reserve_key;
    "com.atproto.server.deleteAccount" Procedure public server::deletion::delete;
    "com.atproto.identity.resolveHandle" Query public identity::resolve_handle;
    "com.atproto.identity.resolveDid" Query public identity::resolve_did;
    "com.atproto.identity.resolveIdentity" Query public identity::resolve_identity;
    "com.atproto.identity.refreshIdentity" Procedure private identity::refresh_identity;
    "com.atproto.identity.updateHandle" Procedure private identity::update_handle;
    "com.atproto.identity.getRecommendedDidCredentials" Query private identity::get_recommended_did_credentials;
    "com.atproto.identity.requestPlcOperationSignature" Procedure private identity::request_plc_operation_signature;
    "com.atproto.identity.signPlcOperation" Procedure private identity::sign_plc_operation;
    "com.atproto.identity.submitPlcOperation" Procedure private identity::submit_plc_operation;
    "com.atproto.moderation.createReport" Procedure private moderation::create_report;
    "com.atproto.repo.createRecord" Procedure private repo::create_record;
    "com.atproto.repo.putRecord" Procedure private repo::put_record;
    "com.atproto.repo.deleteRecord" Procedure private repo::delete_record;
    "com.atproto.repo.applyWrites" Procedure private repo::apply_writes;
    "com.atproto.repo.getRecord" Query public repo::get_record;
    "com.atproto.repo.listRecords" Query public repo::list_records;
    "com.atproto.repo.describeRepo" Query public repo::describe_repo;
    "com.atproto.repo.uploadBlob" Procedure private repo::upload_blob;
    "com.atproto.repo.listMissingBlobs" Query private repo::list_missing_blobs;
    "com.atproto.repo.importRepo" Procedure private repo::import_repo;
    "com.atproto.sync.getRepo" Query private sync::get_repo;
    "com.atproto.sync.getBlocks" Query private sync::get_blocks;
    "com.atproto.sync.getRecord" Query private sync::get_record;
    "com.atproto.sync.getLatestCommit" Query private sync::get_latest_commit;
    "com.atproto.sync.getRepoStatus" Query public sync::get_repo_status;
    "com.atproto.sync.listRepos" Query public sync::list_repos;
    "com.atproto.sync.getHead" Query private sync::get_head;
    "com.atproto.sync.getCheckout" Query private sync::get_checkout;
    "com.atproto.sync.getBlob" Query private sync::get_blob;
    "com.atproto.sync.listBlobs" Query private sync::list_blobs;
    "app.bsky.actor.getPreferences" Query private actor::get_preferences;
    "app.bsky.actor.putPreferences" Procedure private actor::put_preferences;
    "app.bsky.actor.getProfile" Query private actor::get_profile;
    "app.bsky.actor.getProfiles" Query private actor::get_profiles;
    "app.bsky.feed.getTimeline" Query private feed::get_timeline;
    "app.bsky.feed.getAuthorFeed" Query private feed::get_author_feed;
    "app.bsky.feed.getActorLikes" Query private feed::get_actor_likes;
    "app.bsky.feed.getPostThread" Query private feed::get_post_thread;
    "app.bsky.feed.getFeed" Query private feed::get_feed;
    "app.bsky.notification.registerPush" Procedure private notification::register_push;
    "app.bsky.notification.unregisterPush" Procedure private notification::unregister_push;
    "com.atproto.temp.checkSignupQueue" Query private temp::check_signup_queue;
};

impl Row {
    /// The method's name.
    #[must_use]
    pub fn nsid(&self) -> &'static str {
        self.nsid
    }

    /// Its place in the table.
    #[must_use]
    pub fn at(&'static self) -> usize {
        METHODS
            .iter()
            .position(|row| std::ptr::eq(row, self))
            .unwrap_or(METHODS.len())
    }
}

/// How many methods there are.
#[must_use]
pub fn methods() -> usize {
    METHODS.len()
}

/// The method at a request's path, if it is spelled as in the table.
#[must_use]
pub fn find(path: &str) -> Option<&'static Row> {
    let nsid = path.strip_prefix("/xrpc/")?;
    METHODS.iter().find(|row| row.nsid == nsid)
}

/// Calls a method.
pub async fn call(app: Arc<App>, row: &'static Row, request: axum::extract::Request) -> Response<Body> {
    let (answer, private) = answer(app, row, request).await;
    let response = answer.unwrap_or_else(XrpcError::into_http);
    if private {
        for_the_caller(response)
    } else {
        response
    }
}

/// An answer that no shared cache may keep.
fn for_the_caller(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private"));
    headers.append(header::VARY, HeaderValue::from_static("Authorization"));
    response
}

/// Whether a request may change what this server keeps. What is only passed to another service does not; a path in a spelling of
/// its own may lead anywhere.
#[must_use]
pub fn is_write(method: &Method, path: &str) -> bool {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return false;
    }
    match path.strip_prefix("/xrpc/") {
        Some(CREATE_REPORT | REGISTER_PUSH | UNREGISTER_PUSH) => false,
        Some(nsid) => nsid.contains(['%', '/']) || METHODS.iter().any(|row| row.nsid == nsid),
        None => true,
    }
}

/// `/xrpc/{nsid}` with any verb, for what [`find`] does not know: other spellings, and mistakes.
pub async fn dispatch(
    State(app): State<Arc<App>>,
    nsid: Result<Path<String>, PathRejection>,
    request: axum::extract::Request,
) -> Response<Body> {
    let Ok(Path(nsid)) = nsid else {
        return invalid_path().into_http();
    };
    match METHODS.iter().find(|row| row.nsid == nsid) {
        Some(row) => call(app, row, request).await,
        None => for_the_caller(
            elsewhere(&app, &nsid, request)
                .await
                .unwrap_or_else(XrpcError::into_http),
        ),
    }
}

async fn answer(
    app: Arc<App>,
    row: &Row,
    request: axum::extract::Request,
) -> (XrpcResult<Response<Body>>, bool) {
    let (parts, body) = request.into_parts();
    if let Err(error) = check_verb(row, &parts.method) {
        return (Err(error), false);
    }
    let params = match Params::parse(parts.uri.query()) {
        Ok(params) => params,
        Err(error) => return (Err(error), row.private),
    };
    let place = app.bodies.place();
    let metered = metered(&app, row, &parts);
    let answer = (row.call)(
        app,
        Request {
            method: parts.method,
            uri: parts.uri,
            params,
            headers: parts.headers,
            body,
            place,
            metered,
        },
    )
    .await;
    (answer, row.private)
}

/// How a request is counted by its method's own buckets, if it is.
fn metered(app: &App, row: &Row, parts: &axum::http::request::Parts) -> Metered {
    let Some(meter) = parts.extensions.get::<Arc<Meter>>() else {
        return Metered::default();
    };
    let limit = buckets::of(row.nsid);
    // Whoever has no good token is refused before anything is counted for an account.
    let account = limit
        .filter(|limit| limit.by == CountedBy::Account)
        .and_then(|_| auth::session_did(app, &parts.headers));
    Metered::new(meter.clone(), limit, account)
}

fn check_verb(row: &Row, method: &Method) -> XrpcResult<()> {
    let expected = match row.verb {
        Verb::Query => "GET",
        Verb::Procedure => "POST",
    };
    match *method {
        Method::GET | Method::HEAD if row.verb == Verb::Query => Ok(()),
        Method::POST if row.verb == Verb::Procedure => Ok(()),
        Method::GET | Method::HEAD | Method::POST => Err(XrpcError::invalid(format!(
            "Incorrect HTTP method ({method}) expected {expected}"
        ))),
        _ => Err(XrpcError::invalid(
            "XRPC requests only supports GET, HEAD and POST",
        )),
    }
}

/// What is no method's path at all.
#[must_use]
pub fn invalid_path() -> XrpcError {
    XrpcError::invalid("invalid xrpc path")
}

/// What another service has to answer.
async fn elsewhere(app: &App, nsid: &str, request: axum::extract::Request) -> XrpcResult<Response<Body>> {
    if nsid.parse::<engine::repo::Nsid>().is_err() {
        return Err(invalid_path());
    }
    let (parts, body) = request.into_parts();
    if !matches!(parts.method, Method::GET | Method::HEAD | Method::POST) {
        return Err(XrpcError::invalid(
            "XRPC requests only supports GET, HEAD and POST",
        ));
    }
    let call = Call {
        method: parts.method,
        nsid,
        query: parts.uri.query(),
        headers: &parts.headers,
        body,
    };
    catch_all(app, call).await
}

#[cfg(test)]
mod tests;
