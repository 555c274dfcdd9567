//! Other services, and the bounds of what goes there.

use std::time::Duration;

use engine::repo::Did;
use reqwest::Url;

use super::Reader;
use crate::config::{ProxySettings, Upstream, Upstreams};

/// Most relays that are asked to read the event stream.
const MOST_CRAWLERS: usize = 32;

fn is_service(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
        && url.host().is_some()
        && url.username().is_empty()
        && url.password().is_none()
}

impl Reader {
    pub(super) fn upstreams(&mut self) -> Upstreams {
        let moderation = self.upstream("PDS_MOD_SERVICE_URL", "PDS_MOD_SERVICE_DID");
        let reports = self.upstream("PDS_REPORT_SERVICE_URL", "PDS_REPORT_SERVICE_DID");
        let app_view = self.upstream("PDS_BSKY_APP_VIEW_URL", "PDS_BSKY_APP_VIEW_DID");
        Upstreams {
            images: self.images(app_view.is_some()),
            app_view,
            reports: reports.or_else(|| moderation.clone()),
            moderation,
        }
    }

    /// Where the AppView has images.
    fn images(&mut self, has_app_view: bool) -> Option<String> {
        const NAME: &str = "PDS_BSKY_APP_VIEW_CDN_URL_PATTERN";
        let pattern = self.text(NAME)?;
        let sound = Url::parse(&pattern.replace("%s", "x")).is_ok_and(|url| is_service(&url));
        if !sound || pattern.matches("%s").count() != 3 {
            self.problems.push(format!(
                "{NAME} must be an http or https URL with %s three times: for the size, the DID and the CID"
            ));
        } else if !has_app_view {
            self.warnings
                .push(format!("{NAME} has no effect without PDS_BSKY_APP_VIEW_URL"));
        }
        Some(pattern)
    }

    /// A service, if its URL is set. A DID alone is of no use, and told.
    fn upstream(&mut self, url_name: &'static str, did_name: &'static str) -> Option<Upstream> {
        let (url, did) = (self.text(url_name), self.text(did_name));
        let Some(url) = url else {
            if did.is_some() {
                self.warnings
                    .push(format!("{did_name} has no effect without {url_name}"));
            }
            return None;
        };
        let parsed = Url::parse(&url).ok().filter(is_service);
        if parsed.is_none() {
            self.problems.push(format!(
                "{url_name} must be an http or https URL without credentials"
            ));
        }
        let Some(did) = did else {
            self.problems.push(format!("{url_name} needs {did_name}"));
            return None;
        };
        let did = did
            .parse::<Did>()
            .map_err(|error| {
                self.problems
                    .push(format!("{did_name}: '{did}' is not a DID: {error}"));
            })
            .ok()?;
        let mut url = parsed?;
        url.set_path("");
        url.set_query(None);
        url.set_fragment(None);
        Some(Upstream { url, did })
    }

    /// Relays, at most [`MOST_CRAWLERS`].
    pub(super) fn crawlers(&mut self) -> Vec<Url> {
        let text = self.text("PDS_CRAWLERS").unwrap_or_default();
        let names: Vec<&str> = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        if names.len() > MOST_CRAWLERS {
            self.problems.push(format!(
                "PDS_CRAWLERS must not name more than {MOST_CRAWLERS} relays"
            ));
        }
        let parsed = names.into_iter().filter_map(|name| {
            let url = Url::parse(name).ok().filter(is_service);
            if url.is_none() {
                self.problems
                    .push("PDS_CRAWLERS must be http or https URLs without credentials".to_owned());
            }
            url
        });
        parsed.collect()
    }

    pub(super) fn proxy(&mut self) -> ProxySettings {
        let mut timeout = |name, default| Duration::from_millis(self.number(name, default, 1..=3_600_000));
        ProxySettings {
            headers_timeout: timeout("PDS_PROXY_HEADERS_TIMEOUT", 10_000),
            body_timeout: timeout("PDS_PROXY_BODY_TIMEOUT", 30_000),
            allow_http2: self.flag("PDS_PROXY_ALLOW_HTTP2", false),
            prefer_compressed: self.flag("PDS_PROXY_PREFER_COMPRESSED", false),
            max_response_bytes: self.number("PDS_PROXY_MAX_RESPONSE_SIZE", 10 << 20, 1..=1 << 32),
            max_retries: self.number("PDS_PROXY_MAX_RETRIES", 0, 0..=10),
            max_requests: self.number("PDS_PROXY_MAX_REQUESTS", 256, 1..=100_000),
            max_per_account: self.number("PDS_PROXY_MAX_PER_ACCOUNT", 64, 1..=100_000),
        }
    }
}
