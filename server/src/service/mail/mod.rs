//! Mail to account holders: what it says, and how it leaves. What waits to leave is in the account database, hence in the log:
//! see `service/accounts/mail.rs`. Where no way to send mail is configured, what needs mail says so instead of pretending.

pub mod letters;
pub mod smtp;
#[cfg(test)]
pub(crate) mod stub;

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::{Brand, Config};
pub use letters::{Letter, escape};
pub use smtp::{SmtpFailure, SmtpTransport};

/// Mails that the page keeps.
const KEPT: usize = 100;

/// One mail, in words. It holds codes, so it is never logged.
#[derive(Clone)]
pub struct Mail {
    /// Address of the receiver.
    pub to: String,
    /// Subject line.
    pub subject: String,
    /// Plain text.
    pub text: String,
    /// The same as an HTML document.
    pub html: String,
    /// When it was sent, as ISO-8601 text.
    pub sent_at: String,
}

/// There is no way to send mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("This server is not set up to send e-mail; ask its operator")]
pub struct NoMail;

/// Where mail goes.
#[derive(Default)]
pub struct Mailer {
    brand: Brand,
    page: Option<Mutex<VecDeque<Mail>>>,
    ordinary: Option<SmtpTransport>,
    moderation: Option<SmtpTransport>,
    /// There is something to send.
    wake: Notify,
}

impl Mailer {
    /// No mail at all.
    #[must_use]
    pub fn none() -> Mailer {
        Mailer::default()
    }

    /// Mail by the servers that the settings name, or none.
    ///
    /// # Errors
    /// There is no TLS, or an address is none.
    pub fn new(config: &Config) -> Result<Mailer, String> {
        let transport = |settings: &Option<_>| {
            settings
                .as_ref()
                .map(|settings| SmtpTransport::new(settings, config))
                .transpose()
        };
        Ok(Mailer {
            brand: config.brand.clone(),
            ordinary: transport(&config.mail.ordinary)?,
            moderation: transport(&config.mail.moderation)?,
            ..Mailer::default()
        })
    }

    /// Mail that is kept in memory for a page, the newest hundred.
    #[must_use]
    pub fn page() -> Mailer {
        Mailer {
            page: Some(Mutex::default()),
            ..Mailer::default()
        }
    }

    /// The same, with a page if it has no server to send by.
    #[must_use]
    pub fn or_page(mut self) -> Mailer {
        if self.check().is_err() {
            self.page = Some(Mutex::default());
        }
        self
    }

    /// Whether mail can be sent.
    ///
    /// # Errors
    /// [`NoMail`], which is for the client to see.
    pub fn check(&self) -> Result<(), NoMail> {
        if self.page.is_some() || self.ordinary.is_some() {
            Ok(())
        } else {
            Err(NoMail)
        }
    }

    /// Whether this letter can be sent: what moderators write may have a server of its own.
    ///
    /// # Errors
    /// [`NoMail`].
    pub fn check_letter(&self, letter: &Letter) -> Result<(), NoMail> {
        if self.transport(letter).is_some() {
            return Ok(());
        }
        self.check()
    }

    /// The server by which a letter leaves.
    #[must_use]
    pub fn transport(&self, letter: &Letter) -> Option<&SmtpTransport> {
        let own = match letter {
            Letter::Moderation { .. } => self.moderation.as_ref(),
            _ => None,
        };
        own.or(self.ordinary.as_ref())
    }

    /// Puts a letter into words.
    #[must_use]
    pub fn render(&self, to: &str, letter: &Letter, sent_at: String) -> Mail {
        let rendered = letter.render(&self.brand);
        Mail {
            to: to.to_owned(),
            subject: rendered.subject,
            text: rendered.text,
            html: rendered.html,
            sent_at,
        }
    }

    /// Whether mail goes to the page.
    #[must_use]
    pub fn has_page(&self) -> bool {
        self.page.is_some()
    }

    /// Puts a mail on the page, if there is one.
    pub fn show(&self, mail: Mail) {
        if let Some(page) = &self.page {
            let mut kept = page.lock();
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(mail);
        }
    }

    /// The mails of the page, newest first; none where mail does not go to a page.
    #[must_use]
    pub fn kept(&self) -> Option<Vec<Mail>> {
        self.page
            .as_ref()
            .map(|kept| kept.lock().iter().rev().cloned().collect())
    }

    /// Tells whoever delivers that there is something to send.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Resolves when there is something to send.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_keeps_the_newest_and_no_mail_is_said_to_be_none() {
        let page = Mailer::page();
        assert!(page.check().is_ok());
        for n in 0..KEPT + 5 {
            let mut mail = page.render("a@b.co", &Letter::Test, String::new());
            mail.subject = n.to_string();
            page.show(mail);
        }
        let kept = page.kept().unwrap();
        assert_eq!((kept.len(), kept[0].subject.as_str()), (KEPT, "104"));
        assert_eq!(Mailer::none().check(), Err(NoMail));
        assert!(Mailer::none().kept().is_none());
        assert!(Mailer::none().or_page().has_page());
    }
}
