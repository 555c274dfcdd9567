//! A log rebuilt from a replica is the same log.

use super::*;

/// A log of three epochs with rotations, and what its files hold once all is sealed.
fn written_log() -> (Arc<dyn Storage>, Vec<SegmentInfo>) {
    let (_, storage) = memory();
    for epoch in 1..4 {
        let log = open(&storage, epoch);
        for n in 0..60 {
            put(&log, &[&format!("{epoch}-{n}"), &"y".repeat(n)]);
        }
        log.close().unwrap();
    }
    let log = open(&storage, 4);
    let segments = log.segments();
    log.close().unwrap();
    (storage, segments)
}

#[test]
fn a_log_installed_from_sealed_files_and_raw_frames_is_the_same_log_to_the_last_byte() {
    let (storage, segments) = written_log();
    let found = Log::recover(Arc::clone(&storage), dir()).unwrap();
    let frames = found
        .reader()
        .tail(Lsn::ZERO)
        .next_batch(Lsn::MAX, usize::MAX)
        .unwrap();
    for whole_segments in [0, 1, segments.len() / 2, segments.len()] {
        let (_, target) = memory();
        let mut install = SegmentInstaller::begin(Arc::clone(&target), dir(), LogId([9; 16])).unwrap();
        for info in &segments[..whole_segments] {
            let mut upload = install.sealed(info.base).unwrap();
            for piece in file_bytes(&storage, info.base).chunks(1000) {
                upload.write(piece).unwrap();
            }
            assert_eq!(install.install(upload).unwrap(), *info);
        }
        // Chunks of a few groups; the first ones overlap what came as whole segments.
        let first = whole_segments.saturating_sub(1);
        let from = segments.get(first).map_or(Lsn::ZERO, |info| info.prev);
        let tail: Vec<&Frame> = frames.iter().filter(|frame| frame.lsn() > from).collect();
        for chunk in tail.chunks(14) {
            let raw: Vec<u8> = chunk.iter().flat_map(|frame| frame.bytes().to_vec()).collect();
            assert_eq!(
                install.append_frames(&raw).unwrap(),
                chunk.last().unwrap().lsn().max(install.last())
            );
        }
        assert_eq!(install.finish().unwrap(), found.last_lsn());
        let log = Log::open(Arc::clone(&target), clock(), dir(), &config(5))
            .unwrap()
            .0;
        assert_eq!(log.segments(), segments);
        for info in &segments {
            assert_eq!(file_bytes(&target, info.base), file_bytes(&storage, info.base));
        }
        for frame in &frames {
            assert_eq!(log.read_at(frame.location()).unwrap(), frame.bytes());
        }
    }
}

#[test]
fn what_is_damaged_or_out_of_order_is_not_installed() {
    let (storage, segments) = written_log();
    let (_, target) = memory();
    let mut install = SegmentInstaller::begin(Arc::clone(&target), dir(), LogId([9; 16])).unwrap();
    let mut offer = |base: Lsn, bytes: &[u8]| {
        let mut upload = install.sealed(base).unwrap();
        upload.write(bytes).unwrap();
        install.install(upload)
    };
    let (one, two, three) = (segments[0].base, segments[1].base, segments[2].base);
    let good = file_bytes(&storage, one);
    for byte in (0..good.len()).step_by(37) {
        let mut bad = good.clone();
        bad[byte] ^= 4;
        assert!(offer(one, &bad).is_err(), "byte {byte}");
    }
    assert!(offer(one, &good[..good.len() - 1]).is_err());
    assert!(
        matches!(offer(two, &good), Err(InstallError::Damaged { .. })),
        "another segment's name"
    );
    offer(one, &good).unwrap();
    assert!(
        matches!(
            offer(three, &file_bytes(&storage, three)),
            Err(InstallError::Damaged { .. })
        ),
        "a gap"
    );
    let mut raw = file_bytes(&storage, two)[SEGMENT_HEADER_BYTES..].to_vec();
    raw.truncate(FrameHeader::parse(&raw).unwrap().len());
    assert!(
        install
            .append_frames(&raw)
            .unwrap_err()
            .to_string()
            .contains("not whole")
    );
    let mut other = SegmentInstaller::begin(memory().1, dir(), LogId([1; 16])).unwrap();
    let mut upload = other.sealed(one).unwrap();
    upload.write(&good).unwrap();
    assert!(matches!(
        other.install(upload),
        Err(InstallError::ForeignLog { .. })
    ));
    drop(install);
    assert!(matches!(
        SegmentInstaller::begin(target, dir(), LogId([9; 16])),
        Err(InstallError::NotEmpty { .. })
    ));
}
