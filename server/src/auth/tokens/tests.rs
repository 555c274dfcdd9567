//! What would break if these failed: strangers log in, or everybody is logged out.

use super::*;
use engine::clock::SeededEntropy;
use serde_json::{Value, json};

const SECRET: &str = "a secret of the operator's choosing";
const NOW: u64 = 1_700_000_000;

fn did(text: &str) -> Did {
    text.parse().unwrap()
}

fn alice() -> Did {
    did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
}

fn tokens() -> SessionTokens {
    SessionTokens::new(&Secret::new(SECRET.to_owned()), &did("did:web:pds.example"))
}

fn b64(value: &Value) -> String {
    data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes())
}

/// A token with any header and any claims under any key: what a forger can write.
fn forge(header: &Value, claims: &Value, key: &str) -> String {
    let signed = format!("{}.{}", b64(header), b64(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(signed.as_bytes());
    let signature = data_encoding::BASE64URL_NOPAD.encode(&mac.finalize().into_bytes());
    format!("{signed}.{signature}")
}

fn good_header() -> Value {
    json!({"typ": "at+jwt", "alg": "HS256"})
}

fn good_claims() -> Value {
    json!({
        "scope": "com.atproto.access", "sub": alice().as_str(), "aud": "did:web:pds.example",
        "iat": NOW, "exp": NOW + ACCESS_LIFETIME_SECS,
    })
}

fn with(mut value: Value, key: &str, new: Value) -> Value {
    value[key] = new;
    value
}

fn without(mut value: Value, key: &str) -> Value {
    value.as_object_mut().unwrap().remove(key);
    value
}

#[test]
fn an_issued_access_token_has_the_reference_shape_and_verifies() {
    let tokens = tokens();
    let token = tokens.issue_access(&alice(), Scope::AppPass, NOW).unwrap();
    let parts: Vec<Value> = token
        .split('.')
        .take(2)
        .map(|part| {
            serde_json::from_slice(&data_encoding::BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
        })
        .collect();
    assert_eq!(parts[0], json!({"typ": "at+jwt", "alg": "HS256"}));
    assert_eq!(
        parts[1],
        json!({
            "scope": "com.atproto.appPass", "sub": alice().as_str(), "aud": "did:web:pds.example",
            "iat": NOW, "exp": NOW + 7200,
        })
    );
    let claims = tokens.verify_access(&token, NOW + 7199).unwrap();
    assert_eq!(
        (claims.did, claims.scope, claims.expires_at),
        (alice(), Scope::AppPass, NOW + 7200)
    );
}

#[test]
fn an_issued_refresh_token_lives_ninety_days_and_carries_its_id() {
    let tokens = tokens();
    let token = tokens.issue_refresh(&alice(), "an id", NOW).unwrap();
    let end = NOW + 90 * 86_400;
    assert_eq!(tokens.verify_refresh(&token, end - 1, false).unwrap().id, "an id");
    assert_eq!(
        tokens.verify_refresh(&token, end, false),
        Err(TokenError::Expired)
    );
    assert_eq!(tokens.verify_refresh(&token, end, true).unwrap().did, alice());
    assert!(!format!("{:?}", tokens.verify_refresh(&token, NOW, false)).contains("an id"));
}

#[test]
fn a_token_made_by_another_program_with_the_same_secret_is_accepted() {
    // Guards the forger of this file: its good token must pass, or the refusals below prove nothing.
    let token = forge(&good_header(), &good_claims(), SECRET);
    assert_eq!(tokens().verify_access(&token, NOW).unwrap().scope, Scope::Access);
}

#[test]
fn forged_and_misused_access_tokens_are_refused_as_invalid() {
    let refused = [
        (
            "another key",
            forge(&good_header(), &good_claims(), "another secret"),
        ),
        (
            "refresh type",
            forge(
                &with(good_header(), "typ", json!("refresh+jwt")),
                &good_claims(),
                SECRET,
            ),
        ),
        (
            "plain type",
            forge(&with(good_header(), "typ", json!("JWT")), &good_claims(), SECRET),
        ),
        (
            "no type",
            forge(&without(good_header(), "typ"), &good_claims(), SECRET),
        ),
        (
            "alg none",
            forge(&with(good_header(), "alg", json!("none")), &good_claims(), SECRET),
        ),
        (
            "alg RS256",
            forge(
                &with(good_header(), "alg", json!("RS256")),
                &good_claims(),
                SECRET,
            ),
        ),
        (
            "alg ES256",
            forge(
                &with(good_header(), "alg", json!("ES256")),
                &good_claims(),
                SECRET,
            ),
        ),
        (
            "alg HS512",
            forge(
                &with(good_header(), "alg", json!("HS512")),
                &good_claims(),
                SECRET,
            ),
        ),
        (
            "no alg",
            forge(&without(good_header(), "alg"), &good_claims(), SECRET),
        ),
        (
            "other audience",
            forge(
                &good_header(),
                &with(good_claims(), "aud", json!("did:web:other.example")),
                SECRET,
            ),
        ),
        (
            "audience list",
            forge(
                &good_header(),
                &with(good_claims(), "aud", json!(["did:web:pds.example"])),
                SECRET,
            ),
        ),
        (
            "no audience",
            forge(&good_header(), &without(good_claims(), "aud"), SECRET),
        ),
        (
            "subject is no DID",
            forge(
                &good_header(),
                &with(good_claims(), "sub", json!("alice")),
                SECRET,
            ),
        ),
        (
            "no subject",
            forge(&good_header(), &without(good_claims(), "sub"), SECRET),
        ),
        (
            "unknown scope",
            forge(
                &good_header(),
                &with(good_claims(), "scope", json!("everything")),
                SECRET,
            ),
        ),
        (
            "refresh scope",
            forge(
                &good_header(),
                &with(good_claims(), "scope", json!("com.atproto.refresh")),
                SECRET,
            ),
        ),
        (
            "no scope",
            forge(&good_header(), &without(good_claims(), "scope"), SECRET),
        ),
        (
            "no end",
            forge(&good_header(), &without(good_claims(), "exp"), SECRET),
        ),
        (
            "end is text",
            forge(
                &good_header(),
                &with(good_claims(), "exp", json!("tomorrow")),
                SECRET,
            ),
        ),
        (
            "negative end",
            forge(&good_header(), &with(good_claims(), "exp", json!(-1)), SECRET),
        ),
        (
            "service token",
            forge(
                &good_header(),
                &with(good_claims(), "lxm", json!("com.example.call")),
                SECRET,
            ),
        ),
        (
            "null lxm",
            forge(&good_header(), &with(good_claims(), "lxm", Value::Null), SECRET),
        ),
        (
            "bound token",
            forge(
                &good_header(),
                &with(good_claims(), "cnf", json!({"jkt": "x"})),
                SECRET,
            ),
        ),
        ("claims are a list", forge(&good_header(), &json!([]), SECRET)),
        ("empty", String::new()),
        ("dots", "..".to_owned()),
        (
            "four parts",
            format!("{}.x", forge(&good_header(), &good_claims(), SECRET)),
        ),
        ("long", "a".repeat(MAX_TOKEN_CHARS + 1)),
    ];
    for (name, token) in refused {
        let outcome = tokens().verify_access(&token, NOW);
        assert!(
            matches!(outcome, Err(TokenError::Invalid(_))),
            "{name}: {outcome:?}"
        );
        assert_eq!(outcome.unwrap_err().name(), "InvalidToken");
        assert!(tokens().verify_refresh(&token, NOW, true).is_err(), "{name}");
    }
}

#[test]
fn a_token_cut_anywhere_or_with_a_changed_character_is_refused() {
    let token = tokens().issue_access(&alice(), Scope::Access, NOW).unwrap();
    for at in 0..token.len() {
        assert!(
            matches!(
                tokens().verify_access(&token[..at], NOW),
                Err(TokenError::Invalid(_))
            ),
            "cut at {at}"
        );
    }
    // The last character of a base64 part has spare bits; a decoder that ignores them would accept several spellings.
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let bent = String::from_utf8(bytes).unwrap();
        assert!(tokens().verify_access(&bent, NOW).is_err(), "changed at {at}");
    }
}

#[test]
fn expired_is_told_from_invalid_and_only_after_the_signature_was_good() {
    let old = forge(&good_header(), &with(good_claims(), "exp", json!(NOW)), SECRET);
    assert_eq!(tokens().verify_access(&old, NOW), Err(TokenError::Expired));
    assert_eq!(
        (TokenError::Expired.status(), TokenError::Expired.name()),
        (400, "ExpiredToken")
    );
    assert!(tokens().verify_access(&old, NOW - 1).is_ok());
    let forged = forge(
        &good_header(),
        &with(good_claims(), "exp", json!(NOW)),
        "another secret",
    );
    assert!(matches!(
        tokens().verify_access(&forged, NOW),
        Err(TokenError::Invalid(_))
    ));
}

#[test]
fn access_and_refresh_tokens_do_not_pass_for_each_other() {
    let tokens = tokens();
    let access = tokens.issue_access(&alice(), Scope::Access, NOW).unwrap();
    let refresh = tokens.issue_refresh(&alice(), "id", NOW).unwrap();
    assert!(matches!(
        tokens.verify_refresh(&access, NOW, true),
        Err(TokenError::Invalid(_))
    ));
    assert!(matches!(
        tokens.verify_access(&refresh, NOW),
        Err(TokenError::Invalid(_))
    ));
    assert!(tokens.issue_access(&alice(), Scope::Refresh, NOW).is_err());
}

#[test]
fn the_next_refresh_id_depends_on_the_id_and_on_the_secret_alone() {
    let id = new_refresh_id(&SeededEntropy::new(1)).unwrap();
    assert_eq!(id.len(), 43);
    let next = tokens().next_refresh_id(&id);
    assert_eq!(next, tokens().next_refresh_id(&id));
    assert_eq!(next.len(), 43);
    assert_ne!(next, tokens().next_refresh_id(&next));
    let other = SessionTokens::new(&Secret::new("another".to_owned()), &did("did:web:pds.example"));
    assert_ne!(next, other.next_refresh_id(&id));
    assert_eq!(
        hash_refresh_id("abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}
