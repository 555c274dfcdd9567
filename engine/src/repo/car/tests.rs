use super::*;
use proptest::prelude::*;

fn car(roots: &[Cid], blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    write_header(&mut out, roots);
    for block in blocks {
        write_block(&mut out, &Cid::for_raw(block), block);
    }
    out
}

/// Both readers over the same bytes: they have to agree about blocks, and about whether there is a fault.
fn read_both(car: &[u8], limits: CarLimits) -> Result<Vec<OwnedBlock>, String> {
    let streamed = CarReader::new(car, limits).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let sliced = CarSlice::new(car, limits).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let sliced = sliced.map(|blocks| {
        for block in &blocks {
            assert_eq!(&car[block.offset..block.offset + block.bytes.len()], block.bytes);
        }
        blocks
            .iter()
            .map(|block| OwnedBlock {
                cid: block.cid,
                bytes: block.bytes.to_vec(),
            })
            .collect::<Vec<_>>()
    });
    let streamed = streamed.map_err(|error| error.to_string());
    assert_eq!(streamed, sliced.map_err(|error| error.to_string()));
    streamed
}

#[test]
fn a_header_without_roots_has_its_well_known_bytes() {
    let mut out = Vec::new();
    write_header(&mut out, &[]);
    assert_eq!(
        data_encoding::HEXLOWER.encode(&out),
        "11a265726f6f7473806776657273696f6e01"
    );
    assert_eq!(out.len(), header_len(0));
}

#[test]
fn a_car_cut_anywhere_but_between_sections_is_truncated() {
    let blocks = [b"one".to_vec(), vec![7; 300]];
    let whole = car(&[Cid::for_raw(b"one")], &blocks);
    let ends: Vec<usize> = std::iter::once(header_len(1))
        .chain(blocks.iter().scan(header_len(1), |at, block| {
            *at += block_overhead(block.len()) + block.len();
            Some(*at)
        }))
        .collect();
    assert_eq!(ends.last(), Some(&whole.len()));
    for cut in 0..whole.len() {
        let result = read_both(&whole[..cut], CarLimits::default());
        match ends.iter().position(|end| *end == cut) {
            Some(count) => assert_eq!(result.unwrap().len(), count),
            None => assert!(result.unwrap_err().contains("ends inside"), "cut at {cut}"),
        }
    }
}

#[test]
fn a_flipped_bit_in_a_block_is_found_unless_hashes_are_trusted() {
    let mut bytes = car(&[], &[b"block".to_vec()]);
    *bytes.last_mut().unwrap() ^= 1;
    assert!(
        read_both(&bytes, CarLimits::default())
            .unwrap_err()
            .contains("does not hash")
    );
    let trusting = CarLimits {
        verify_hashes: false,
        ..CarLimits::default()
    };
    assert_eq!(read_both(&bytes, trusting).unwrap().len(), 1);
}

#[test]
fn lengths_are_bounded_before_they_are_believed() {
    let header = |length: &[u8]| read_both(length, CarLimits::default()).unwrap_err();
    assert!(header(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).contains("allowed"));
    assert!(header(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]).contains("unsound length"));
    assert!(header(&[0x80; 11]).contains("unsound length"));
    assert!(header(&[0x91, 0x00]).contains("unsound length"));
    assert!(header(&[0x00]).contains("allowed"));
    assert!(header(&[]).contains("ends inside"));

    let section = |length: u64| {
        let mut bytes = car(&[], &[]);
        write_varint(&mut bytes, length);
        bytes.extend_from_slice(&[0; 64]);
        read_both(
            &bytes,
            CarLimits {
                max_block_bytes: 100,
                ..CarLimits::default()
            },
        )
        .unwrap_err()
    };
    assert!(section(0).contains("allowed"));
    assert!(section(35).contains("allowed"));
    assert!(section(137).contains("allowed"));
    assert!(section(u64::MAX).contains("allowed"));
    assert!(section(136).contains("ends inside"));
    assert!(section(40).contains("CID version 0"));
}

#[test]
fn headers_of_another_shape_are_refused() {
    let header = |build: &dyn Fn(&mut Writer<'_>)| {
        let mut body = Vec::new();
        build(&mut Writer::new(&mut body));
        let mut bytes = Vec::new();
        write_varint(&mut bytes, body.len() as u64);
        bytes.extend_from_slice(&body);
        read_both(&bytes, CarLimits::default())
    };
    assert!(header(&|w| _ = w.map(2).text("roots").array(0).text("version").uint(1)).is_ok());
    assert!(
        header(&|w| _ = w.map(2).text("roots").array(0).text("version").uint(2))
            .unwrap_err()
            .contains("version 2")
    );
    assert!(header(&|w| _ = w.map(1).text("version").uint(1)).is_err());
    assert!(header(&|w| _ = w.map(1).text("roots").array(0)).is_err());
    assert!(header(&|w| _ = w.map(2).text("roots").null().text("version").uint(1)).is_err());
    assert!(header(&|w| _ = w.map(2).text("version").uint(1).text("roots").array(0)).is_err());
    assert!(header(&|w| _ = w.map(2).text("roots").array(0).text("version").uint(1).null()).is_err());
    assert!(header(&|w| _ = w.array(0)).is_err());
}

#[test]
fn after_an_error_there_are_no_further_blocks() {
    let mut bytes = car(&[], &[b"a".to_vec(), b"b".to_vec()]);
    bytes[header_len(0) + 5] ^= 1;
    let mut streamed = CarReader::new(&bytes[..], CarLimits::default()).unwrap();
    assert!(streamed.next().unwrap().is_err() && streamed.next().is_none());
    let mut sliced = CarSlice::new(&bytes, CarLimits::default()).unwrap();
    assert!(sliced.next().unwrap().is_err() && sliced.next().is_none());
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_has_the_foretold_size(
        roots in proptest::collection::vec(any::<[u8; 32]>(), 0..30),
        blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
    ) {
        let roots: Vec<Cid> = roots.iter().map(|digest| Cid::for_raw(digest)).collect();
        let bytes = car(&roots, &blocks);
        let foretold = header_len(roots.len()) + blocks.iter().map(|b| block_overhead(b.len()) + b.len()).sum::<usize>();
        prop_assert_eq!(bytes.len(), foretold);
        let reader = CarReader::new(&bytes[..], CarLimits::default()).unwrap();
        prop_assert_eq!(reader.roots(), &roots[..]);
        let read = read_both(&bytes, CarLimits::default()).unwrap();
        prop_assert_eq!(read.iter().map(|block| block.bytes.clone()).collect::<Vec<_>>(), blocks);
    }

    #[test]
    fn noise_is_answered_the_same_by_both_readers(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        with_header in any::<bool>(),
    ) {
        if with_header {
            bytes.splice(0..0, car(&[], &[]));
        }
        let _ = read_both(&bytes, CarLimits::default());
        let _ = read_both(&bytes, CarLimits { verify_hashes: false, ..CarLimits::default() });
    }
}
