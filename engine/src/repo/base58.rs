//! Base58 in Bitcoin's alphabet, as multibase `z` means it. Quadratic in the length, so only for short things: keys.

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Longest text that is decoded. The longest key, an uncompressed point with a prefix, takes 93 digits.
const MAX_TEXT_BYTES: usize = 128;

/// The base58 text of `bytes`.
pub(in crate::repo) fn encode(bytes: &[u8]) -> String {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    // Base-58 digits of the rest, least significant first.
    let mut digits: Vec<u8> = Vec::with_capacity(bytes.len() * 138 / 100 + 1);
    for byte in bytes.iter().skip(zeros) {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58) as u8;
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58) as u8);
            carry /= 58;
        }
    }
    let zeros = std::iter::repeat_n(0, zeros);
    zeros
        .chain(digits.into_iter().rev())
        .map(|digit| char::from(ALPHABET[usize::from(digit)]))
        .collect()
}

/// The bytes behind base58 text; `None` if it is longer than 128 digits or has a character outside of the alphabet.
pub(in crate::repo) fn decode(text: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_TEXT_BYTES {
        return None;
    }
    let zeros = text.bytes().take_while(|byte| *byte == ALPHABET[0]).count();
    // Bytes of the rest, least significant first.
    let mut bytes: Vec<u8> = Vec::with_capacity(text.len());
    for character in text.bytes().skip(zeros) {
        let mut carry = u32::try_from(ALPHABET.iter().position(|digit| *digit == character)?).ok()?;
        for byte in &mut bytes {
            carry += u32::from(*byte) * 58;
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        while carry > 0 {
            bytes.push((carry & 0xff) as u8);
            carry >>= 8;
        }
    }
    bytes.extend(std::iter::repeat_n(0, zeros));
    bytes.reverse();
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_texts() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"\0\0\x28\x7f\xb4\xcd", "11233QC4"),
            (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
        ] {
            assert_eq!(encode(bytes), text);
            assert_eq!(decode(text).as_deref(), Some(bytes));
        }
    }

    #[test]
    fn characters_that_look_alike_and_endless_text_are_refused() {
        for text in ["0", "O", "I", "l", "a b", "ä"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode(&"2".repeat(129)), None);
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
    }
}
