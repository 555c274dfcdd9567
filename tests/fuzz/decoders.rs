//! Every decoder of bytes that come from outside or from a disk, as a function from bytes to nothing: it must not panic, hang or
//! allocate without bound, and what it accepts must hold what the decoder promises.
//!
//! `cargo fuzz` calls these with what it invents (`just fuzz TARGET SECONDS`); the integration tests call them with the corpus
//! and with mutations of it. Checksums would keep a fuzzer out of most formats, so each is also tried with its checksums put
//! right (`repair`).

use std::io::Cursor;

use engine::entry::{self, Entry};
use engine::log::{
    FRAME_HEADER_BYTES, Frame, Lsn, SEGMENT_HEADER_BYTES, SEGMENT_TRAILER_BYTES, SegmentFooter,
    SegmentHeader, frames_in, verify_segment,
};
use engine::repo::car::{CarLimits, CarReader, CarSlice};
use engine::repo::cbor::{Reader, Value, blob_refs, for_each_link, validate};
use engine::repo::commit::Commit;
use engine::repo::event;
use engine::repo::json::{cbor_to_json, json_to_record, value_to_json};
use engine::repo::mst::NodeData;
use engine::repo::{AtUri, Cid, Did, Handle, Nsid, RecordKey, RepoPath, Tid};
use engine::views::checkpoint::CheckpointManifest;
use sha2::{Digest, Sha256};
use shipper::chunk::{self, ChunkHeader};
use shipper::log_object::LogObject;
use shipper::manifest::Manifest;
use shipper::sealed;

/// A decoder under test.
pub type Target = fn(&[u8]);

/// Every target with its name, which is also that of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("cbor", cbor),
    ("car", car),
    ("mst_node", mst_node),
    ("commit", commit),
    ("event", event_message),
    ("json", json),
    ("text", text),
    ("frame", frame),
    ("entry", private_part),
    ("segment", segment),
    ("footer", footer),
    ("checkpoint", checkpoint),
    ("chunk", chunk_object),
    ("manifest", manifest),
    ("sealed", sealed_object),
    ("log_object", log_object),
];

/// DAG-CBOR: the validator, the value and the transcoder agree on what is valid, and the encoding is the only one.
pub fn cbor(data: &[u8]) {
    let valid = validate(data).is_ok();
    let value = Value::decode(data);
    assert_eq!(valid, value.is_ok(), "validator and decoder disagree");
    let mut json = Vec::new();
    let transcoded = cbor_to_json(data, &mut json);
    assert_eq!(valid, transcoded.is_ok(), "validator and transcoder disagree");
    let _ = blob_refs(data);
    let mut links = 0_usize;
    let _ = for_each_link(data, &mut |_| links += 1);
    let mut reader = Reader::new(data);
    while !reader.is_at_end() && reader.skip().is_ok() {}
    if let Ok(value) = value {
        assert_eq!(value.encode(), data, "the encoding is canonical");
        let parsed: serde_json::Value = serde_json::from_slice(&json).expect("what is transcoded is JSON");
        assert_eq!(parsed, value_to_json(&value), "one pass and two give the same");
        let mut counted = 0_usize;
        value.for_each_link(&mut |_| counted += 1);
        assert_eq!(links, counted, "links are found either way");
    }
}

/// Archives: the streaming reader and the slice see the same blocks, and accept only blocks that fit their CIDs.
pub fn car(data: &[u8]) {
    let limits = CarLimits::default();
    let mut streamed = Vec::new();
    let stream = CarReader::new(data, limits).and_then(|mut reader| {
        while let Some(block) = reader.next_block()? {
            streamed.push((block.cid, block.bytes.len()));
        }
        Ok(())
    });
    let mut sliced = Vec::new();
    let slice = CarSlice::new(data, limits).and_then(|blocks| {
        for block in blocks {
            let block = block?;
            assert!(
                block.cid.matches(block.bytes),
                "a block that was accepted fits its CID"
            );
            sliced.push((block.cid, block.bytes.len()));
        }
        Ok(())
    });
    assert_eq!(stream.is_ok(), slice.is_ok(), "{stream:?} and {slice:?}");
    assert_eq!(streamed, sliced);
}

/// A node of a tree: its encoding is the only one.
pub fn mst_node(data: &[u8]) {
    if let Ok(node) = NodeData::decode(data) {
        assert_eq!(node.encode(), data, "the encoding is canonical");
        let _ = node.layer();
    }
}

/// A signed commit.
pub fn commit(data: &[u8]) {
    let _ = Commit::decode(bytes::Bytes::copy_from_slice(data));
}

/// A message of the firehose.
pub fn event_message(data: &[u8]) {
    if let Ok(event::Event::Commit(view)) = event::decode(data)
        && let Ok(blocks) = CarSlice::new(view.blocks, CarLimits::default())
    {
        let _ = blocks.take_while(Result::is_ok).count();
    }
}

/// A record as a client sends it: what is accepted comes back the same.
pub fn json(data: &[u8]) {
    let Ok(parsed) = serde_json::from_slice::<serde_json::Value>(data) else {
        return;
    };
    if let Ok(record) = json_to_record(&parsed) {
        let encoded = Value::Map(record).encode();
        let decoded = Value::decode(&encoded).expect("what was encoded decodes");
        let again = json_to_record(&value_to_json(&decoded)).expect("what was accepted is accepted again");
        assert_eq!(Value::Map(again).encode(), encoded);
    }
}

/// The identifiers of the protocol: what is accepted prints as it came.
pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    fn same<T: std::str::FromStr + std::fmt::Display>(text: &str) {
        if let Ok(parsed) = text.parse::<T>() {
            assert_eq!(parsed.to_string(), text);
        }
    }
    same::<Did>(text);
    same::<Nsid>(text);
    same::<RecordKey>(text);
    same::<Tid>(text);
    let _ = text.parse::<AtUri>();
    let _ = text.parse::<Cid>();
    if let Ok(handle) = text.parse::<Handle>() {
        assert_eq!(handle.to_string().parse::<Handle>().ok(), Some(handle));
    }
    if let Ok(path) = RepoPath::from_bytes(data) {
        assert_eq!(path.to_string(), text);
    }
    let _ = engine::repo::datetime::parse_datetime(text);
}

/// A frame of the log, and the entry in it.
pub fn frame(data: &[u8]) {
    one_frame(data);
    let mut repaired = data.to_vec();
    if repair_frame(&mut repaired, true).is_some() {
        one_frame(&repaired);
    }
}

fn one_frame(data: &[u8]) {
    let mut seen = 0;
    for found in frames_in(data) {
        match found {
            Ok((at, frame)) => {
                assert_eq!(at, seen, "frames follow each other");
                seen += frame.header.len();
            }
            Err(_) => break,
        }
    }
    assert!(seen <= data.len());
    if let Ok(frame) = Frame::parse(&bytes::Bytes::copy_from_slice(data), Lsn::ZERO, 0) {
        let _ = Entry::decode(&frame);
    }
}

/// Puts the checksums of the frame at the start of `data` right, and with `whole` makes it as long as there are bytes.
fn repair_frame(data: &mut [u8], whole: bool) -> Option<usize> {
    if whole {
        let len = u32::try_from(data.len()).ok()?;
        put(data, 4, &len.to_le_bytes())?;
    }
    let len = number(data, 4)? as usize;
    let public = (number(data, 36)? as usize).min(len.checked_sub(FRAME_HEADER_BYTES)?);
    put(data, 36, &u32::try_from(public).ok()?.to_le_bytes())?;
    let body = data.get(FRAME_HEADER_BYTES..len)?;
    let (public, private) = body.split_at_checked(public)?;
    let (public, private) = (crc32fast::hash(public), crc32fast::hash(private));
    put(data, 40, &public.to_le_bytes())?;
    put(data, 44, &private.to_le_bytes())?;
    let header = crc32fast::hash(data.get(4..FRAME_HEADER_BYTES)?);
    put(data, 0, &header.to_le_bytes())?;
    Some(len)
}

/// The private part of an entry: its encoding is the only one.
pub fn private_part(data: &[u8]) {
    let bytes = bytes::Bytes::copy_from_slice(data);
    // No changes are written as no bytes; a list of none is read as well.
    if let Ok(changes) = entry::decode_private(&bytes)
        && !changes.is_empty()
    {
        let again = entry::encode_private(&changes).expect("what was decoded encodes");
        assert_eq!(again, data, "the encoding is canonical");
    }
}

/// A whole segment file.
pub fn segment(data: &[u8]) {
    let _ = SegmentHeader::parse(data);
    let _ = verify_segment(data);
    let mut repaired = data.to_vec();
    if repair_segment(&mut repaired).is_some() {
        let _ = verify_segment(&repaired);
    }
}

/// Puts the checksums of header, frames, footer and the digest right.
fn repair_segment(data: &mut [u8]) -> Option<()> {
    let header = crc32fast::hash(data.get(..SEGMENT_HEADER_BYTES - 4)?);
    put(data, SEGMENT_HEADER_BYTES - 4, &header.to_le_bytes())?;
    let trailer_at = data.len().checked_sub(SEGMENT_TRAILER_BYTES)?;
    let frames_end = usize::try_from(u64::from_le_bytes(
        data.get(trailer_at + 24..trailer_at + 32)?.try_into().ok()?,
    ))
    .ok()?
    .min(trailer_at);
    let mut at = SEGMENT_HEADER_BYTES;
    while at < frames_end {
        let len = repair_frame(data.get_mut(at..frames_end)?, false)?;
        at += len;
    }
    let digest: [u8; 32] = Sha256::digest(data.get(..frames_end)?).into();
    put(data, trailer_at + 32, &digest)?;
    repair_footer(data.get_mut(frames_end..)?)
}

fn repair_footer(footer: &mut [u8]) -> Option<()> {
    let trailer_at = footer.len().checked_sub(SEGMENT_TRAILER_BYTES)?;
    put(
        footer,
        trailer_at + 64,
        &u32::try_from(footer.len()).ok()?.to_le_bytes(),
    )?;
    let crc = crc32fast::hash(footer.get(..trailer_at + 76)?);
    put(footer, trailer_at + 76, &crc.to_le_bytes())?;
    put(footer, trailer_at + 80, b"AzPdsEnd")
}

/// The footer of a segment.
pub fn footer(data: &[u8]) {
    let mut repaired = data.to_vec();
    let tried = repair_footer(&mut repaired).map(|()| repaired);
    for bytes in [Some(data.to_vec()), tried].into_iter().flatten() {
        if let Some(footer) = SegmentFooter::parse(&bytes, 1 << 30) {
            let _ = (footer.seek(Lsn::ZERO), footer.seek(Lsn::MAX));
        }
    }
}

/// `checkpoint.bin`: its encoding is the only one.
pub fn checkpoint(data: &[u8]) {
    let mut repaired = data.to_vec();
    if let Some(crc_at) = repaired.len().checked_sub(4) {
        let len = u32::try_from(repaired.len()).unwrap_or(u32::MAX);
        let crc = put(&mut repaired, 12, &len.to_le_bytes())
            .and_then(|()| repaired.get(..crc_at))
            .map(crc32fast::hash);
        if let Some(crc) = crc {
            let _ = put(&mut repaired, crc_at, &crc.to_le_bytes());
        }
    }
    for bytes in [data, &repaired] {
        if let Ok(manifest) = CheckpointManifest::from_bytes(bytes) {
            assert_eq!(manifest.to_bytes().expect("it was one"), bytes);
        }
    }
}

/// A chunk of the replica.
pub fn chunk_object(data: &[u8]) {
    let _ = ChunkHeader::decode(data);
    let _ = chunk::decode(data);
    let mut repaired = data.to_vec();
    let fixed = (|| {
        let body = u32::try_from(repaired.len().checked_sub(160)?).ok()?;
        put(&mut repaired, 12, &body.to_le_bytes())?;
        // More than a megabyte only costs time here.
        let raw_len = (number(&repaired, 104)? as usize).min(1 << 20);
        let raw = zstd::bulk::decompress(repaired.get(160..)?, raw_len).unwrap_or_default();
        let digest: [u8; 32] = Sha256::digest(&raw).into();
        put(&mut repaired, 112, &digest)?;
        let crc = crc32fast::hash(repaired.get(..156)?);
        put(&mut repaired, 156, &crc.to_le_bytes())
    })();
    if fixed.is_some()
        && let Ok((_, raw)) = chunk::decode(&repaired)
    {
        one_frame(&raw);
    }
}

/// A manifest of the replica.
pub fn manifest(data: &[u8]) {
    let mut repaired = data.to_vec();
    let fixed = (|| {
        let crc_at = repaired.len().checked_sub(4)?;
        let body = u32::try_from(crc_at.checked_sub(16)?).ok()?;
        put(&mut repaired, 12, &body.to_le_bytes())?;
        let crc = crc32fast::hash(repaired.get(..crc_at)?);
        put(&mut repaired, crc_at, &crc.to_le_bytes())
    })();
    let _ = Manifest::decode(data);
    if fixed.is_some()
        && let Ok(manifest) = Manifest::decode(&repaired)
    {
        let again = manifest.encode().expect("it was one");
        if repaired.get(8) != again.get(8) {
            // What was read in a format of before is written in today's, and says the same.
            assert_eq!(Manifest::decode(&again).as_ref(), Ok(&manifest));
        } else {
            assert_eq!(again, repaired, "the encoding is canonical");
        }
    }
}

/// A sealed segment as the replica keeps it.
pub fn sealed_object(data: &[u8]) {
    let unpack = |bytes: &[u8]| {
        let mut out = Limited(0);
        let _ = sealed::decode(&mut Cursor::new(bytes), bytes.len() as u64, &mut out);
    };
    unpack(data);
    let mut repaired = data.to_vec();
    let fixed = (|| {
        let footer_at = repaired.len().checked_sub(96)?;
        let blocks = number(&repaired, footer_at + 24)?.min(64) as usize;
        let table_at = footer_at.checked_sub(blocks * 8)?;
        let mut at = 0_usize;
        for block in 0..blocks {
            let entry = table_at + block * 8;
            let len = number(&repaired, entry)? as usize;
            let crc = crc32fast::hash(repaired.get(at..at.checked_add(len)?)?);
            put(&mut repaired, entry + 4, &crc.to_le_bytes())?;
            at += len;
        }
        let table = crc32fast::hash(repaired.get(table_at..footer_at)?);
        put(&mut repaired, footer_at + 28, &table.to_le_bytes())?;
        let crc = crc32fast::hash(repaired.get(footer_at..footer_at + 92)?);
        put(&mut repaired, footer_at + 92, &crc.to_le_bytes())
    })();
    if fixed.is_some() {
        unpack(&repaired);
    }
}

/// Takes a bounded number of bytes, as a disk does.
struct Limited(usize);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        if self.0 > 64 << 20 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `log.json`.
pub fn log_object(data: &[u8]) {
    let _ = LogObject::decode(data);
}

fn number(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn put(data: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    data.get_mut(at..at.checked_add(bytes.len())?)?
        .copy_from_slice(bytes);
    Some(())
}
