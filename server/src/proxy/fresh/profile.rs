//! Profiles: the caller's own, when it changed.

use serde_json::{Map, Value};

use super::local::{Local, write};

/// `getProfile`.
pub(super) fn one(answer: &mut Value, local: &Local) -> bool {
    answer.as_object_mut().is_some_and(|view| detailed(view, local))
}

/// `getProfiles`.
pub(super) fn all(answer: &mut Value, local: &Local) -> bool {
    let views = answer.get_mut("profiles").and_then(Value::as_array_mut);
    let mut done = false;
    for view in views.into_iter().flatten() {
        done |= one(view, local);
    }
    done
}

/// Renews a view as it is shown on the profile's page.
fn detailed(view: &mut Map<String, Value>, local: &Local) -> bool {
    let Some(profile) = local.changed_profile().filter(|_| is_of(view, local)) else {
        return false;
    };
    local.write_basics(view, profile);
    local.write_image(view, profile, "banner");
    for field in ["description", "website", "pinnedPost"] {
        write(view, field, profile.get(field).cloned());
    }
    true
}

/// Renews a view as it stands beside what somebody wrote.
pub(super) fn basic(view: &mut Map<String, Value>, local: &Local) -> bool {
    let Some(profile) = local.changed_profile().filter(|_| is_of(view, local)) else {
        return false;
    };
    local.write_basics(view, profile);
    true
}

/// Whether a view is one of the caller's profile.
fn is_of(view: &Map<String, Value>, local: &Local) -> bool {
    view.get("did").and_then(Value::as_str) == Some(local.did.as_str())
}
