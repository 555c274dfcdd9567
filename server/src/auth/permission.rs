//! What a caller may do. Handlers ask this one type and never look at the kind of a token, so that a new kind of credential
//! is one more arm here and nothing else.
//!
//! | asked with | answers |
//! |---|---|
//! | [`Permission::admit`] | whether the method lets this caller in at all |
//! | [`Permission::call`] | whether a method of another service may be called as the account |
//! | [`Permission::take_token`] | whether the account may take away a token for such a call |

use super::methods;
use super::tokens::Scope;

/// The callers that a method lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The account, by its password or an app password.
    Standard,
    /// As standard, and accounts whose sign-up waits.
    StandardOrQueued,
    /// As standard, and taken-down accounts that leave.
    StandardOrTakendown,
    /// The account by its own password only.
    Full,
    /// As full, and taken-down accounts that leave.
    FullOrTakendown,
}

/// A method of a service, as the one that is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rpc<'a> {
    /// The service: a DID with a fragment where one is known.
    pub aud: &'a str,
    /// The method.
    pub lxm: &'a str,
}

/// Why not. All are status 400 on the wire; clients act on the name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The method does not let this kind of session in.
    #[error("Bad token scope")]
    Scope,
    /// The method needs more than this session may.
    #[error("Bad token method")]
    Method,
    /// No token for this method: the session may too little.
    #[error("This session may not have a service token for {0}")]
    Privileged(String),
    /// No token for this method, whoever asks: it is for this server alone.
    #[error("A service token cannot be made for {0}")]
    Protected(String),
}

impl Denied {
    /// The `error` field of the answer.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Denied::Scope | Denied::Method => "InvalidToken",
            Denied::Privileged(_) | Denied::Protected(_) => "InvalidRequest",
        }
    }
}

/// What one credential allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission(Credential);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Credential {
    Session(Scope),
}

impl Permission {
    /// Of a session token.
    #[must_use]
    pub const fn of_session(scope: Scope) -> Permission {
        Permission(Credential::Session(scope))
    }

    /// Whether a method with this rule takes the caller.
    ///
    /// # Errors
    /// [`Denied::Scope`].
    pub fn admit(&self, access: Access) -> Result<(), Denied> {
        let Credential::Session(scope) = self.0;
        let standard = matches!(scope, Scope::Access | Scope::AppPassPrivileged | Scope::AppPass);
        let admitted = match access {
            Access::Standard => standard,
            Access::StandardOrQueued => standard || scope == Scope::SignupQueued,
            Access::StandardOrTakendown => standard || scope == Scope::Takendown,
            Access::Full => scope == Scope::Access,
            Access::FullOrTakendown => matches!(scope, Scope::Access | Scope::Takendown),
        };
        if admitted { Ok(()) } else { Err(Denied::Scope) }
    }

    /// Whether this server may call `rpc` for the account. A session may call any service.
    ///
    /// # Errors
    /// [`Denied::Method`] for a method that needs more than an ordinary app password.
    pub fn call(&self, rpc: Rpc<'_>) -> Result<(), Denied> {
        if methods::is_privileged(rpc.lxm) && !self.is_privileged() {
            return Err(Denied::Method);
        }
        Ok(())
    }

    /// Whether the account may take away a token with which anybody can call `lxm`, or everything, of `aud` as the account.
    ///
    /// # Errors
    /// [`Denied::Scope`] for a taken-down account that wants more than to create an account elsewhere,
    /// [`Denied::Privileged`] for an app password and a method beyond it.
    pub fn take_token(&self, aud: &str, lxm: Option<&str>) -> Result<(), Denied> {
        let Credential::Session(scope) = self.0;
        if scope == Scope::Takendown {
            return match lxm {
                Some(methods::CREATE_ACCOUNT) => Ok(()),
                Some(_) | None => Err(Denied::Scope),
            };
        }
        match lxm {
            Some(lxm) => self
                .call(Rpc { aud, lxm })
                .map_err(|_| Denied::Privileged(lxm.to_owned())),
            None => Ok(()),
        }
    }

    /// Whether the caller may see and change the account's personal details, such as its date of birth.
    #[must_use]
    pub fn sees_personal_details(&self) -> bool {
        let Credential::Session(scope) = self.0;
        scope == Scope::Access
    }

    fn is_privileged(&self) -> bool {
        let Credential::Session(scope) = self.0;
        matches!(scope, Scope::Access | Scope::AppPassPrivileged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Scope; 5] = [
        Scope::Access,
        Scope::AppPassPrivileged,
        Scope::AppPass,
        Scope::Takendown,
        Scope::SignupQueued,
    ];

    fn who(may: impl Fn(&Permission) -> Result<(), Denied>) -> Vec<&'static str> {
        ALL.into_iter()
            .filter(|scope| may(&Permission::of_session(*scope)).is_ok())
            .map(|scope| scope.as_str().trim_start_matches("com.atproto."))
            .collect()
    }

    #[test]
    fn each_rule_lets_its_sessions_in_and_no_others() {
        let standard = ["access", "appPassPrivileged", "appPass"];
        let with = |more| [&standard[..], &[more]].concat();
        assert_eq!(who(|p| p.admit(Access::Standard)), standard);
        assert_eq!(who(|p| p.admit(Access::StandardOrQueued)), with("signupQueued"));
        assert_eq!(who(|p| p.admit(Access::StandardOrTakendown)), with("takendown"));
        assert_eq!(who(|p| p.admit(Access::Full)), ["access"]);
        assert_eq!(who(|p| p.admit(Access::FullOrTakendown)), ["access", "takendown"]);
    }

    #[test]
    fn chat_needs_a_privileged_session_whatever_the_case_of_its_name() {
        let aud = "did:web:chat.example#bsky_chat";
        for lxm in ["chat.bsky.convo.getLog", "CHAT.bsky.convo.GETLOG"] {
            let call = who(|p| p.call(Rpc { aud, lxm }));
            assert_eq!(call, ["access", "appPassPrivileged"]);
            assert_eq!(who(|p| p.take_token(aud, Some(lxm))), call);
        }
        let newer = who(|p| {
            p.call(Rpc {
                aud,
                lxm: "chat.bsky.convo.addReaction",
            })
        });
        assert_eq!(newer.len(), ALL.len());
    }

    #[test]
    fn a_taken_down_account_may_only_have_a_token_to_leave() {
        let permission = Permission::of_session(Scope::Takendown);
        let take = |lxm| permission.take_token("did:web:new.example", lxm);
        assert_eq!(take(Some("com.atproto.server.createAccount")), Ok(()));
        assert_eq!(take(Some("com.example.read")), Err(Denied::Scope));
        assert_eq!(take(None), Err(Denied::Scope));
        let app = Permission::of_session(Scope::AppPass);
        let refused = app.take_token("did:web:new.example", Some("com.atproto.server.createAccount"));
        assert_eq!(refused.unwrap_err().name(), "InvalidRequest");
    }
}
