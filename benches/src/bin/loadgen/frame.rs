//! What a consumer needs of a firehose message, at the price of looking at its first bytes.

use engine::repo::event::{Event, decode};

/// The CBOR text `seq`, as a key.
const SEQ_KEY: &[u8] = b"\x63seq";
/// The keys that follow `seq` in one kind of event or another.
const NEXT_KEYS: [&[u8]; 2] = [b"\x64repo", b"\x64time"];
/// Head of an error message: a map of the one field `op`.
const ERROR_HEAD: &[u8] = b"\xa1\x62op\x20";

/// A message.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// An event with its place in the stream.
    Event(u64),
    /// A word about the stream, such as `OutdatedCursor`.
    Info(String),
    /// Why the stream ends here.
    Error(String),
}

/// Looks at a message. Events are not decoded, as a load generator must not be slower than the server; everything else is.
///
/// # Errors
/// What is wrong with it.
pub fn look(message: &[u8]) -> Result<Frame, String> {
    if !message.starts_with(ERROR_HEAD)
        && let Some(seq) = find_seq(message)
    {
        return Ok(Frame::Event(seq));
    }
    match decode(message) {
        Ok(Event::Info { name, .. }) => Ok(Frame::Info(name.to_owned())),
        Ok(Event::Error { error, message }) => {
            Ok(Frame::Error(format!("{error}: {}", message.unwrap_or_default())))
        }
        Ok(_) => Err("an event without seq".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The number after the key `seq`. What looks like the key inside other bytes is told from it by the key that follows.
fn find_seq(message: &[u8]) -> Option<u64> {
    let mut rest = message;
    while let Some(at) = find(rest, SEQ_KEY) {
        rest = rest.get(at + SEQ_KEY.len()..)?;
        if let Some((seq, next)) = unsigned(rest)
            && NEXT_KEYS.iter().any(|key| next.starts_with(key))
        {
            return Some(seq);
        }
    }
    None
}

/// A CBOR unsigned integer and what follows it.
fn unsigned(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (&head, rest) = bytes.split_first()?;
    let len = match head {
        0..24 => return Some((head.into(), rest)),
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => return None,
    };
    let (argument, rest) = rest.split_at_checked(len)?;
    let value = argument
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some((value, rest))
}

/// Where `needle` starts in `bytes`.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, others) = needle.split_first()?;
    let mut start = 0;
    loop {
        let at = start + bytes.get(start..)?.iter().position(|byte| byte == first)?;
        if bytes.get(at + 1..)?.starts_with(others) {
            return Some(at);
        }
        start = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::repo::event::{encode_account, encode_error, encode_identity, encode_info};

    const SEQ: u64 = 1_700_000_000_123_456;

    fn stamped(mut event: engine::repo::event::Unstamped) -> Vec<u8> {
        event.bytes[event.seq_at..event.seq_at + 8].copy_from_slice(&SEQ.to_be_bytes());
        event.bytes
    }

    #[test]
    fn every_kind_of_message_is_told_from_the_others() {
        let did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa".parse().unwrap();
        assert_eq!(look(&stamped(encode_account(&did, None))), Ok(Frame::Event(SEQ)));
        assert_eq!(look(&stamped(encode_identity(&did, None))), Ok(Frame::Event(SEQ)));
        let info = encode_info("OutdatedCursor", None);
        assert_eq!(look(&info), Ok(Frame::Info("OutdatedCursor".to_owned())));
        let error = encode_error("FutureCursor", Some("words"));
        assert_eq!(look(&error), Ok(Frame::Error("FutureCursor: words".to_owned())));
        assert!(look(b"").is_err() && look(b"\xff\xff").is_err());
    }

    #[test]
    fn bytes_that_look_like_a_seq_but_lead_nowhere_are_passed_over() {
        let mut message = b"\x63seq\x05\x63abc\x63seq\x1a".to_vec();
        message.extend_from_slice(&77u32.to_be_bytes());
        message.extend_from_slice(b"\x64repo");
        assert_eq!(look(&message), Ok(Frame::Event(77)));
        assert_eq!(find_seq(b"\x63seq\x1b\x00"), None, "cut off");
    }

    #[test]
    fn a_needle_is_found_wherever_it_is() {
        assert_eq!(find(b"aab", b"ab"), Some(1));
        assert_eq!(find(b"aab", b"aab"), Some(0));
        assert_eq!(find(b"aab", b"b"), Some(2));
        assert_eq!(find(b"aab", b"ba"), None);
        assert_eq!(find(b"", b"a"), None);
    }
}
