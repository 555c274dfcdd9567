//! The administrator: HTTP Basic with user `admin` and the configured password.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::secrets::Secret;

/// Longest Basic credential that is decoded, in base64 characters.
const MAX_CREDENTIAL_CHARS: usize = 4096;

/// Checks administrator credentials in constant time.
#[derive(Debug)]
pub struct AdminAuth {
    expected: Option<Secret<[u8; 32]>>,
}

impl AdminAuth {
    /// With no password configured (or an empty one), nobody is the administrator.
    #[must_use]
    pub fn new(password: Option<&Secret<String>>) -> AdminAuth {
        let expected = password
            .filter(|password| !password.expose().is_empty())
            .map(|password| Secret::new(Sha256::digest(password.expose().as_bytes()).into()));
        AdminAuth { expected }
    }

    /// Whether `credential`, the part after `Basic `, is base64 of `admin:<password>`. The password may hold colons.
    #[must_use]
    pub fn accepts(&self, credential: &str) -> bool {
        let Some(expected) = &self.expected else {
            return false;
        };
        if credential.len() > MAX_CREDENTIAL_CHARS {
            return false;
        }
        let Ok(decoded) = data_encoding::BASE64
            .decode(credential.as_bytes())
            .map(Zeroizing::new)
        else {
            return false;
        };
        let mut parts = decoded.splitn(2, |byte| *byte == b':');
        let (Some(user), Some(password)) = (parts.next(), parts.next()) else {
            return false;
        };
        // Digests have one length, so that neither content nor length of the password shows in the timing.
        let given: [u8; 32] = Sha256::digest(password).into();
        (user.ct_eq(b"admin") & given.ct_eq(expected.expose())).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(text: &str) -> String {
        data_encoding::BASE64.encode(text.as_bytes())
    }

    #[test]
    fn only_admin_with_the_right_password_passes() {
        let auth = AdminAuth::new(Some(&Secret::new("pa:ss".to_owned())));
        assert!(auth.accepts(&basic("admin:pa:ss")));
        for wrong in [
            "admin:pa",
            "admin:pa:ss ",
            "root:pa:ss",
            "Admin:pa:ss",
            "admin",
            "admin:",
            ":pa:ss",
            "",
        ] {
            assert!(!auth.accepts(&basic(wrong)), "{wrong}");
        }
        assert!(!auth.accepts("not base64!"));
        assert!(!auth.accepts(&"A".repeat(MAX_CREDENTIAL_CHARS + 4)));
    }

    #[test]
    fn without_a_password_nobody_passes() {
        for auth in [
            AdminAuth::new(None),
            AdminAuth::new(Some(&Secret::new(String::new()))),
        ] {
            assert!(!auth.accepts(&basic("admin:")));
        }
    }
}
