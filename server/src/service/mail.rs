//! Mail to account holders. This version has one way to send it: a page of the development server. Where none is
//! configured, what needs mail says so instead of pretending.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// Mails that the page keeps.
const KEPT: usize = 100;

/// One mail.
#[derive(Clone)]
pub struct Mail {
    /// Address of the receiver.
    pub to: String,
    /// Subject line.
    pub subject: String,
    /// Plain text. It holds tokens, so it is never logged.
    pub text: String,
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
    page: Option<Mutex<VecDeque<Mail>>>,
}

impl Mailer {
    /// No mail at all.
    #[must_use]
    pub fn none() -> Mailer {
        Mailer::default()
    }

    /// Mail that is kept in memory for a page, the newest hundred.
    #[must_use]
    pub fn page() -> Mailer {
        Mailer {
            page: Some(Mutex::new(VecDeque::new())),
        }
    }

    /// Whether mail can be sent.
    ///
    /// # Errors
    /// [`NoMail`], which is for the client to see.
    pub fn check(&self) -> Result<(), NoMail> {
        self.page.as_ref().map(|_| ()).ok_or(NoMail)
    }

    /// Sends a mail.
    ///
    /// # Errors
    /// [`NoMail`].
    pub fn send(&self, mail: Mail) -> Result<(), NoMail> {
        let mut kept = self.page.as_ref().ok_or(NoMail)?.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(mail);
        Ok(())
    }

    /// The mails of the page, newest first; none where mail does not go to a page.
    #[must_use]
    pub fn kept(&self) -> Option<Vec<Mail>> {
        self.page
            .as_ref()
            .map(|kept| kept.lock().iter().rev().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_keeps_the_newest_and_no_mail_is_said_to_be_none() {
        let mail = |n: usize| Mail {
            to: "a@b.co".to_owned(),
            subject: n.to_string(),
            text: String::new(),
            sent_at: String::new(),
        };
        let page = Mailer::page();
        for n in 0..KEPT + 5 {
            page.send(mail(n)).unwrap();
        }
        let kept = page.kept().unwrap();
        assert_eq!((kept.len(), kept[0].subject.as_str()), (KEPT, "104"));
        assert_eq!(Mailer::none().send(mail(1)), Err(NoMail));
        assert!(Mailer::none().kept().is_none());
    }
}
