//! Mail by SMTP: one connection for each mail, which are few.
//!
//! `smtps://` is TLS from the first byte. `smtp://` is what the reference's library makes of it: STARTTLS where the server has it; with a
//! password it is not optional, unless the server is this machine or `ignoreTLS=true` says so, because whoever stands in between could
//! take the offer away and read the password.

use std::time::{Duration, SystemTime};

use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};

use super::Mail;
use crate::config::{Config, MailServer, SmtpTls};

/// How long a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a mail may take in all.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that takes mail from us.
pub struct SmtpTransport {
    client: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    /// The part of message ids behind the `@`.
    host: String,
    /// How long a mail may take in all.
    limit: Duration,
}

/// Why a mail did not leave. What it says has neither addresses nor what the server said, which may repeat them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmtpFailure {
    /// In few words.
    pub reason: String,
    /// Another try is of no use.
    pub is_final: bool,
}

impl SmtpTransport {
    /// Prepares to send by `server`; nothing is connected yet.
    ///
    /// # Errors
    /// There is no TLS, or the sender's address is none.
    pub fn new(server: &MailServer, config: &Config) -> Result<SmtpTransport, String> {
        let parameters = || {
            TlsParameters::new(server.host.clone())
                .map_err(|error| format!("TLS for {}: {}", server.host, failure(&error).reason))
        };
        let tls = match server.tls {
            SmtpTls::FromTheStart => Tls::Wrapper(parameters()?),
            SmtpTls::Required => Tls::Required(parameters()?),
            SmtpTls::IfOffered => Tls::Opportunistic(parameters()?),
            SmtpTls::Never => Tls::None,
        };
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(server.host.clone())
            .port(server.port)
            .tls(tls)
            .hello_name(ClientId::Domain(config.hostname.clone()))
            .timeout(Some(CONNECT_TIMEOUT));
        if let Some((user, password)) = &server.credentials {
            builder = builder.credentials(Credentials::new(user.clone(), password.expose().clone()));
        }
        Ok(SmtpTransport {
            client: builder.build(),
            from: mailbox(&server.from, &config.brand.name)?,
            host: config.hostname.clone(),
            limit: SEND_TIMEOUT,
        })
    }

    /// Sends a mail; `id` stays the same over all tries, so that a receiver can tell a repetition.
    ///
    /// # Errors
    /// It did not leave, or that is not known.
    pub async fn send(&self, id: &str, mail: &Mail, now: SystemTime) -> Result<(), SmtpFailure> {
        let message = self.message(id, mail, now)?;
        match tokio::time::timeout(self.limit, self.client.send(message)).await {
            Ok(sent) => sent.map(|_| ()).map_err(|error| failure(&error)),
            Err(_) => Err(SmtpFailure {
                reason: "the server took too long".to_owned(),
                is_final: false,
            }),
        }
    }

    fn message(&self, id: &str, mail: &Mail, now: SystemTime) -> Result<Message, SmtpFailure> {
        let unfit = |reason: &str| SmtpFailure {
            reason: reason.to_owned(),
            is_final: true,
        };
        let address = mail
            .to
            .parse()
            .map_err(|_| unfit("the receiver's address is none"))?;
        let mut message = Message::builder()
            .message_id(Some(format!("<{id}@{}>", self.host)))
            .date(now)
            .from(self.from.clone())
            .to(Mailbox::new(None, address))
            .subject(mail.subject.clone())
            .multipart(MultiPart::alternative_plain_html(
                mail.text.clone(),
                mail.html.clone(),
            ))
            .map_err(|_| unfit("it cannot be put into a message"))?;
        // No answer of an absent reader, please.
        message.headers_mut().insert_raw(HeaderValue::new(
            HeaderName::new_from_ascii_str("Auto-Submitted"),
            "auto-generated".to_owned(),
        ));
        Ok(message)
    }
}

/// An address with or without a name; without one it gets `name`.
fn mailbox(text: &str, name: &str) -> Result<Mailbox, String> {
    let mailbox: Mailbox = text
        .parse()
        .map_err(|_| format!("'{text}' is not an e-mail address"))?;
    Ok(match mailbox.name {
        Some(_) => mailbox,
        None => Mailbox::new(Some(name.to_owned()), mailbox.email),
    })
}

/// Whether a text can be the sender of mail.
#[must_use]
pub fn is_sender(text: &str) -> bool {
    text.parse::<Mailbox>().is_ok()
}

/// What an error means for the mail. Only codes are taken from what the server said.
fn failure(error: &SmtpError) -> SmtpFailure {
    let Some(code) = error.status() else {
        let reason = if error.is_timeout() {
            "the server took too long".to_owned()
        } else if error.is_response() {
            "the server does not speak SMTP".to_owned()
        } else {
            causes(error)
        };
        return SmtpFailure {
            reason,
            is_final: false,
        };
    };
    let code = u16::from(code);
    // The operator's mistakes, which end when they are put right.
    let is_login = matches!(code, 530 | 534 | 535 | 538);
    let reason = if is_login {
        format!("SMTP {code}: the server does not accept our credentials")
    } else {
        format!("SMTP {code}")
    };
    SmtpFailure {
        reason,
        is_final: error.is_permanent() && !is_login,
    }
}

/// An error that is not the server's answer, with its causes: they name hosts and files, and no receivers.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.chars().take(200).collect()
}

#[cfg(test)]
#[path = "smtp_tests.rs"]
mod tests;
