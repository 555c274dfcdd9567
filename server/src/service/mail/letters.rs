//! What mails say: one layout, as plain text and as HTML, in the operator's name.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Brand;

/// How long a mailed code works. A mail that is older is of no use, so it expires with its code.
pub const CODE_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// How long it is tried to deliver what a moderator writes.
const NOTE_LIFETIME: Duration = Duration::from_secs(3 * 24 * 3600);
/// Where a client confirms an address by a link.
const CONFIRM_URL: &str = "https://bsky.app/intent/verify-email?code=";

/// One mail to an account holder, before it is put into words. It carries codes, so it is not printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Letter {
    /// The code that confirms an address.
    ConfirmEmail {
        /// Whose.
        handle: String,
        /// The code.
        token: String,
    },
    /// The code that allows a change of address; goes to the old one.
    UpdateEmail {
        /// Whose.
        handle: String,
        /// The code.
        token: String,
    },
    /// The code that sets a new password.
    ResetPassword {
        /// Whose.
        handle: String,
        /// The code.
        token: String,
    },
    /// The code that deletes an account.
    DeleteAccount {
        /// Whose.
        handle: String,
        /// The code.
        token: String,
    },
    /// The code with which an operation on the account's identity is signed.
    PlcOperation {
        /// Whose.
        handle: String,
        /// The code.
        token: String,
    },
    /// The code that completes a sign-in.
    SignIn {
        /// Whose.
        handle: String,
        /// The code.
        token: String,
    },
    /// What a moderator or the administrator writes; the content is HTML as it is.
    Moderation {
        /// Subject line.
        subject: String,
        /// HTML.
        content: String,
    },
    /// `pds check-config --send-test-mail`.
    Test,
}

/// A letter in words.
pub struct Rendered {
    /// Subject line, without line breaks.
    pub subject: String,
    /// For clients that show no HTML.
    pub text: String,
    /// A whole document.
    pub html: String,
}

/// What is the same in all letters with a code, in the letter's words.
struct Words<'a> {
    subject: &'static str,
    /// What somebody asked for, completing "Somebody, hopefully you, …".
    asked: String,
    code: &'a str,
    link: Option<String>,
    /// What to do if it was somebody else.
    otherwise: &'static str,
}

impl Letter {
    /// A word for metrics, logs and the operator.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Letter::ConfirmEmail { .. } => "confirm-email",
            Letter::UpdateEmail { .. } => "update-email",
            Letter::ResetPassword { .. } => "reset-password",
            Letter::DeleteAccount { .. } => "delete-account",
            Letter::PlcOperation { .. } => "plc-operation",
            Letter::SignIn { .. } => "sign-in",
            Letter::Moderation { .. } => "moderation",
            Letter::Test => "test",
        }
    }

    /// How long it is of use.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        match self {
            Letter::Moderation { .. } => NOTE_LIFETIME,
            _ => CODE_LIFETIME,
        }
    }

    /// Puts it into words.
    #[must_use]
    pub fn render(&self, brand: &Brand) -> Rendered {
        let words = match self {
            Letter::ConfirmEmail { handle, token } => Words {
                subject: "Email Confirmation",
                asked: format!("asked to confirm this address for {handle}"),
                code: token,
                link: brand.confirmation_link.then(|| format!("{CONFIRM_URL}{token}")),
                otherwise: "If it was not you, ignore this mail: the address stays unconfirmed.",
            },
            Letter::UpdateEmail { handle, token } => Words {
                subject: "Email Update Requested",
                asked: format!("asked to change the e-mail address of {handle}"),
                code: token,
                link: None,
                otherwise: "If it was not you, change your password: somebody is logged in to your account.",
            },
            Letter::ResetPassword { handle, token } => Words {
                subject: "Password Reset Requested",
                asked: format!("asked to reset the password of {handle}"),
                code: token,
                link: None,
                otherwise: "If it was not you, ignore this mail: the password stays as it is.",
            },
            Letter::DeleteAccount { handle, token } => Words {
                subject: "Account Deletion Requested",
                asked: format!(
                    "asked to delete the account {handle} with everything in it, which cannot be undone"
                ),
                code: token,
                link: None,
                otherwise: "If it was not you, change your password: somebody is logged in to your account.",
            },
            Letter::PlcOperation { handle, token } => Words {
                subject: "PLC Update Operation Requested",
                asked: format!(
                    "asked for a signature that changes the identity of {handle}, as a move to another server does"
                ),
                code: token,
                link: None,
                otherwise: "If it was not you, do not pass the code on, and change your password: whoever has the code can take your \
                            account over.",
            },
            Letter::SignIn { handle, token } => Words {
                subject: "Sign-in Code",
                asked: format!("is signing in to {handle}"),
                code: token,
                link: None,
                otherwise: "If it was not you, change your password: somebody knows it.",
            },
            Letter::Moderation { subject, content } => {
                return Rendered {
                    subject: one_line(subject),
                    text: text_of_html(content),
                    html: content.clone(),
                };
            }
            Letter::Test => {
                let said = format!("{} can send e-mail.", brand.name);
                return Rendered {
                    subject: "Test".to_owned(),
                    text: format!("{said}\n{}", signature(brand)),
                    html: document("Test", &format!("<p>{}</p>", escape(&said)), brand),
                };
            }
        };
        words.render(brand)
    }
}

impl Words<'_> {
    fn render(&self, brand: &Brand) -> Rendered {
        let minutes = CODE_LIFETIME.as_secs() / 60;
        let mut text = format!(
            "Somebody, hopefully you, {}.\n\nThe code is {} and works for {minutes} minutes.\n",
            self.asked, self.code
        );
        let mut html = format!(
            "<p>Somebody, hopefully you, {}.</p><p>The code works for {minutes} minutes:</p>\
             <p style=\"font:bold 24px monospace;letter-spacing:2px;color:{}\">{}</p>",
            escape(&self.asked),
            escape(&brand.color),
            escape(self.code)
        );
        if let Some(link) = &self.link {
            text.push_str(&format!("Or open {link}\n"));
            let link = escape(link);
            html.push_str(&format!("<p>Or open <a href=\"{link}\">{link}</a></p>"));
        }
        text.push_str(&format!("\n{}\n{}", self.otherwise, signature(brand)));
        html.push_str(&format!("<p>{}</p>", escape(self.otherwise)));
        Rendered {
            subject: self.subject.to_owned(),
            text,
            html: document(self.subject, &html, brand),
        }
    }
}

fn signature(brand: &Brand) -> String {
    let mut text = format!("\n-- \n{}\n", brand.name);
    for url in [&brand.home_url, &brand.support_url].into_iter().flatten() {
        text.push_str(url);
        text.push('\n');
    }
    text
}

fn document(title: &str, body: &str, brand: &Brand) -> String {
    let name = escape(&brand.name);
    let link = |url: &str, text: &str| format!("<a href=\"{}\">{text}</a>", escape(url));
    let logo = brand.logo_url.as_ref().map_or_else(String::new, |url| {
        format!(
            "<p><img src=\"{}\" alt=\"{name}\" height=\"48\"></p>",
            escape(url)
        )
    });
    let mut foot = brand
        .home_url
        .as_ref()
        .map_or_else(|| name.clone(), |url| link(url, &name));
    if let Some(url) = &brand.support_url {
        foot.push_str(" · ");
        foot.push_str(&link(url, "Help"));
    }
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title></head>\
         <body style=\"font:16px sans-serif;max-width:560px;margin:24px auto;padding:0 16px\">{logo}{body}\
         <p style=\"color:#666;font-size:13px\">{foot}</p></body></html>",
        escape(title)
    )
}

/// Text for an HTML page.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A subject line: a line break in it would begin another header.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect()
}

/// What of HTML can be read without it: the text between tags, with line breaks where blocks end.
fn text_of_html(html: &str) -> String {
    let mut text = String::with_capacity(html.len());
    let mut rest = html;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        let Some((tag, after)) = tag.split_once('>') else {
            rest = "";
            break;
        };
        let name: String = tag
            .trim_start_matches('/')
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_ascii_lowercase();
        rest = after;
        match name.as_str() {
            "style" | "script" if !tag.starts_with('/') => {
                let end = format!("</{name}");
                let at = rest.to_ascii_lowercase().find(&end).unwrap_or(rest.len());
                rest = rest.get(at..).unwrap_or_default();
            }
            "br" | "p" | "div" | "li" | "tr" | "h1" | "h2" | "h3" | "h4" if !text.ends_with('\n') => {
                text.push('\n');
            }
            _ => {}
        }
    }
    text.push_str(rest);
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&nbsp;", " ")
        .replace("&amp;", "&");
    text.trim().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brand() -> Brand {
        Brand {
            name: "Ink & <Quill>".to_owned(),
            home_url: Some("https://pds.example.com".to_owned()),
            support_url: Some("https://help.example.com".to_owned()),
            ..Brand::default()
        }
    }

    fn all() -> Vec<Letter> {
        let (handle, token) = ("<b>.test".to_owned(), "ABCDE-23456".to_owned());
        vec![
            Letter::ConfirmEmail {
                handle: handle.clone(),
                token: token.clone(),
            },
            Letter::UpdateEmail {
                handle: handle.clone(),
                token: token.clone(),
            },
            Letter::ResetPassword {
                handle: handle.clone(),
                token: token.clone(),
            },
            Letter::DeleteAccount {
                handle: handle.clone(),
                token: token.clone(),
            },
            Letter::PlcOperation {
                handle: handle.clone(),
                token: token.clone(),
            },
            Letter::SignIn { handle, token },
        ]
    }

    #[test]
    fn subjects_are_the_references_and_both_forms_have_the_code_and_the_operator() {
        let subjects: Vec<String> = all().iter().map(|l| l.render(&brand()).subject).collect();
        assert_eq!(
            subjects,
            [
                "Email Confirmation",
                "Email Update Requested",
                "Password Reset Requested",
                "Account Deletion Requested",
                "PLC Update Operation Requested",
                "Sign-in Code"
            ]
        );
        for letter in all() {
            let Rendered { text, html, .. } = letter.render(&brand());
            assert!(
                text.contains("The code is ABCDE-23456 and works for 15 minutes"),
                "{text}"
            );
            assert!(text.contains("<b>.test") && text.contains("Ink & <Quill>"));
            assert!(html.contains("ABCDE-23456") && html.contains("Ink &amp; &lt;Quill&gt;"));
            assert!(!html.contains("<b>"), "a handle is text: {html}");
            assert!(html.contains("https://help.example.com"));
        }
    }

    #[test]
    fn only_the_confirmation_has_a_link_and_the_operator_can_leave_it_out() {
        let with = |brand: &Brand| -> Vec<bool> {
            all()
                .iter()
                .map(|l| {
                    l.render(brand)
                        .text
                        .contains("https://bsky.app/intent/verify-email?code=ABCDE")
                })
                .collect()
        };
        assert_eq!(with(&brand()), [true, false, false, false, false, false]);
        let without = Brand {
            confirmation_link: false,
            ..brand()
        };
        assert!(!with(&without).contains(&true));
    }

    #[test]
    fn a_moderators_words_are_html_as_they_are_and_also_text_and_their_subject_is_one_line() {
        let letter = Letter::Moderation {
            subject: "Hello\r\nBcc: everybody@example.com".to_owned(),
            content: "<style>p{}</style><p>Dear <b>you</b>,</p><p>a &lt; b &amp; c<br>end</p> <unclosed"
                .to_owned(),
        };
        let rendered = letter.render(&brand());
        assert!(!rendered.subject.contains(['\r', '\n']));
        assert!(rendered.html.starts_with("<style>p{}</style><p>Dear <b>you</b>"));
        assert_eq!(rendered.text, "Dear you,\na < b & c\nend\n");
    }
}
