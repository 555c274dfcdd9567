//! Bytes of the open segment come from memory where they are there, and from the file else: the same bytes.

use super::*;

#[test]
fn every_part_of_the_open_segment_reads_the_same_from_memory_and_from_the_file() {
    let (_, storage) = memory();
    let config = LogConfig {
        segment_bytes: 64 << 10,
        ring_bytes: 600,
        ..config(1)
    };
    let log = Log::open(Arc::clone(&storage), clock(), dir(), &config)
        .unwrap()
        .0;
    let mut locations = Vec::new();
    for n in 0..20 {
        locations.extend(put(&log, &[&format!("first {n}"), &format!("second {n}")]).locations);
    }
    let (segment, end) = (locations[0].segment, log.segments()[0].bytes);
    let file = storage.open(&path(segment), OpenMode::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(end).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    let reader = log.reader();
    let (mut recent, mut older) = (0, 0);
    for offset in 0..end {
        for len in [0, 1, 7, 100] {
            let at = Location { segment, offset, len };
            let inside = offset + u64::from(len) <= end;
            match reader.ring.read(at) {
                Some(_) if inside => recent += 1,
                Some(_) => panic!("{at:?} reaches beyond the segment"),
                None => older += 1,
            }
            match reader.read_at(at) {
                Ok(read) => {
                    let from = usize::try_from(offset).unwrap();
                    assert_eq!(read, bytes[from..from + len as usize], "{at:?}");
                }
                Err(error) => assert!(!inside, "{at:?}: {error}"),
            }
        }
    }
    assert!(recent > 500 && older > 500, "{recent} from memory, {older} not");
    let elsewhere = Location {
        segment: Lsn::new(segment.get() + 1).unwrap(),
        ..locations[39]
    };
    assert!(reader.ring.read(elsewhere).is_none());
    log.close().unwrap();
}
