//! Rows of the account database, as services use them. Times are ISO-8601 texts as written by [`super::iso_time`].

/// A password's scrypt hash with its salt. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(pub String);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("PasswordHash(…)")
    }
}

/// Whether an account takes part. Taken down wins over deactivated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActorStatus {
    /// It does.
    Active,
    /// Its owner has paused it, or it is on its way in.
    Deactivated,
    /// The operator has taken it down.
    Takendown,
}

impl ActorStatus {
    fn of(takedown_ref: Option<&str>, deactivated_at: Option<&str>) -> ActorStatus {
        match (takedown_ref, deactivated_at) {
            (Some(_), _) => ActorStatus::Takendown,
            (None, Some(_)) => ActorStatus::Deactivated,
            (None, None) => ActorStatus::Active,
        }
    }

    /// Whether it is active.
    #[must_use]
    pub fn is_active(self) -> bool {
        self == ActorStatus::Active
    }

    /// The protocol's `status`, absent for an active account.
    #[must_use]
    pub fn wire_name(self) -> Option<&'static str> {
        match self {
            ActorStatus::Active => None,
            ActorStatus::Deactivated => Some("deactivated"),
            ActorStatus::Takendown => Some("takendown"),
        }
    }
}

/// A row of `actor`: someone with a repo here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The DID.
    pub did: String,
    /// The handle, as it was given; unique without regard to case.
    pub handle: Option<String>,
    /// When the account was created here.
    pub created_at: String,
    /// Set while taken down: the moderation reference, or the time.
    pub takedown_ref: Option<String>,
    /// Set while deactivated: since when.
    pub deactivated_at: Option<String>,
    /// When a deactivated account wishes to be deleted.
    pub delete_after: Option<String>,
}

impl Actor {
    /// Whether the account takes part.
    #[must_use]
    pub fn status(&self) -> ActorStatus {
        ActorStatus::of(self.takedown_ref.as_deref(), self.deactivated_at.as_deref())
    }
}

/// A row of `account`: how the actor logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The e-mail address, lower-case.
    pub email: String,
    /// The password's hash.
    pub password: PasswordHash,
    /// When the address was confirmed.
    pub email_confirmed_at: Option<String>,
    /// Whether the account may give no invites.
    pub invites_disabled: bool,
}

/// An actor and, unless the account has no password here, its login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The actor.
    pub actor: Actor,
    /// The login.
    pub login: Option<Login>,
}

/// A row of `refresh_token`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshToken {
    /// SHA-256 of the token's `jti`, hex: whoever reads the database can refresh nothing.
    pub id: String,
    /// Whose session it is.
    pub did: String,
    /// Good before this time.
    pub expires_at: String,
    /// Its successor's id, once rotated.
    pub next_id: Option<String>,
    /// The app password that began the session; none for the account's own.
    pub app_password_name: Option<String>,
}

/// What became of a refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// A session goes on.
    Rotated {
        /// The token that was presented, as it was before.
        token: RefreshToken,
        /// The successor's id: the proposed one, or that of an earlier refresh within the grace time.
        next_id: String,
    },
    /// There is no such token (any more).
    Revoked,
    /// The token is past its time.
    Expired,
}

/// A row of `app_password`, without its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppPassword {
    /// Its name, unique within the account.
    pub name: String,
    /// When it was made.
    pub created_at: String,
    /// Whether it may do what is kept from ordinary app passwords.
    pub privileged: bool,
}

/// A row of `signing_key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKey {
    /// Whose repo it signs.
    pub did: String,
    /// The public key as a `did:key`.
    pub public_key: String,
    /// The private key, encrypted under a key that is not in this database.
    pub wrapped: Vec<u8>,
    /// When it was made.
    pub created_at: String,
}

/// How many actors there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActorCounts {
    /// Active ones.
    pub active: u64,
    /// Deactivated ones that are not taken down.
    pub deactivated: u64,
    /// Taken down ones.
    pub takendown: u64,
}
