//! Which service answers a request: the one that the client names in `atproto-proxy`, else the one that the settings have for
//! the method.

use axum::http::{HeaderMap, HeaderValue};
use engine::repo::Did;
use reqwest::Url;

use crate::auth::methods::CREATE_REPORT;
use crate::config::{Upstream, Upstreams};
use crate::identity::service_ref::{ServiceRef, ServiceRefError};
use crate::xrpc::error::XrpcError;

/// The header in which a client names the service.
pub(super) const PROXY_HEADER: &str = "atproto-proxy";
/// Service ids of the configured services.
const APP_VIEW: &str = "bsky_appview";
const LABELER: &str = "atproto_labeler";

/// Methods below `tools.ozone.` that go to the moderation service without being asked to.
const MODERATION: [&str; 27] = [
    "communication.createTemplate",
    "communication.deleteTemplate",
    "communication.listTemplates",
    "communication.updateTemplate",
    "moderation.cancelScheduledActions",
    "moderation.emitEvent",
    "moderation.getAccountTimeline",
    "moderation.getEvent",
    "moderation.getRecord",
    "moderation.getRepo",
    "moderation.listScheduledActions",
    "moderation.queryEvents",
    "moderation.queryStatuses",
    "moderation.scheduleAction",
    "moderation.searchRepos",
    "safelink.addRule",
    "safelink.queryEvents",
    "safelink.queryRules",
    "safelink.removeRule",
    "safelink.updateRule",
    "team.addMember",
    "team.deleteMember",
    "team.listMembers",
    "team.updateMember",
    "verification.grantVerifications",
    "verification.listVerifications",
    "verification.revokeVerifications",
];

/// A service that is to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Whose it is: the audience of our token.
    pub(super) did: Did,
    /// Which of its services.
    pub(super) fragment: String,
    /// Where it is, if the settings say so; else its DID document does.
    pub(super) configured: Option<Url>,
}

impl Target {
    /// As permissions name it: the DID with the service's id.
    pub(super) fn audience(&self) -> String {
        format!("{}#{}", self.did, self.fragment)
    }

    /// The AppView of the settings.
    pub(super) fn app_view(upstreams: &Upstreams) -> Option<Target> {
        let upstream = upstreams.app_view.as_ref()?;
        Some(Target::of(upstream, APP_VIEW))
    }

    fn of(upstream: &Upstream, fragment: &str) -> Target {
        Target {
            did: upstream.did.clone(),
            fragment: fragment.to_owned(),
            configured: Some(upstream.url.clone()),
        }
    }
}

/// The service for a call of `nsid`. What its DID document says is not looked at yet.
///
/// # Errors
/// 400 for a header that names none, or without any.
pub(super) fn choose(upstreams: &Upstreams, nsid: &str, headers: &HeaderMap) -> Result<Target, XrpcError> {
    if let Some(header) = headers.get(PROXY_HEADER) {
        return named(upstreams, header);
    }
    let (upstream, fragment) = if is_moderation(nsid) {
        (&upstreams.moderation, LABELER)
    } else if nsid == CREATE_REPORT {
        (&upstreams.reports, LABELER)
    } else {
        (&upstreams.app_view, APP_VIEW)
    };
    match upstream {
        Some(upstream) => Ok(Target::of(upstream, fragment)),
        None => Err(XrpcError::invalid(format!("No service configured for {nsid}"))),
    }
}

fn is_moderation(nsid: &str) -> bool {
    nsid.strip_prefix("tools.ozone.")
        .is_some_and(|name| MODERATION.contains(&name))
}

fn named(upstreams: &Upstreams, header: &HeaderValue) -> Result<Target, XrpcError> {
    let refused = |why: &str| XrpcError::invalid(format!("Invalid {PROXY_HEADER} header: {why}"));
    let text = header.to_str().map_err(|_| refused("it is not ASCII text"))?;
    if text.contains(' ') {
        return Err(refused("it contains a space"));
    }
    let service: ServiceRef = text.parse().map_err(|error| {
        refused(match error {
            ServiceRefError::NoDid => "it has no DID",
            ServiceRefError::Did => "it has no DID of a service",
            ServiceRefError::Fragment => "after the DID there must be one service id",
        })
    })?;
    let fragment = service.fragment.ok_or_else(|| refused("it has no service id"))?;
    let configured = upstreams
        .app_view
        .as_ref()
        .filter(|app_view| app_view.did == service.did && fragment == APP_VIEW)
        .map(|app_view| app_view.url.clone());
    Ok(Target {
        did: service.did,
        fragment,
        configured,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(name: &str) -> Option<Upstream> {
        Some(Upstream {
            url: format!("https://{name}.example.com").parse().unwrap(),
            did: format!("did:web:{name}.example.com").parse().unwrap(),
        })
    }

    fn all() -> Upstreams {
        Upstreams {
            app_view: upstream("api"),
            moderation: upstream("mod"),
            reports: upstream("reports"),
            images: None,
        }
    }

    fn chosen(upstreams: &Upstreams, nsid: &str, header: Option<&str>) -> Result<Target, XrpcError> {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(PROXY_HEADER, header.parse().unwrap());
        }
        choose(upstreams, nsid, &headers)
    }

    #[test]
    fn methods_go_to_the_service_that_is_configured_for_them() {
        for (nsid, audience) in [
            (
                "app.bsky.feed.getTimeline",
                "did:web:api.example.com#bsky_appview",
            ),
            (
                "com.example.unknown.thing",
                "did:web:api.example.com#bsky_appview",
            ),
            (
                "tools.ozone.moderation.getRepo",
                "did:web:mod.example.com#atproto_labeler",
            ),
            (
                "tools.ozone.moderation.getRepos",
                "did:web:api.example.com#bsky_appview",
            ),
            (
                "tools.ozone.team.listMembers",
                "did:web:mod.example.com#atproto_labeler",
            ),
            (CREATE_REPORT, "did:web:reports.example.com#atproto_labeler"),
        ] {
            assert_eq!(chosen(&all(), nsid, None).unwrap().audience(), audience, "{nsid}");
        }
        for nsid in MODERATION {
            assert!(is_moderation(&format!("tools.ozone.{nsid}")));
        }
        let none = Upstreams::default();
        for nsid in [
            "app.bsky.feed.getTimeline",
            "tools.ozone.moderation.getRepo",
            CREATE_REPORT,
        ] {
            assert!(chosen(&none, nsid, None).is_err());
        }
    }

    #[test]
    fn the_header_wins_and_the_configured_app_view_needs_no_look_up() {
        let chat = chosen(&all(), CREATE_REPORT, Some("did:web:chat.example.com#bsky_chat")).unwrap();
        assert_eq!(
            (chat.audience().as_str(), chat.configured),
            ("did:web:chat.example.com#bsky_chat", None)
        );
        let known = chosen(&all(), "a.b.c", Some("did:web:api.example.com#bsky_appview")).unwrap();
        assert_eq!(known.configured.unwrap().as_str(), "https://api.example.com/");
        let other = chosen(&all(), "a.b.c", Some("did:web:api.example.com#bsky_notif")).unwrap();
        assert_eq!(other.configured, None);
        assert!(chosen(&Upstreams::default(), "a.b.c", Some("did:web:chat.example.com#x")).is_ok());
    }

    #[test]
    fn statement_96_a_header_without_a_service_id_is_refused_and_so_are_odd_ones() {
        for header in [
            "did:web:api.example.com",
            "did:web:api.example.com#",
            "#bsky_appview",
            "",
            "did:web:api.example.com#a#b",
            "did:web:api.example.com #a",
            "did:web:api.example.com# a",
            "alice.test#a",
        ] {
            let error = chosen(&all(), "a.b.c", Some(header)).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), &*error.name),
                (400, "InvalidRequest"),
                "{header}"
            );
        }
    }
}
