//! Passwords: Argon2id for those that are set here, scrypt in the form that the reference server stores, so that its accounts
//! can move in as they are; such a password is hashed anew at its next use.
//!
//! | stored form | what |
//! |---|---|
//! | `$argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>` | Argon2id with 19 MiB, two passes, one lane; 16 bytes of salt, 32 of hash, in base64 |
//! | `<salt hex>:<hash hex>` | scrypt with N = 16384, r = 8, p = 1 over the **text** of the salt (32 ASCII characters), 64 bytes |
//!
//! Either takes some 20 MiB and tens of milliseconds, so they run on threads of their own, a bounded number at a time; whoever
//! waits longer than [`MAX_WAIT`], or comes when [`MAX_WAITING`] wait already, is told that the server is busy.
//!
//! An app password's salt is made from the DID, so that one hash finds it among all of an account's; it is scrypt always.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine::clock::Entropy;
use engine::repo::Did;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use super::hashing::{Hashers, Memory};

/// Longest password that can be set, in UTF-16 code units, as clients count.
pub const MAX_NEW_PASSWORD_CHARS: usize = 256;
/// Longest password that is looked at when verifying, in UTF-16 code units.
pub const MAX_PASSWORD_CHARS: usize = 512;
/// How long a caller waits for its turn.
pub const MAX_WAIT: Duration = Duration::from_secs(2);
/// How many callers may wait at once.
pub const MAX_WAITING: usize = 256;

/// Argon2id: memory in KiB, passes, lanes. One of the sets that OWASP lists as equal in strength.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
const ARGON2_PREFIX: &str = "$argon2id$v=19$m=19456,t=2,p=1$";
const ARGON2_HASH_BYTES: usize = 32;

const LOG_N: u8 = 14;
const BLOCK_SIZE: u32 = 8;
const PARALLELISM: u32 = 1;
const HASH_BYTES: usize = 64;
const SALT_BYTES: usize = 16;
const SALT_CHARS: usize = SALT_BYTES * 2;

/// Why a password could not be hashed or checked. A wrong password is no error.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Too many at once; try again. 503 on the wire.
    #[error("the server is busy checking passwords; try again")]
    Busy,
    /// A new password of more than [`MAX_NEW_PASSWORD_CHARS`].
    #[error("Password too long")]
    TooLong,
    /// No randomness for a salt.
    #[error("no randomness for a salt")]
    Entropy(#[source] std::io::Error),
    /// The hash did not run.
    #[error("a password could not be hashed")]
    Failed,
}

/// Hashes and verifies passwords, a bounded number at a time.
pub struct Passwords {
    hashers: Hashers,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_wait: Duration,
    entropy: Arc<dyn Entropy>,
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords")
            .field("free", &self.turns.available_permits())
            .finish_non_exhaustive()
    }
}

impl Passwords {
    /// At most `at_once` hashes at a time; each takes its memory while it runs.
    #[must_use]
    pub fn new(entropy: Arc<dyn Entropy>, at_once: usize) -> Passwords {
        Passwords::with_limits(entropy, at_once, MAX_WAIT)
    }

    fn with_limits(entropy: Arc<dyn Entropy>, at_once: usize, max_wait: Duration) -> Passwords {
        Passwords {
            hashers: Hashers::new(at_once),
            turns: Arc::new(Semaphore::new(at_once)),
            waiting: AtomicUsize::new(0),
            max_wait,
            entropy,
        }
    }

    /// The stored form of a new account password.
    ///
    /// # Errors
    /// [`PasswordError::TooLong`] before anything is computed; [`PasswordError::Busy`] under load.
    pub async fn hash(&self, password: &str) -> Result<String, PasswordError> {
        check_new(password)?;
        let mut salt = [0; SALT_BYTES];
        self.entropy.fill(&mut salt).map_err(PasswordError::Entropy)?;
        let hash = self
            .run(password, move |password, memory| {
                argon2_hash(password, &salt, memory)
            })
            .await?;
        let base64 = |bytes: &[u8]| data_encoding::BASE64_NOPAD.encode(bytes);
        Ok(format!("{ARGON2_PREFIX}{}${}", base64(&salt), base64(&*hash)))
    }

    /// The stored form of an app password of `did`: always the same for the same two, so look it up by equality.
    ///
    /// # Errors
    /// As [`Passwords::hash`].
    pub async fn hash_app_password(&self, did: &Did, password: &str) -> Result<String, PasswordError> {
        check_new(password)?;
        let salt = app_password_salt(did);
        let by = salt.clone();
        let hash = self
            .run(password, move |password, _| scrypt_hash(password, by.as_bytes()))
            .await?;
        Ok(format!("{salt}:{}", data_encoding::HEXLOWER.encode(&*hash)))
    }

    /// Whether `password` is the one that `stored` was made of. With `None` (no such account) it computes as long and
    /// answers no, so that the time does not tell which accounts exist.
    ///
    /// # Errors
    /// [`PasswordError::Busy`] under load.
    pub async fn verify(&self, password: &str, stored: Option<&str>) -> Result<bool, PasswordError> {
        if password.encode_utf16().count() > MAX_PASSWORD_CHARS {
            return Ok(false);
        }
        match stored.and_then(parse_stored) {
            Some(Stored::Scrypt { salt, hash }) => {
                let salt = salt.to_owned();
                let found = self.run(password, move |password, _| {
                    scrypt_hash(password, salt.as_bytes())
                });
                Ok(found.await?.ct_eq(&hash).into())
            }
            Some(Stored::Argon2 { salt, hash }) => {
                let found = self.run(password, move |password, memory| {
                    argon2_hash(password, &salt, memory)
                });
                Ok(found.await?.ct_eq(&hash).into())
            }
            None => {
                let wasted = self.run(password, |password, memory| {
                    argon2_hash(password, &[0; SALT_BYTES], memory)
                });
                wasted.await?;
                Ok(false)
            }
        }
    }

    /// Whether a password that was just verified against `stored` is better hashed anew.
    #[must_use]
    pub fn is_outdated(stored: &str) -> bool {
        matches!(parse_stored(stored), Some(Stored::Scrypt { .. }))
    }

    async fn run<T: Send + 'static>(
        &self,
        password: &str,
        hash: impl FnOnce(&[u8], &mut Memory) -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let turn = self.turn().await?;
        let password = Zeroizing::new(password.to_owned());
        let hashing = self.hashers.run(move |memory| {
            // Held by the thread, not by the caller: a caller that goes away does not make room before the work is done.
            let _turn = turn;
            hash(password.as_bytes(), memory)
        });
        hashing.await.ok_or(PasswordError::Failed)?
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, PasswordError> {
        let _place = Place::take(&self.waiting).ok_or(PasswordError::Busy)?;
        match tokio::time::timeout(self.max_wait, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(PasswordError::Failed),
            Err(_) => Err(PasswordError::Busy),
        }
    }
}

/// A place in the queue, given back on drop.
struct Place<'a>(&'a AtomicUsize);

impl Place<'_> {
    fn take(waiting: &AtomicUsize) -> Option<Place<'_>> {
        let place = Place(waiting);
        if waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING {
            Some(place)
        } else {
            None
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn check_new(password: &str) -> Result<(), PasswordError> {
    if password.encode_utf16().count() > MAX_NEW_PASSWORD_CHARS {
        Err(PasswordError::TooLong)
    } else {
        Ok(())
    }
}

fn scrypt_hash(password: &[u8], salt: &[u8]) -> Result<Zeroizing<[u8; HASH_BYTES]>, PasswordError> {
    let params = scrypt::Params::new(LOG_N, BLOCK_SIZE, PARALLELISM).map_err(|_| PasswordError::Failed)?;
    let mut hash = Zeroizing::new([0; HASH_BYTES]);
    scrypt::scrypt(password, salt, &params, &mut *hash).map_err(|_| PasswordError::Failed)?;
    Ok(hash)
}

fn argon2_hash(
    password: &[u8],
    salt: &[u8; SALT_BYTES],
    memory: &mut Memory,
) -> Result<Zeroizing<[u8; ARGON2_HASH_BYTES]>, PasswordError> {
    let params = argon2::Params::new(MEMORY_KIB, PASSES, LANES, Some(ARGON2_HASH_BYTES))
        .map_err(|_| PasswordError::Failed)?;
    let blocks = memory.blocks(params.block_count());
    let mut hash = Zeroizing::new([0; ARGON2_HASH_BYTES]);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into_with_memory(password, salt, &mut *hash, blocks)
        .map_err(|_| PasswordError::Failed)?;
    Ok(hash)
}

/// A stored form, taken apart.
enum Stored<'a> {
    Scrypt {
        salt: &'a str,
        hash: [u8; HASH_BYTES],
    },
    Argon2 {
        salt: [u8; SALT_BYTES],
        hash: [u8; ARGON2_HASH_BYTES],
    },
}

/// `None` if it is no stored form, which then matches no password. Argon2 with other parameters than ours is none: nobody
/// made it here, and its memory would not be in the plan.
fn parse_stored(stored: &str) -> Option<Stored<'_>> {
    if let Some(rest) = stored.strip_prefix(ARGON2_PREFIX) {
        let (salt, hash) = rest.split_once('$')?;
        let base64 = |text: &str| data_encoding::BASE64_NOPAD.decode(text.as_bytes()).ok();
        return Some(Stored::Argon2 {
            salt: base64(salt)?.try_into().ok()?,
            hash: base64(hash)?.try_into().ok()?,
        });
    }
    let (salt, hash) = stored.split_once(':')?;
    let hash = data_encoding::HEXLOWER_PERMISSIVE.decode(hash.as_bytes()).ok()?;
    Some(Stored::Scrypt {
        salt,
        hash: hash.try_into().ok()?,
    })
}

/// First half of the DID's SHA-256, in hex.
fn app_password_salt(did: &Did) -> String {
    let digest = Sha256::digest(did.as_str().as_bytes());
    let mut salt = data_encoding::HEXLOWER.encode(&digest);
    salt.truncate(SALT_CHARS);
    salt
}

/// A new app password: `xxxx-xxxx-xxxx-xxxx` in lowercase base32, 80 random bits.
///
/// # Errors
/// The source of randomness failed.
pub fn new_app_password(entropy: &dyn Entropy) -> std::io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0u8; 10]);
    entropy.fill(&mut *bytes)?;
    let letters = Zeroizing::new(data_encoding::BASE32_NOPAD.encode(&*bytes).to_ascii_lowercase());
    let mut password = Zeroizing::new(String::with_capacity(letters.len() + 3));
    for (at, letter) in letters.chars().enumerate() {
        if at > 0 && at % 4 == 0 {
            password.push('-');
        }
        password.push(letter);
    }
    Ok(password)
}

/// Whether text has the form of [`new_app_password`]'s.
#[must_use]
pub fn is_app_password(text: &str) -> bool {
    let is_letter = |byte: &u8| matches!(byte, b'a'..=b'z' | b'2'..=b'7');
    text.len() == 19
        && text
            .split('-')
            .all(|part| part.len() == 4 && part.as_bytes().iter().all(is_letter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::clock::{SeededEntropy, SystemEntropy};

    fn passwords() -> Passwords {
        Passwords::with_limits(Arc::new(SystemEntropy), 2, Duration::from_secs(60))
    }

    // Made with Node's crypto.scryptSync(password, salt, 64), which is what the reference server calls.
    const BY_NODE: [(&str, &str); 2] = [
        (
            "correct horse battery staple",
            "00112233445566778899aabbccddeeff:5699cfee2c5c280e66678242092f368ce88ff05305af2c75a9e629d473deb216\
             5b3797e0e31ec3cda30414573befb697f928384c38b187e8c176107e5be20f01",
        ),
        (
            "pässwörd 🔑",
            "00112233445566778899aabbccddeeff:e0c009d7b2db7e65f658ac5958ed2cbf0d5bd272c9c652c905a4b63c7f55bff6\
             15dcde13e24cc3659db52fe433aa7d0a8402487b4add4fcfde6b48487c46f97e",
        ),
    ];
    const APP_PASSWORD_BY_NODE: &str = "099e4ea96cd62c05a232331859d20c97:fd2bbf28c4711cd8d02ea6a9af381222ef64fa9654f0\
         65196498e87aeb668370e1accd55a4a2cf56b303904d22367493a14af2bda8d630abaa594676edbca564";

    #[tokio::test]
    async fn hashes_of_the_reference_server_verify() {
        for (password, stored) in BY_NODE {
            assert!(passwords().verify(password, Some(stored)).await.unwrap());
            assert!(!passwords().verify("wrong", Some(stored)).await.unwrap());
        }
    }

    // Made by the reference implementation of Argon2 (its C library): 19456 KiB, two passes, one lane, version 13.
    const BY_ARGON2: (&str, &str) = (
        "correct horse battery staple",
        "$argon2id$v=19$m=19456,t=2,p=1$ABEiM0RVZneImaq7zN3u/w$zNlY8+rVrxPryRQjL30GJ7r4tOgZLsK6gVRDMWy/cD0",
    );

    #[tokio::test]
    async fn a_hash_of_the_reference_implementation_of_argon2_verifies() {
        let (password, stored) = BY_ARGON2;
        assert!(passwords().verify(password, Some(stored)).await.unwrap());
        assert!(!passwords().verify("wrong", Some(stored)).await.unwrap());
    }

    #[tokio::test]
    async fn app_passwords_hash_as_on_the_reference_server() {
        let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap();
        let stored = passwords()
            .hash_app_password(&did, "abcd-efgh-ijkl-mnop")
            .await
            .unwrap();
        assert_eq!(stored, APP_PASSWORD_BY_NODE);
    }

    #[tokio::test]
    async fn a_new_hash_has_the_stored_form_and_its_own_salt() {
        let passwords = passwords();
        let (a, b) = (
            passwords.hash("hunter2").await.unwrap(),
            passwords.hash("hunter2").await.unwrap(),
        );
        assert!(a.starts_with(ARGON2_PREFIX));
        assert_ne!(a, b);
        assert!(!Passwords::is_outdated(&a));
        assert!(Passwords::is_outdated(BY_NODE[0].1));
        assert!(passwords.verify("hunter2", Some(&a)).await.unwrap());
        assert!(!passwords.verify("hunter3", Some(&a)).await.unwrap());
    }

    #[tokio::test]
    async fn no_account_and_a_damaged_hash_match_no_password() {
        let passwords = passwords();
        let missing = [
            None,
            Some(""),
            Some(":"),
            Some("salt"),
            Some("salt:zz"),
            Some("00:00"),
            Some("$argon2id$v=19$m=19456,t=2,p=1$"),
            Some("$argon2id$v=19$m=19456,t=2,p=1$AAAA$AAAA"),
            Some(
                "$argon2id$v=19$m=4294967295,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            ),
        ];
        for stored in missing {
            assert!(!passwords.verify("", stored).await.unwrap());
        }
    }

    #[tokio::test]
    async fn lengths_are_limited_as_clients_count_them() {
        let passwords = passwords();
        // A key emoji is two UTF-16 units.
        assert!(matches!(
            passwords.hash(&"🔑".repeat(129)).await,
            Err(PasswordError::TooLong)
        ));
        assert!(passwords.hash(&"🔑".repeat(128)).await.is_ok());
        assert!(!passwords.verify(&"a".repeat(513), None).await.unwrap());
    }

    #[tokio::test]
    async fn whoever_waits_too_long_is_told_that_the_server_is_busy() {
        let passwords = Passwords::with_limits(Arc::new(SystemEntropy), 1, Duration::from_millis(20));
        let held = Arc::clone(&passwords.turns).acquire_owned().await.unwrap();
        assert!(matches!(
            passwords.verify("x", None).await,
            Err(PasswordError::Busy)
        ));
        drop(held);
        assert_eq!(passwords.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn the_queue_has_an_end() {
        let passwords = passwords();
        passwords.waiting.store(MAX_WAITING, Ordering::Relaxed);
        assert!(matches!(
            passwords.verify("x", None).await,
            Err(PasswordError::Busy)
        ));
        assert_eq!(passwords.waiting.load(Ordering::Relaxed), MAX_WAITING);
    }

    #[test]
    fn an_app_password_is_four_groups_of_base32() {
        let password = new_app_password(&SeededEntropy::new(1)).unwrap();
        let groups: Vec<&str> = password.split('-').collect();
        assert_eq!(
            groups.iter().map(|group| group.len()).collect::<Vec<_>>(),
            [4, 4, 4, 4]
        );
        assert!(
            password
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7' | b'-'))
        );
    }

    #[test]
    fn what_is_made_as_an_app_password_looks_like_one() {
        for _ in 0..20 {
            assert!(is_app_password(&new_app_password(&SystemEntropy).unwrap()));
        }
        for other in [
            "",
            "abcd-efgh-ijkl",
            "abcd-efgh-ijkl-mnoP",
            "abcd-efgh-ijkl-mno1",
            "abcdefghijklmnopqrs",
            "abcde-fgh-ijkl-mnop",
        ] {
            assert!(!is_app_password(other), "{other}");
        }
    }
}
