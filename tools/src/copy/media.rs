//! Media: every object `blobs/<did>/<cid>`, page by page. Each says by its name what it must be.

use std::collections::HashSet;

use anyhow::Context;
use shipper::store::{MAX_LIST, ObjectMeta, RetryPolicy, retry};

use super::transfer::{Content, Object, Transfer};

/// Where media are, in every store.
const PREFIX: &str = "blobs/";

/// Gives the number of objects that are no media. What is deleted meanwhile is left out.
pub async fn copy(transfer: &Transfer) -> anyhow::Result<u64> {
    let (mut after, mut foreign): (Option<String>, u64) = (None, 0);
    loop {
        let list = || transfer.from.list(PREFIX, after.as_deref(), MAX_LIST);
        let page = retry(&RetryPolicy::default(), list).await;
        let page = page.context("listing media")?;
        let last_page = page.len() < MAX_LIST;
        after = page.last().map(|last| last.name.to_string());
        let found = page.len();
        let media: Vec<Object> = page.into_iter().filter_map(media).collect();
        foreign += (found - media.len()) as u64;
        transfer.bring_all(media, &HashSet::new()).await?;
        if last_page {
            return Ok(foreign);
        }
    }
}

fn media(object: ObjectMeta) -> Option<Object> {
    let (_, cid) = object.name.as_str().strip_prefix(PREFIX)?.split_once('/')?;
    Some(Object {
        content: Content::Media(cid.parse().ok()?),
        size: object.size,
        name: object.name,
    })
}
