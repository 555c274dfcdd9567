//! Language tags (BCP 47), as far as Lexicon's `language` format asks.

/// Longest language tag, in bytes.
pub const MAX_LANGUAGE_BYTES: usize = 128;

/// Whether `text` has the shape of a language tag, at most 128 bytes: `i`, `x` or a two- or three-letter language in lower case, then subtags
/// of 1 to 8 letters and digits.
#[must_use]
pub fn check_language_syntax(text: &str) -> bool {
    let mut subtags = text.split('-');
    let first = subtags.next().unwrap_or_default();
    let sound_first = match first.len() {
        1 => matches!(first, "i" | "x" | "X") && text.len() > 1,
        2 | 3 => first.bytes().all(|byte| byte.is_ascii_lowercase()),
        _ => false,
    };
    text.len() <= MAX_LANGUAGE_BYTES
        && sound_first
        && subtags.all(|subtag| {
            (1..=8).contains(&subtag.len()) && subtag.bytes().all(|b| b.is_ascii_alphanumeric())
        })
}

/// Whether `text` is a valid language tag: well formed, and no variant and no extension given twice.
/// See <https://www.rfc-editor.org/rfc/rfc5646#section-2.2.9>.
#[must_use]
pub fn check_language(text: &str) -> bool {
    if !check_language_syntax(text) {
        return false;
    }
    let (mut variants, mut extensions) = (Vec::new(), Vec::new());
    for subtag in text.split('-').skip(1) {
        if subtag.eq_ignore_ascii_case("x") {
            break; // What follows is for private use and free of rules.
        }
        let is_variant =
            subtag.len() >= 5 || (subtag.len() == 4 && subtag.starts_with(|c: char| c.is_ascii_digit()));
        let seen = match subtag.len() {
            1 => &mut extensions,
            _ if is_variant && extensions.is_empty() => &mut variants,
            _ => continue,
        };
        let subtag = subtag.to_ascii_lowercase();
        if seen.contains(&subtag) {
            return false;
        }
        seen.push(subtag);
    }
    true
}
