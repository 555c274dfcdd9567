//! Mail servers and what mail looks like.

use std::net::IpAddr;

use reqwest::Url;

use super::Reader;
use crate::config::{Brand, MailServer, MailSettings, SmtpTls};
use crate::secrets::Secret;
use crate::service::mail::smtp::is_sender;

impl Reader {
    pub(super) fn brand(&mut self, hostname: &str) -> Brand {
        let plain = Brand::default();
        Brand {
            name: self
                .text("PDS_SERVICE_NAME")
                .unwrap_or_else(|| format!("{hostname} PDS")),
            home_url: self.link("PDS_HOME_URL"),
            logo_url: self.link("PDS_LOGO_URL"),
            support_url: self.link("PDS_SUPPORT_URL"),
            color: self.color("PDS_PRIMARY_COLOR").unwrap_or(plain.color),
            confirmation_link: !self.flag("PDS_EMAIL_DISABLE_CONFIRMATION_LINK", false),
        }
    }

    /// A link that people are shown.
    pub(super) fn link(&mut self, name: &'static str) -> Option<String> {
        let text = self.text(name)?;
        let is_link = Url::parse(&text).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !is_link {
            self.problems
                .push(format!("{name} must be an http or https URL, not '{text}'"));
        }
        Some(text)
    }

    /// A colour as style sheets write it.
    fn color(&mut self, name: &'static str) -> Option<String> {
        let text = self.text(name)?;
        let is_color = text.len() <= 64
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"#(),.% -".contains(&b));
        if !is_color {
            self.problems
                .push(format!("{name} must be a colour such as #0a58ca, not '{text}'"));
        }
        Some(text)
    }

    pub(super) fn mail(&mut self) -> MailSettings {
        let budget = |reader: &mut Reader, name, default| reader.number(name, default, 1..=1_000_000_000);
        MailSettings {
            daily_per_address: budget(self, "PDS_EMAIL_DAILY_PER_ADDRESS", 20),
            daily_total: budget(self, "PDS_EMAIL_DAILY_TOTAL", 10_000),
            ordinary: self.mail_server("PDS_EMAIL_SMTP_URL", "PDS_EMAIL_FROM_ADDRESS"),
            moderation: self.mail_server("PDS_MODERATION_EMAIL_SMTP_URL", "PDS_MODERATION_EMAIL_ADDRESS"),
        }
    }

    /// Both or neither, as in the reference.
    fn mail_server(&mut self, url_name: &'static str, from_name: &'static str) -> Option<MailServer> {
        let (url, from) = match (self.text(url_name), self.text(from_name)) {
            (None, None) => return None,
            (Some(url), Some(from)) => (url, from),
            (Some(_), None) => {
                self.problems.push(format!("{url_name} needs {from_name}"));
                return None;
            }
            (None, Some(_)) => {
                self.problems.push(format!("{from_name} needs {url_name}"));
                return None;
            }
        };
        if !is_sender(&from) {
            self.problems
                .push(format!("{from_name}: '{from}' is not an e-mail address"));
        }
        parse(&url, from)
            .map_err(|problem| self.problems.push(format!("{url_name} {problem}")))
            .ok()
    }
}

/// A mail server's URL. Problems do not repeat it, as it may hold a password.
fn parse(text: &str, from: String) -> Result<MailServer, String> {
    const FORM: &str = "must be smtp://user:password@host:port or smtps://…, with special characters of user and password as %XX";
    let url = Url::parse(text).map_err(|_| FORM.to_owned())?;
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let mut secure = match url.scheme() {
        "smtp" => false,
        "smtps" => true,
        _ => return Err(FORM.to_owned()),
    };
    if host.is_empty() || !matches!(url.path(), "" | "/") || url.fragment().is_some() {
        return Err(FORM.to_owned());
    }
    let (mut required, mut ignored) = (false, false);
    for (option, value) in url.query_pairs() {
        let flag = match option.as_ref() {
            "secure" => &mut secure,
            "requireTLS" => &mut required,
            "ignoreTLS" => &mut ignored,
            other => {
                return Err(format!(
                    "has the option '{other}', which is not one of secure, requireTLS and ignoreTLS"
                ));
            }
        };
        *flag = match value.as_ref() {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => return Err(format!("has an option {option} that is neither true nor false")),
        };
    }
    let credentials = match (decoded(url.username())?, url.password()) {
        (user, Some(password)) if !user.is_empty() => Some((user, Secret::new(decoded(password)?))),
        (user, None) if user.is_empty() => None,
        _ => return Err("must have both a user and a password, or neither".to_owned()),
    };
    let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let tls = match (secure, required, ignored) {
        (true, ..) => SmtpTls::FromTheStart,
        (false, true, true) => return Err("cannot both require and ignore TLS".to_owned()),
        (false, true, false) => SmtpTls::Required,
        (false, false, true) => SmtpTls::Never,
        (false, false, false) if credentials.is_some() && !is_local => SmtpTls::Required,
        (false, false, false) => SmtpTls::IfOffered,
    };
    Ok(MailServer {
        port: url.port().unwrap_or(if secure { 465 } else { 587 }),
        host,
        tls,
        credentials,
        from,
    })
}

/// Text with `%XX`.
fn decoded(text: &str) -> Result<String, String> {
    let malformed = || "has a malformed %XX".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let pair = after.get(..2).ok_or_else(malformed)?;
        let byte = data_encoding::HEXLOWER_PERMISSIVE
            .decode(pair)
            .map_err(|_| malformed())?;
        bytes.extend(byte);
        rest = after.get(2..).unwrap_or_default();
    }
    String::from_utf8(bytes).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Host, port, protection, credentials.
    type Parsed = (String, u16, SmtpTls, Option<(String, String)>);

    fn read(url: &str) -> Result<Parsed, String> {
        let server = parse(url, String::new())?;
        let credentials = server
            .credentials
            .map(|(user, password)| (user, password.expose().clone()));
        Ok((server.host, server.port, server.tls, credentials))
    }

    #[test]
    fn a_url_says_host_port_protection_and_credentials() {
        let someone = Some(("u@x.org".to_owned(), "p:/w".to_owned()));
        let host = || "mail.example.com".to_owned();
        for (url, wanted) in [
            (
                "smtps://mail.example.com",
                (host(), 465, SmtpTls::FromTheStart, None),
            ),
            ("smtp://mail.example.com", (host(), 587, SmtpTls::IfOffered, None)),
            (
                "smtp://mail.example.com:25/?ignoreTLS=true",
                (host(), 25, SmtpTls::Never, None),
            ),
            (
                "smtp://mail.example.com?requireTLS=true",
                (host(), 587, SmtpTls::Required, None),
            ),
            (
                "smtp://mail.example.com?secure=true",
                (host(), 465, SmtpTls::FromTheStart, None),
            ),
            (
                "smtp://u%40x.org:p%3A%2Fw@mail.example.com:2525",
                (host(), 2525, SmtpTls::Required, someone.clone()),
            ),
            (
                "smtp://u%40x.org:p%3A%2Fw@127.0.0.1:2525",
                ("127.0.0.1".to_owned(), 2525, SmtpTls::IfOffered, someone.clone()),
            ),
            (
                "smtp://u%40x.org:p%3A%2Fw@mail.example.com?ignoreTLS=1",
                (host(), 587, SmtpTls::Never, someone),
            ),
            (
                "smtp://[::1]:25",
                ("::1".to_owned(), 25, SmtpTls::IfOffered, None),
            ),
        ] {
            assert_eq!(read(url), Ok(wanted), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_url_is_told_without_it() {
        for url in [
            "mail.example.com",
            "https://mail.example.com",
            "smtp://",
            "smtp://user:hunter2@mail.example.com/path",
            "smtp://user@mail.example.com",
            "smtp://:hunter2@mail.example.com",
            "smtp://user:hunter2%zz@mail.example.com",
            "smtp://mail.example.com?pool=true",
            "smtp://mail.example.com?secure=maybe",
            "smtp://mail.example.com?requireTLS=1&ignoreTLS=1",
        ] {
            let problem = read(url).unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
