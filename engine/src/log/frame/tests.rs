use super::super::draft::{Draft, Place};
use super::*;
use bytes::BytesMut;
use proptest::prelude::*;

fn lsn(n: u64) -> Lsn {
    Lsn::new(n).unwrap()
}

fn encoded(mut draft: Draft, place: Place) -> Bytes {
    let mut out = BytesMut::new();
    draft.encode(place, &mut out);
    out.freeze()
}

fn any_place() -> impl Strategy<Value = Place> {
    (1..=Lsn::MAX.get(), any::<u64>(), any::<u64>(), 0u8..8).prop_map(|(at, prev, epoch, flags)| Place {
        lsn: lsn(at),
        prev: lsn(prev % at),
        epoch: Epoch(epoch),
        flags: Flags(flags),
    })
}

proptest! {
    #[test]
    fn what_is_encoded_is_parsed_back(
        place in any_place(), kind: u8, public: Vec<u8>, private: Vec<u8>, after: Vec<u8>,
    ) {
        let draft = Draft { kind, public: public.clone(), stamps: vec![], private: private.clone() };
        let mut bytes = BytesMut::from(&encoded(draft, place)[..]);
        let len = bytes.len();
        bytes.extend_from_slice(&after);
        let frame = Frame::parse(&bytes.freeze(), lsn(5), 96).unwrap();
        prop_assert_eq!(frame.public(), public);
        prop_assert_eq!(frame.private(), private);
        prop_assert_eq!(frame.bytes().len(), len);
        prop_assert_eq!((frame.lsn(), frame.prev(), frame.epoch()), (place.lsn, place.prev, place.epoch));
        prop_assert_eq!((frame.kind(), frame.flags()), (kind, place.flags));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed(place in any_place(), public: Vec<u8>, private: Vec<u8>, at: usize) {
        let draft = Draft { kind: 1, public, stamps: vec![], private };
        let mut bytes = encoded(draft, place).to_vec();
        let bit = at % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(FrameRef::parse(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = FrameRef::parse(&bytes);
    }
}

#[test]
fn a_length_beyond_the_bound_is_refused_before_anything_is_read() {
    let place = Place {
        lsn: lsn(2),
        prev: lsn(1),
        epoch: Epoch(1),
        flags: Flags::default(),
    };
    let bytes = encoded(Draft::default(), place);
    let mut header = FrameHeader::parse(&bytes).unwrap();
    header.frame_len = u32::try_from(MAX_FRAME_BYTES).unwrap() + 1;
    let error = FrameRef::parse(&header.encode()).unwrap_err();
    assert!(
        matches!(
            error,
            FrameError::Field {
                field: "frame length",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn public_and_private_parts_are_checked_apart() {
    let place = Place {
        lsn: lsn(2),
        prev: lsn(1),
        epoch: Epoch(1),
        flags: Flags::default(),
    };
    let draft = Draft {
        public: b"open".to_vec(),
        private: b"secret".to_vec(),
        ..Draft::default()
    };
    let mut bytes = encoded(draft, place).to_vec();
    let header = FrameHeader::parse(&bytes).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    header.check_public(&bytes[48..52]).unwrap();
    assert!(header.check_private(&bytes[52..]).is_err());
    assert_eq!(
        FrameRef::parse(&bytes).unwrap_err(),
        FrameError::Checksum {
            part: FramePart::Private
        }
    );
}
