//! What would break if these failed: the directory refuses our operations, or we accept what nobody signed.

use super::*;
use engine::clock::SeededEntropy;
use serde_json::json;

fn key(seed: u64) -> SigningKey {
    SigningKey::generate(&SeededEntropy::new(seed)).unwrap()
}

fn state() -> PlcState {
    let keys = [key(1).public_key(), key(2).public_key()];
    PlcState::account(
        &keys,
        &key(9).public_key(),
        &"alice.test".parse().unwrap(),
        "https://pds.example",
    )
}

fn genesis() -> Operation {
    Operation::genesis(state(), &key(2)).unwrap()
}

#[test]
fn an_operation_survives_its_json() {
    let genesis = genesis();
    for operation in [
        genesis.clone(),
        Operation::update(state(), genesis.cid(), &key(1)).unwrap(),
        Operation::tombstone(genesis.cid(), &key(1)).unwrap(),
    ] {
        let read = Operation::from_json(&operation.to_json()).unwrap();
        assert_eq!(read, operation);
        assert!(read.signed_by(&state().rotation_keys).is_ok());
    }
    assert_eq!(genesis.signed_by(&state().rotation_keys), Ok(1));
    assert_eq!(genesis.state().unwrap(), state());
    assert_eq!(genesis.did().unwrap().as_str().len(), "did:plc:".len() + 24);
    assert_eq!(Operation::tombstone(genesis.cid(), &key(1)).unwrap().did(), None);
}

#[test]
fn a_changed_field_breaks_the_signature() {
    let good = genesis().to_json();
    for (pointer, value) in [
        ("/alsoKnownAs/0", json!("at://mallory.test")),
        ("/services/atproto_pds/endpoint", json!("https://evil.example")),
        (
            "/verificationMethods/atproto",
            json!(key(7).public_key().to_did_key()),
        ),
    ] {
        let mut bent = good.clone();
        *bent.pointer_mut(pointer).unwrap() = value;
        let bent = Operation::from_json(&bent).unwrap();
        assert_eq!(
            bent.signed_by(&state().rotation_keys),
            Err(OpError::Signature),
            "{pointer}"
        );
        assert_ne!(bent.did(), genesis().did());
    }
}

#[test]
fn a_signature_has_one_spelling() {
    let good = genesis().to_json();
    let sig = good["sig"].as_str().unwrap().to_owned();
    for bent in [
        format!("{sig}=="),
        sig[1..].to_owned(),
        String::new(),
        format!("{sig}AA"),
        sig.replace(['-', '_'], "+"),
    ] {
        let mut json = good.clone();
        json["sig"] = json!(bent);
        let operation = Operation::from_json(&json).unwrap();
        assert!(
            bent == sig || operation.signed_by(&state().rotation_keys).is_err(),
            "{bent}"
        );
    }
}

#[test]
fn malformed_operations_are_refused() {
    let good = genesis().to_json();
    let with = |pointer: &str, value: serde_json::Value| {
        let mut bent = good.clone();
        *bent.pointer_mut(pointer).unwrap() = value;
        bent
    };
    let mut unknown = good.clone();
    unknown["extra"] = json!(1);
    let mut no_prev = good.clone();
    no_prev.as_object_mut().unwrap().remove("prev");
    let many: Vec<String> = (20..31).map(|seed| key(seed).public_key().to_did_key()).collect();
    let key_text = key(1).public_key().to_did_key();
    for (name, bent) in [
        ("unknown field", unknown),
        ("no prev", no_prev),
        ("unknown type", with("/type", json!("plc_other"))),
        ("no rotation keys", with("/rotationKeys", json!([]))),
        ("eleven rotation keys", with("/rotationKeys", json!(many))),
        (
            "a rotation key twice",
            with("/rotationKeys", json!([key_text, key_text])),
        ),
        (
            "an Ed25519 rotation key",
            with(
                "/rotationKeys",
                json!(["did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"]),
            ),
        ),
        ("no did:key", with("/verificationMethods/atproto", json!("zQ3sh"))),
        ("a long alias", with("/alsoKnownAs/0", json!("a".repeat(257)))),
        (
            "eleven aliases",
            with("/alsoKnownAs", json!(vec!["at://a.test"; 11])),
        ),
        (
            "a long service name",
            with(
                "/services",
                json!({"s".repeat(33): {"type": "a", "endpoint": "b"}}),
            ),
        ),
        (
            "a long endpoint",
            with("/services/atproto_pds/endpoint", json!("e".repeat(513))),
        ),
        (
            "a service with more",
            with(
                "/services/atproto_pds",
                json!({"type": "a", "endpoint": "b", "c": "d"}),
            ),
        ),
        ("prev is no CID", with("/prev", json!("abc"))),
        ("a list", json!([])),
    ] {
        assert!(Operation::from_json(&bent).is_err(), "{name}");
    }
}

#[test]
fn an_operation_beyond_7500_bytes_is_refused() {
    let mut large = state();
    large.also_known_as = (0..10)
        .map(|at| format!("at://{at}{}", "a".repeat(250)))
        .collect();
    for at in 0..10 {
        let service = Service {
            kind: "t".repeat(256),
            endpoint: "e".repeat(512),
        };
        large.services.insert(format!("s{at}"), service);
    }
    large.services.remove(PDS_SERVICE);
    assert!(matches!(
        Operation::genesis(large, &key(1)),
        Err(SignOpError::Invalid(OpError::TooLarge { .. }))
    ));
}

#[test]
fn a_curve_that_only_serves_may_be_any() {
    let mut mixed = state();
    mixed.verification_methods.insert(
        "other".to_owned(),
        "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK".to_owned(),
    );
    assert!(Operation::genesis(mixed, &key(1)).is_ok());
}

#[test]
fn the_old_form_is_read_in_the_terms_of_the_new() {
    let (signing, recovery) = (key(1).public_key().to_did_key(), key(2).public_key().to_did_key());
    let body = Body::Create {
        signing_key: signing.clone(),
        recovery_key: recovery.clone(),
        handle: "alice.test".to_owned(),
        service: "pds.example".to_owned(),
    };
    let operation = Operation::sign(body, &key(1)).unwrap();
    let read = Operation::from_json(&operation.to_json()).unwrap();
    assert!(read.is_legacy() && read == operation);
    let state = read.state().unwrap();
    assert_eq!(state.rotation_keys, [recovery, signing]);
    assert_eq!(state.also_known_as, ["at://alice.test"]);
    assert_eq!(state.services[PDS_SERVICE].endpoint, "https://pds.example");
    assert_eq!(read.signed_by(&state.rotation_keys), Ok(1));
}

#[test]
fn a_new_handle_takes_the_place_of_the_old_one() {
    let mut state = state();
    state.also_known_as = vec!["https://alice.example".to_owned(), "at://alice.test".to_owned()];
    state.set_handle(&"bob.test".parse().unwrap());
    assert_eq!(state.also_known_as, ["https://alice.example", "at://bob.test"]);
    state.also_known_as.clear();
    state.set_handle(&"bob.test".parse().unwrap());
    assert_eq!(state.also_known_as, ["at://bob.test"]);
}

#[test]
fn the_same_keys_give_the_same_bytes_as_the_typescript_library() {
    // DID, CIDs and signatures made with @did-plc/lib; RFC 6979 makes signatures comparable.
    let key = |byte: u8| SigningKey::from_bytes(&[byte; 32]).unwrap();
    let signer = key(0x11);
    let rotation = [key(0x22), key(0x44), key(0x11)].map(|key| key.public_key());
    let state = |handle: &str| {
        PlcState::account(
            &rotation,
            &key(0x33).public_key(),
            &handle.parse().unwrap(),
            "https://pds.example",
        )
    };
    let genesis = Operation::genesis(state("alice.test"), &signer).unwrap();
    let mut renamed = genesis.state().unwrap();
    renamed.set_handle(&"bob.test".parse().unwrap());
    let update = Operation::update(renamed, genesis.cid(), &key(0x44)).unwrap();
    let end = Operation::tombstone(update.cid(), &signer).unwrap();
    assert_eq!(
        genesis.did().unwrap().as_str(),
        "did:plc:nzzp3h2hgolouv6qjvkbk4wb"
    );
    for (operation, cid, sig) in [
        (
            &genesis,
            "bafyreidool6z6rzts3vfpucnkqkxfqlrxznwdlchobgrwcbqcsj26igecq",
            "R3XLEmoqkQZB6sjQMbxxkAkHaPbXpczx2Km4AogndglXfJm4s1QFjONdyzo_JSeMPMX-DVb418hsWHadHHh4Fg",
        ),
        (
            &update,
            "bafyreie5av26aayjkf3e4xw6aoiwnpv5nkxgbbceid2y4tbufupyvdpsda",
            "tPct086QtjDGsZKtMyOl2bNc83j6x2_dopqCADW-HzBsvtYV-RD9fIjteK_f83gC1tS2j1hakoQ2aNITr2BeEQ",
        ),
        (
            &end,
            "bafyreiftedjbyhom62q5724uidumlu75tlhzp54jqvaaz6tao6lbnusf4i",
            "cpXHcEnOAJeTGuFa68hhoEfxYRfC-8hyavL5qBY84y4cze-A5pR80tplh938rljnjCIYL16I1CVusWLDUkuz5A",
        ),
    ] {
        assert_eq!(
            (operation.cid().to_string().as_str(), operation.sig.as_str()),
            (cid, sig)
        );
    }
}
