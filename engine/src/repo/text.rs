//! What the identifiers that are checked text have in common.

/// Makes a newtype over text whose only way in is a check: `FromStr`, and deserialising through it.
///
/// `$check: fn(&str) -> Result<(), $error>`; `$normalise: fn(&str) -> Box<str>` gives the stored form.
macro_rules! checked_text {
    ($(#[$meta:meta])* $name:ident, $error:ident, $check:path, $normalise:expr, $expecting:literal) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// The text, as it is stored and sent.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether `raw` is one, without making one.
            ///
            /// # Errors
            /// Why it is none.
            pub fn check(raw: &str) -> Result<(), $error> {
                $check(raw)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $error;

            fn from_str(raw: &str) -> Result<$name, $error> {
                $name::check(raw)?;
                let normalise: fn(&str) -> Box<str> = $normalise;
                Ok($name(normalise(raw)))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), &self.0)
            }
        }

        /// So that a map with these keys can be asked with plain text.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        $crate::repo::text::serde_as_text!($name, $expecting);
    };
}

/// Serialises as `Display` prints and deserialises as `FromStr` reads.
macro_rules! serde_as_text {
    ($name:ident, $expecting:literal) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                struct TextVisitor;
                impl serde::de::Visitor<'_> for TextVisitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(TextVisitor)
            }
        }
    };
}

pub(in crate::repo) use {checked_text, serde_as_text};

/// A domain label: 1 to 63 letters, digits and hyphens, no hyphen at either end.
pub(in crate::repo) fn is_domain_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    bytes.len() <= 63
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
        && bytes.first().is_some_and(|first| *first != b'-')
        && bytes.last().is_some_and(|last| *last != b'-')
}
