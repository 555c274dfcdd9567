//! What an account has that a service does not know yet.

use std::collections::HashSet;

use engine::log::Location;
use engine::repo::datetime::format_datetime;
use engine::repo::json::cbor_to_json;
use engine::repo::{Cid, Did, Nsid, RepoPath, Tid};
use engine::views::index::{ChangedBlock, IndexReader, Stop};
use serde_json::{Map, Value, json};

use super::super::query_of;
use crate::app::App;
use crate::service::core::Core;
use crate::xrpc::error::{XrpcError, XrpcResult};
use crate::xrpc::request::blocking;

/// Most new posts that are added to one answer: the oldest, which were missed for the longest time.
const POSTS_MAX: usize = 10;
/// Most blocks of a repo that are looked at for what is new. A service that is so far behind is not completed.
const LOOKED_AT: usize = 4096;

const POSTS: &str = "app.bsky.feed.post";
const PROFILES: &str = "app.bsky.actor.profile";
const PROFILE_KEY: &str = "self";

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Profile,
    Posts,
    ProfileAndPosts,
}

impl Wanted {
    fn posts(self) -> bool {
        matches!(self, Wanted::Posts | Wanted::ProfileAndPosts)
    }

    fn profile(self) -> bool {
        matches!(self, Wanted::Profile | Wanted::ProfileAndPosts)
    }
}

/// What is new of an account, and who it is. There is something new.
pub(super) struct Local {
    pub(super) did: Did,
    pub(super) handle: String,
    /// The account's profile as it is now, if it has one and it is needed.
    profile: Option<Map<String, Value>>,
    /// When it changed, microseconds since 1970, if that is new.
    changed: Option<u64>,
    /// New posts, the oldest first.
    pub(super) posts: Vec<Post>,
    images: Images,
}

/// A new post.
pub(super) struct Post {
    pub(super) uri: String,
    pub(super) cid: String,
    pub(super) record: Map<String, Value>,
    pub(super) micros: u64,
    /// The same as text.
    pub(super) indexed_at: String,
}

/// Where images are.
enum Images {
    /// Where the settings say: `%s` stands for size, DID and CID.
    Pattern(String),
    /// Here, below this URL.
    Here(String),
}

impl Images {
    fn new(app: &App) -> Images {
        match &app.config.upstreams.images {
            Some(pattern) => Images::Pattern(pattern.clone()),
            None => Images::Here(app.config.public_url()),
        }
    }

    fn url(&self, size: &str, did: &Did, cid: &str) -> String {
        match self {
            Images::Pattern(pattern) => {
                let mut url = pattern.clone();
                for part in [size, did.as_str(), cid] {
                    url = url.replacen("%s", part, 1);
                }
                url
            }
            Images::Here(base) => {
                let query = query_of([("did", did.as_str()), ("cid", cid)]);
                format!("{base}/xrpc/com.atproto.sync.getBlob?{query}")
            }
        }
    }
}

/// What is found in the repo.
#[derive(Default)]
struct Found {
    profile: Option<Map<String, Value>>,
    changed: Option<u64>,
    posts: Vec<Post>,
}

/// Keys that moderators have hidden.
#[derive(Default)]
struct Hidden {
    posts: HashSet<String>,
    profile: bool,
}

/// What `did` has beyond `rev`; `None` if that is nothing of what is wanted, or cannot be told.
///
/// # Errors
/// Index, log or account database cannot be read.
pub(super) async fn since(app: &App, did: &Did, rev: Tid, wanted: Wanted) -> XrpcResult<Option<Local>> {
    let reader = app.engine.reader().map_err(XrpcError::internal)?;
    let head = reader.repo(did).map_err(XrpcError::internal)?;
    if head.is_none_or(|head| head.rev <= rev) {
        return Ok(None);
    }
    let account = app.accounts.by_did(did).await?;
    let Some(account) = account.filter(|account| account.check_not_taken_down().is_ok()) else {
        return Ok(None);
    };
    let hidden = if account.hides_some {
        hidden(app, did).await?
    } else {
        Hidden::default()
    };
    let (engine, whose) = (app.engine.clone(), did.clone());
    let found = blocking(move || find(&engine, &reader, &whose, rev, wanted, &hidden)).await?;
    let Some(Found {
        profile,
        changed,
        posts,
    }) = found.filter(|found| found.changed.is_some() || !found.posts.is_empty())
    else {
        return Ok(None);
    };
    Ok(Some(Local {
        handle: account.handle_text().to_owned(),
        did: did.clone(),
        profile,
        changed,
        posts,
        images: Images::new(app),
    }))
}

async fn hidden(app: &App, did: &Did) -> XrpcResult<Hidden> {
    let keys = async |collection: &str| {
        let collection: Nsid = collection.parse().map_err(XrpcError::internal)?;
        let keys = app.moderation.hidden_records(did, &collection).await?;
        Ok::<_, XrpcError>(keys)
    };
    Ok(Hidden {
        posts: keys(POSTS).await?,
        profile: keys(PROFILES).await?.contains(PROFILE_KEY),
    })
}

/// A record that changed.
struct Row {
    rev: Tid,
    path: String,
    cid: Cid,
    location: Location,
}

/// What changed of a collection; `None` if that cannot be told, or is too much.
fn changed(reader: &IndexReader, did: &Did, since: Tid, collection: &str) -> XrpcResult<Option<Vec<Row>>> {
    let collection: Nsid = collection.parse().map_err(XrpcError::internal)?;
    let (mut rows, mut seen) = (Vec::new(), 0);
    let known = reader.changed_in(did, since, Some(&collection), |block| {
        seen += 1;
        if seen > LOOKED_AT {
            return Err("too much has changed");
        }
        if let ChangedBlock::Record {
            path,
            rev,
            cid,
            location,
        } = block
        {
            rows.push(Row {
                rev,
                path: path.to_owned(),
                cid: *cid,
                location,
            });
        }
        Ok(())
    });
    match known {
        Ok(known) => Ok(known.then_some(rows)),
        Err(Stop::Taker(why)) => {
            tracing::debug!(%did, why, "a service is too far behind to be completed");
            Ok(None)
        }
        Err(error) => Err(XrpcError::internal(error)),
    }
}

fn find(
    engine: &Core,
    reader: &IndexReader,
    did: &Did,
    since: Tid,
    wanted: Wanted,
    hidden: &Hidden,
) -> XrpcResult<Option<Found>> {
    let mut found = Found::default();
    let shown = format!("{PROFILES}/{PROFILE_KEY}");
    if wanted.profile() && !hidden.profile {
        let Some(rows) = changed(reader, did, since, PROFILES)? else {
            return Ok(None);
        };
        let own = rows.iter().find(|row| row.path == shown);
        found.changed = own.map(|row| row.rev.micros());
    }
    if wanted.posts() {
        let Some(mut rows) = changed(reader, did, since, POSTS)? else {
            return Ok(None);
        };
        let key = |row: &Row| row.path.get(POSTS.len() + 1..).map(str::to_owned);
        rows.retain(|row| key(row).is_some_and(|key| !hidden.posts.contains(&key)));
        rows.sort_by(|a, b| (a.rev, &a.path).cmp(&(b.rev, &b.path)));
        rows.truncate(POSTS_MAX);
        for row in rows {
            let micros = row.rev.micros();
            found.posts.push(Post {
                uri: format!("at://{did}/{}", row.path),
                cid: row.cid.to_string(),
                record: json_at(engine, row.location)?,
                micros,
                indexed_at: format_datetime(micros),
            });
        }
    }
    if !hidden.profile && (found.changed.is_some() || !found.posts.is_empty()) {
        let path: RepoPath = shown.parse().map_err(XrpcError::internal)?;
        let row = reader.record(did, &path).map_err(XrpcError::internal)?;
        found.profile = row.map(|row| json_at(engine, row.location)).transpose()?;
    }
    Ok(Some(found))
}

/// The record there.
fn json_at(engine: &Core, location: Location) -> XrpcResult<Map<String, Value>> {
    let block = engine
        .read_at(location)
        .map_err(|error| XrpcError::unavailable(error.to_string(), 5))?;
    let mut text = Vec::with_capacity(block.len() * 2);
    cbor_to_json(&block, &mut text).map_err(XrpcError::internal)?;
    serde_json::from_slice(&text).map_err(XrpcError::internal)
}

impl Local {
    /// When the oldest of all this was written, microseconds since 1970.
    pub(super) fn oldest_micros(&self) -> u64 {
        let posts = self.posts.iter().map(|post| post.micros);
        posts.chain(self.changed).min().unwrap_or_default()
    }

    /// The profile, if it changed.
    pub(super) fn changed_profile(&self) -> Option<&Map<String, Value>> {
        self.changed.and(self.profile.as_ref())
    }

    /// The account as the author of something.
    pub(super) fn author(&self) -> Value {
        let mut author = Map::new();
        author.insert("did".to_owned(), json!(self.did));
        author.insert("handle".to_owned(), json!(self.handle));
        if let Some(profile) = &self.profile {
            self.write_basics(&mut author, profile);
        }
        Value::Object(author)
    }

    /// Puts what every view of a profile shows into one.
    pub(super) fn write_basics(&self, view: &mut Map<String, Value>, profile: &Map<String, Value>) {
        for field in ["displayName", "pronouns"] {
            write(view, field, profile.get(field).cloned());
        }
        self.write_image(view, profile, "avatar");
    }

    /// Puts one of a profile's images into a view.
    pub(super) fn write_image(
        &self,
        view: &mut Map<String, Value>,
        profile: &Map<String, Value>,
        name: &str,
    ) {
        let url = profile.get(name).and_then(|blob| self.image(name, blob));
        write(view, name, url.map(Value::String));
    }

    /// Where an image is, in a size that the AppView's images come in.
    pub(super) fn image(&self, size: &str, blob: &Value) -> Option<String> {
        let cid = blob.pointer("/ref/$link").or_else(|| blob.get("cid"))?.as_str()?;
        Some(self.images.url(size, &self.did, cid))
    }

    /// Whether text names the account.
    pub(super) fn is(&self, name: &str) -> bool {
        name == self.did.as_str() || name.eq_ignore_ascii_case(&self.handle)
    }
}

/// Sets a field, or removes it.
pub(super) fn write(view: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            view.insert(field.to_owned(), value);
        }
        None => {
            view.remove(field);
        }
    }
}

impl Post {
    /// What it replies to: `root` or `parent`.
    pub(super) fn replied(&self, to: &str) -> Option<&str> {
        self.record.get("reply")?.get(to)?.get("uri")?.as_str()
    }
}
