use super::*;

fn secret(text: &str) -> Secret<String> {
    Secret::new(text.to_owned())
}

fn said(id: &str, have: u64, at: u64) -> Announcement {
    Announcement {
        id: id.to_owned(),
        url: "http://standby".to_owned(),
        have,
        lag_seconds: 0.5,
        sent_at_micros: at,
    }
}

#[test]
fn a_code_is_good_for_its_message_and_secret_alone() {
    let (ours, theirs) = (PeerKey::new(&secret("one")), PeerKey::new(&secret("two")));
    let code = ours.code(b"message");
    assert!(ours.accepts(b"message", &code));
    assert!(PeerKey::new(&secret("one")).accepts(b"message", &code));
    assert!(!ours.accepts(b"massage", &code));
    assert!(!theirs.accepts(b"message", &code));
    assert!(!ours.accepts(b"message", ""));
    assert!(!ours.accepts(b"message", &code[..60]));
}

#[tokio::test(start_paused = true)]
async fn standbys_are_remembered_for_a_while_and_the_slowest_counts() {
    let peers = Peers::new(&secret("s"));
    assert_eq!(peers.oldest_position(), None);
    peers.announce(said("a", 700, 10), 20).unwrap();
    peers.announce(said("b", 500, 10), 20).unwrap();
    assert_eq!(peers.oldest_position(), Some(Lsn::saturating(500)));
    tokio::time::sleep(PEER_TTL / 2).await;
    peers.announce(said("a", 900, 10), 20).unwrap();
    tokio::time::sleep(PEER_TTL / 2 + Duration::from_secs(1)).await;
    assert_eq!(peers.standbys().len(), 1);
    assert_eq!(peers.oldest_position(), Some(Lsn::saturating(900)));
}

#[tokio::test]
async fn what_is_old_malformed_or_too_much_is_not_taken() {
    let peers = Peers::new(&secret("s"));
    let late = MESSAGE_AGE_MICROS + 11;
    assert_eq!(peers.announce(said("a", 1, 10), late), Err(NotTaken::Stale));
    assert_eq!(peers.announce(said("", 1, 10), 10), Err(NotTaken::Malformed));
    let long = "x".repeat(TEXT_MAX + 1);
    assert_eq!(peers.announce(said(&long, 1, 10), 10), Err(NotTaken::Malformed));
    for n in 0..PEERS_MAX {
        peers.announce(said(&n.to_string(), 1, 10), 10).unwrap();
    }
    assert_eq!(peers.announce(said("more", 1, 10), 10), Err(NotTaken::Full));
    peers.announce(said("0", 2, 10), 10).unwrap();
    assert_eq!(peers.standbys().len(), PEERS_MAX);
}

#[tokio::test]
async fn a_server_is_promoted_once_and_only_while_it_follows() {
    let peers = Peers::new(&secret("s"));
    assert!(!peers.promote());
    let promoted = peers.promotion();
    assert!(peers.promote());
    promoted.await.unwrap();
    assert!(!peers.promote());
    drop(peers.promotion());
    assert!(!peers.promote());
}
