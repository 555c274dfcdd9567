//! Labels that nobody gets by signing up: words that would pass for the operator, for the protocol, or for a part of the
//! network's plumbing. Famous people are not in it; whoever owns a domain can prove it, which is what handles are for.

/// Whether `label`, in lower case, is kept back.
pub(super) fn is_reserved(label: &str) -> bool {
    RESERVED.binary_search(&label).is_ok()
}

/// In order, for the binary search. Labels that are too short or too long to be taken anyway are left out.
#[rustfmt::skip]
const RESERVED: &[&str] = &[
    "about", "abuse", "academy", "access", "account", "accounting", "accounts", "activate", "activity", "add",
    "address", "admin", "administration", "administrator", "admins", "advertise", "advertising", "affiliate",
    "affiliates", "agent", "agents", "ajax", "alert", "alerts", "all", "alpha", "analytics", "android", "anonymous",
    "api", "apis", "app", "appeal", "appeals", "apple", "apps", "appview", "archive", "archives", "article",
    "articles", "asset", "assets", "assistant", "atproto", "atprotocol", "audio", "audit", "auth", "authenticate",
    "authentication", "authorize", "autoconfig", "autodiscover", "avatar", "avatars", "backend", "backup", "backups",
    "banner", "banners", "beta", "billing", "block", "blocked", "blocklist", "blocks", "blog", "blogs", "bluesky",
    "board", "bot", "bots", "broadcast", "broadcasthost", "browse", "bsky", "bugs", "business", "cache", "calendar",
    "callback", "campaign", "cancel", "careers", "cart", "catalog", "categories", "category", "cdn", "ceo", "cert",
    "certificate", "certificates", "channel", "channels", "chat", "checkout", "client", "clients", "cloud", "code",
    "codes", "collection", "collections", "commerce", "community", "compare", "compliance", "config", "configuration",
    "confirm", "confirmation", "connect", "console", "contact", "contacts", "contest", "contribute", "convert",
    "cookie", "cookies", "copyright", "corporate", "create", "credits", "cron", "css", "cto", "customer", "customers",
    "dashboard", "data", "database", "dav", "debug", "default", "delete", "deleted", "demo", "deploy", "design",
    "desktop", "destroy", "dev", "devel", "developer", "developers", "development", "device", "devices", "devops",
    "diagram", "did", "did-plc", "didplc", "direct", "directory", "disable", "discover", "discuss", "discussion",
    "dmca", "dns", "doc", "docs", "documentation", "documents", "domain", "domains", "download", "downloads", "draft",
    "drafts", "ecommerce", "edge", "edit", "editor", "editorial", "education", "embed", "embedded", "employees",
    "employment", "enable", "end", "engineering", "enterprise", "entryway", "error", "errors", "event", "events",
    "everyone", "example", "exchange", "experimental", "explore", "export", "external", "faq", "faqs", "favicon",
    "favorites", "feature", "features", "feed", "feedback", "feedgen", "feeds", "file", "files", "finance",
    "firehose", "fix", "flag", "follow", "followers", "following", "font", "fonts", "forbidden", "forgot", "form",
    "forms", "forum", "forums", "founder", "founders", "frontend", "ftp", "funding", "gateway", "general", "gift",
    "git", "github", "global", "goto", "graph", "graphql", "group", "groups", "guest", "guests", "guide", "guides",
    "handle", "handles", "hashtag", "head", "headers", "health", "healthz", "help", "helpdesk", "hidden", "home",
    "homepage", "host", "hosting", "hostmaster", "hostname", "http", "https", "hub", "icon", "icons", "identity",
    "image", "images", "imap", "img", "impressum", "inbox", "index", "indice", "info", "information",
    "infrastructure", "insights", "install", "integration", "integrations", "intern", "internal", "internet",
    "intranet", "invalid", "investor", "investors", "invitation", "invitations", "invite", "invites", "invoice",
    "ios", "ipv4", "ipv6", "isatap", "issue", "issues", "items", "javascript", "job", "jobs", "join", "json", "jwks",
    "jwt", "key", "keys", "keyserver", "knowledge", "label", "labeler", "labelers", "labels", "lang", "language",
    "law", "learn", "legal", "lex", "lexicon", "lexicons", "license", "licensing", "like", "likes", "link", "links",
    "linux", "list", "listify", "lists", "live", "load", "local", "localdomain", "localhost", "location", "lock",
    "locked", "log", "login", "logo", "logos", "logout", "logs", "lookup", "mail", "mailer", "mailer-daemon",
    "mailing", "mailman", "maintenance", "manage", "manager", "manifest", "map", "maps", "marketing", "master",
    "media", "member", "members", "membership", "mention", "mentions", "message", "messages", "messenger", "meta",
    "metadata", "metrics", "mirror", "mobile", "mod", "moderation", "moderator", "moderators", "mods", "monitor",
    "monitoring", "moved", "music", "mute", "mutes", "myaccount", "mysql", "name", "names", "network", "networks",
    "new", "news", "newsletter", "newsroom", "next", "nil", "no-reply", "nobody", "noc", "node", "nodes", "none",
    "noreply", "notice", "notification", "notifications", "notify", "ns0", "ns1", "ns2", "ns3", "ns4", "nsid", "null",
    "number", "oauth", "oauth2", "oembed", "offer", "offers", "official", "offline", "old", "online", "open",
    "openid", "operations", "operator", "operators", "ops", "order", "orders", "organization", "organizations",
    "origin", "overview", "owner", "owners", "ozone", "page", "pages", "panel", "parked", "partner", "partners",
    "passkey", "passkeys", "passwd", "password", "passwords", "patch", "pay", "payment", "payments", "pds", "people",
    "permission", "permissions", "phone", "photo", "photos", "ping", "pixel", "plan", "plans", "platform", "plc",
    "plugin", "plugins", "policies", "policy", "pop", "pop3", "popular", "popup", "portal", "post", "postgres",
    "postmaster", "posts", "preferences", "premium", "press", "preview", "pricing", "privacy", "privacy-policy",
    "private", "pro", "product", "production", "products", "profile", "profiles", "project", "projects", "promo",
    "promotions", "protocol", "protocols", "proxy", "public", "publications", "publish", "purchase", "push", "query",
    "queue", "quota", "random", "readme", "recent", "recover", "recovery", "redirect", "refer", "referral", "refund",
    "refunds", "register", "registration", "registry", "relay", "relays", "release", "releases", "remote", "remove",
    "renew", "replies", "reply", "repo", "report", "reports", "repos", "repositories", "repository", "request",
    "requests", "reserved", "reset", "resolve", "resolver", "resource", "resources", "response", "rest", "restore",
    "review", "reviews", "revoke", "rkey", "robot", "robots", "robotstxt", "root", "router", "rss", "rules", "sale",
    "sales", "sample", "sandbox", "save", "scanner", "schedule", "schema", "scim", "script", "scripts", "search",
    "secret", "secrets", "secure", "security", "self", "send", "server", "server-info", "servers", "service",
    "services", "session", "sessions", "setting", "settings", "setup", "share", "shared", "shop", "sign", "signin",
    "signout", "signup", "sitemap", "sitemaps", "sites", "smtp", "social", "software", "sources", "spam", "spec",
    "special", "spotlight", "sql", "ssh", "ssl", "sso", "staff", "stage", "staging", "standard", "star", "start",
    "starter", "stat", "static", "statistics", "stats", "status", "storage", "store", "stories", "story", "stream",
    "streaming", "streams", "style", "styles", "stylesheet", "stylesheets", "sub", "subdomain", "subscribe",
    "subscriber", "subscribers", "subscription", "subscriptions", "sudo", "suggest", "suggestion", "superuser",
    "support", "survey", "surveys", "suspended", "sync", "sysadmin", "sysadmins", "sysop", "system", "systems", "tag",
    "tags", "takedown", "team", "teams", "telemetry", "template", "templates", "term", "terms", "terms-of-service",
    "terms-of-use", "test", "tester", "testing", "tests", "theme", "themes", "thread", "threads", "tid", "time",
    "timeline", "tls", "token", "tokens", "tools", "topic", "topics", "tos", "tour", "track", "trackback", "training",
    "transfer", "translate", "translation", "translations", "trending", "trends", "trust", "trust-and-safety",
    "tutorial", "tutorials", "unfollow", "unknown", "unsubscribe", "update", "updates", "upgrade", "upload",
    "uploads", "uptime", "url", "usage", "usenet", "user", "username", "users", "uucp", "validate", "vault",
    "verification", "verified", "verify", "version", "versions", "video", "videos", "view", "views", "virus",
    "visitor", "voice", "volunteer", "volunteers", "vote", "vpn", "wallet", "warning", "web", "webdav", "webfinger",
    "webhook", "webhooks", "webmail", "webmaster", "website", "websites", "welcome", "well-known", "widget",
    "widgets", "wiki", "wildcard", "windows", "work", "workflow", "workshop", "world", "wpad", "write", "www", "www1",
    "www2", "www3", "xmlrpc", "xmpp", "xrpc", "yourname", "youtube", "zero",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order_without_repeats_and_of_possible_labels() {
        assert!(RESERVED.is_sorted_by(|a, b| a < b));
        assert!(RESERVED.iter().all(|label| (3..=18).contains(&label.len())));
        assert!(RESERVED.iter().all(|label| *label == label.to_ascii_lowercase()));
    }

    #[test]
    fn words_of_authority_and_protocol_are_kept_back_and_names_are_not() {
        assert!(
            ["admin", "www", "xrpc", "bsky", "postmaster", "did", "zero"]
                .into_iter()
                .all(is_reserved)
        );
        assert!(!["alice", "bob", "admins2", "adm"].into_iter().any(is_reserved));
    }
}
