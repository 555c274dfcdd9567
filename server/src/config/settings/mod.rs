//! The table of every environment variable that the server knows: one row a setting, with default, unit and meaning.
//!
//! [`super::Config`] reads values only through this table, so a variable that is not listed here cannot have an
//! effect, and one that is listed is documented (`pds check-config --list` prints the table). The rows are in the files below, by
//! what they are about.

mod identity;
mod network;
mod services;
mod storage;
mod unused;

/// What a setting's text must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `true`/`1` or `false`/`0`; anything else counts as unset, as in the reference PDS.
    Flag,
    /// A non-negative whole number.
    Number,
    /// Comma-separated values.
    List,
}

/// Whose name a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A variable of the reference PDS with the same meaning here.
    Reference,
    /// A variable of the reference PDS that this version reads and does not act on yet.
    NotYet,
    /// A variable of the reference PDS that has no meaning here, whatever it says.
    Meaningless,
    /// Our own.
    Ours,
}

/// One environment variable.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// The shape of its value.
    pub kind: Kind,
    /// The value when it is unset, as text for people.
    pub default: &'static str,
    /// What it does, with its unit.
    pub meaning: &'static str,
    /// Whether its value must never be printed. Secrets can also be given as a file by `<name>_FILE`.
    pub secret: bool,
    /// Whose name it is.
    pub origin: Origin,
}

const fn reference(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Setting {
    Setting {
        name,
        kind,
        default,
        meaning,
        secret: false,
        origin: Origin::Reference,
    }
}

const fn ours(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Setting {
    Setting {
        name,
        kind,
        default,
        meaning,
        secret: false,
        origin: Origin::Ours,
    }
}

const fn later(name: &'static str) -> Setting {
    Setting {
        name,
        kind: Kind::Text,
        default: "unset",
        meaning: "known from the reference PDS; no effect in this version",
        secret: false,
        origin: Origin::NotYet,
    }
}

const fn meaningless(name: &'static str, why: &'static str) -> Setting {
    Setting {
        name,
        kind: Kind::Text,
        default: "unset",
        meaning: why,
        secret: false,
        origin: Origin::Meaningless,
    }
}

const fn secret(setting: Setting) -> Setting {
    Setting {
        secret: true,
        ..setting
    }
}

/// Every known variable, in the order in which `--list` prints them.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    [
        identity::SETTINGS,
        storage::SETTINGS,
        network::SETTINGS,
        services::SETTINGS,
        unused::SETTINGS,
    ]
    .into_iter()
    .flatten()
}

/// The row of a variable.
#[must_use]
pub fn find(name: &str) -> Option<&'static Setting> {
    all().find(|setting| setting.name == name)
}

/// The known name that is nearest to a misspelt one, if any is near.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    all()
        .map(|setting| (distance(name, setting.name), setting.name))
        .min()
        .filter(|(steps, known)| *steps <= known.len() / 3)
        .map(|(_, known)| known)
}

/// Levenshtein distance of two short ASCII texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<u8> = b.bytes().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_listed_once_and_has_a_meaning() {
        let mut names: Vec<_> = all().map(|s| s.name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len());
        assert!(all().all(|s| !s.meaning.is_empty()));
    }

    #[test]
    fn a_misspelt_name_finds_its_neighbour_and_a_foreign_one_does_not() {
        assert_eq!(nearest("PDS_HOSTNAM"), Some("PDS_HOSTNAME"));
        assert_eq!(nearest("PDS_JWT_SECERT"), Some("PDS_JWT_SECRET"));
        assert_eq!(nearest("PDS_XYZ"), None);
    }
}
