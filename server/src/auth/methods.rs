//! Methods that are not like the others where one service calls another in an account's name. Names are compared without
//! regard to case: another spelling reaches the same method elsewhere.

/// Takes an account over, or makes one.
pub const CREATE_ACCOUNT: &str = "com.atproto.server.createAccount";
/// Reports somebody or something to moderators.
pub const CREATE_REPORT: &str = "com.atproto.moderation.createReport";
/// Uploads media.
pub const UPLOAD_BLOB: &str = "com.atproto.repo.uploadBlob";

/// What an app keeps for an account.
pub const GET_PREFERENCES: &str = "app.bsky.actor.getPreferences";

/// Where an account's devices are told of what happens.
pub const REGISTER_PUSH: &str = "app.bsky.notification.registerPush";
/// And no longer are.
pub const UNREGISTER_PUSH: &str = "app.bsky.notification.unregisterPush";

/// What only the account itself may do at its own server: never proxied, and no token is made for it.
const PROTECTED: [&str; 16] = [
    "com.atproto.admin.sendEmail",
    "com.atproto.identity.requestPlcOperationSignature",
    "com.atproto.identity.signPlcOperation",
    "com.atproto.identity.updateHandle",
    "com.atproto.server.activateAccount",
    "com.atproto.server.confirmEmail",
    "com.atproto.server.createAppPassword",
    "com.atproto.server.deactivateAccount",
    "com.atproto.server.getAccountInviteCodes",
    "com.atproto.server.getSession",
    "com.atproto.server.listAppPasswords",
    "com.atproto.server.requestAccountDelete",
    "com.atproto.server.requestEmailConfirmation",
    "com.atproto.server.requestEmailUpdate",
    "com.atproto.server.revokeAppPassword",
    "com.atproto.server.updateEmail",
];

/// What an ordinary app password may not have.
const PRIVILEGED: [&str; 15] = [
    CREATE_ACCOUNT,
    "chat.bsky.actor.deleteAccount",
    "chat.bsky.actor.exportAccountData",
    "chat.bsky.convo.deleteMessageForSelf",
    "chat.bsky.convo.getConvo",
    "chat.bsky.convo.getConvoForMembers",
    "chat.bsky.convo.getLog",
    "chat.bsky.convo.getMessages",
    "chat.bsky.convo.leaveConvo",
    "chat.bsky.convo.listConvos",
    "chat.bsky.convo.muteConvo",
    "chat.bsky.convo.sendMessage",
    "chat.bsky.convo.sendMessageBatch",
    "chat.bsky.convo.unmuteConvo",
    "chat.bsky.convo.updateRead",
];

/// Whether the method is for the account and its own server alone.
#[must_use]
pub fn is_protected(nsid: &str) -> bool {
    PROTECTED.iter().any(|name| name.eq_ignore_ascii_case(nsid))
}

/// Whether the method needs more than an ordinary app password.
#[must_use]
pub fn is_privileged(nsid: &str) -> bool {
    PRIVILEGED.iter().any(|name| name.eq_ignore_ascii_case(nsid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_names_of_methods_and_match_in_any_case() {
        for name in PROTECTED.iter().chain(&PRIVILEGED) {
            assert!(name.parse::<engine::repo::Nsid>().is_ok(), "{name}");
        }
        assert!(is_protected("com.atproto.server.GETSESSION"));
        assert!(is_privileged("com.atproto.server.createaccount"));
        assert!(!is_protected(CREATE_ACCOUNT) && !is_privileged("com.atproto.server.getSession"));
    }
}
