//! What apps keep for an account: a list of objects with a `$type` below `app.bsky`, of which nobody else sees anything.
//!
//! | preference | seen by | written by |
//! |---|---|---|
//! | `personalDetailsPref` (the date of birth) | the account's own password | the same |
//! | `declaredAgePref` | everybody who sees any | nobody: it follows from the date of birth |
//! | all others | every session of the account | the same |

use engine::repo::Did;
use engine::repo::datetime::format_datetime;
use engine::views::accounts::LockKey;
use engine::views::accounts::queries::{self, Preference};
use serde_json::{Map, Value, json};

use super::{Accounts, ChangeError};

/// Whose preferences these are.
const NAMESPACE: &str = "app.bsky";
const PERSONAL: &str = "app.bsky.actor.defs#personalDetailsPref";
const DECLARED_AGE: &str = "app.bsky.actor.defs#declaredAgePref";

/// Why preferences were not stored.
#[derive(Debug, thiserror::Error)]
pub enum PreferencesError {
    /// One has no type, or none of these apps'.
    #[error("Some preferences are not in the {NAMESPACE} namespace")]
    Namespace,
    /// One has no type at all.
    #[error("Preference is missing a $type")]
    Untyped,
    /// One is for the account's own password only.
    #[error("Do not have authorization to set preferences.")]
    Personal,
    /// The account database or the log.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl Accounts {
    /// The preferences of an account that a session sees: all of them if `personal`.
    ///
    /// # Errors
    /// [`ChangeError`] if the account database cannot be read.
    pub async fn preferences(&self, did: &Did, personal: bool) -> Result<Vec<Value>, ChangeError> {
        let owner = did.as_str().to_owned();
        let rows = self.inner.engine.accounts();
        let rows = rows.read(move |conn| queries::preferences(conn, &owner)).await?;
        let today = format_datetime(self.inner.engine.now_micros());
        let mut shown = Vec::with_capacity(rows.len() + 1);
        let mut age = None;
        for Preference { name, json } in rows {
            let value: Value =
                serde_json::from_str(&json).map_err(|error| ChangeError::Internal(error.to_string()))?;
            if name == PERSONAL {
                age = value
                    .get("birthDate")
                    .and_then(Value::as_str)
                    .and_then(|born| age_on(&today, born));
            }
            if name != PERSONAL || personal {
                shown.push(value);
            }
        }
        if let Some(age) = age {
            shown.push(json!({
                "$type": DECLARED_AGE,
                "isOverAge13": age >= 13,
                "isOverAge16": age >= 16,
                "isOverAge18": age >= 18,
            }));
        }
        Ok(shown)
    }

    /// Puts these in the place of all that the session may write; what it may not see stays as it is.
    ///
    /// # Errors
    /// See [`PreferencesError`]; nothing has changed then.
    pub async fn put_preferences(
        &self,
        did: &Did,
        given: Vec<Map<String, Value>>,
        personal: bool,
    ) -> Result<(), PreferencesError> {
        let mut new = Vec::with_capacity(given.len());
        for preference in given {
            let Some(Value::String(name)) = preference.get("$type") else {
                return Err(PreferencesError::Untyped);
            };
            let name = name.clone();
            match name.strip_prefix(NAMESPACE) {
                Some(rest) if rest.is_empty() || rest.starts_with('.') => {}
                Some(_) | None => return Err(PreferencesError::Namespace),
            }
            if name == PERSONAL && !personal {
                return Err(PreferencesError::Personal);
            }
            if name != DECLARED_AGE {
                let json = Value::Object(preference).to_string();
                new.push(Preference { name, json });
            }
        }
        let owner = did.as_str().to_owned();
        self.change(vec![LockKey::did(did.as_str())], move |tx| {
            queries::replace_preferences(tx, &owner, &new, |name| personal || name != PERSONAL)
        })
        .await?;
        Ok(())
    }
}

/// The age in years at the day `today` of who was born on `born`, both beginning with `YYYY-MM-DD`.
fn age_on(today: &str, born: &str) -> Option<i32> {
    let (year, month, day) = date(today)?;
    let (born_year, born_month, born_day) = date(born)?;
    let before_birthday = (month, day) < (born_month, born_day);
    Some(year - born_year - i32::from(before_birthday))
}

fn date(text: &str) -> Option<(i32, u8, u8)> {
    let mut parts = text.get(..10)?.splitn(3, '-');
    let date = (
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    );
    ((1..=12).contains(&date.1) && (1..=31).contains(&date.2)).then_some(date)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn years_are_full_on_the_birthday() {
        let age = |born| age_on("2026-11-21T10:00:00.000Z", born);
        assert_eq!(age("2008-11-21"), Some(18));
        assert_eq!(age("2008-11-22T00:00:00Z"), Some(17));
        assert_eq!(age("2013-01-01T00:00:00.000Z"), Some(13));
        assert_eq!(age("2030-01-01"), Some(-4));
        for odd in ["", "2008", "2008-13-01", "born long ago", "äöü-11-21 00"] {
            assert_eq!(age(odd), None, "{odd}");
        }
    }
}
