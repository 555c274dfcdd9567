//! The log itself: checksums, headers, the chain over all segments, whole groups, footers and digests.

use engine::entry::{Entry, EntryKind};
use engine::log::{AwaySegment, FRAME_HEADER_BYTES, Flags, FrameError, FrameHeader, FramePart, Lsn};

use crate::data_dir::DataDir;
use crate::segment::{Footer, SegmentReader, Step};
use crate::{LogFacts, Report, events};

/// What to do about a log that is not what was written.
const RESTORE: &str = "restore this directory from the replica";

/// What is known of all that comes before an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// It was seen.
    Whole,
    /// Some of it is in the replica only.
    Away,
    /// Some of it is missing or damaged.
    Damaged,
}

/// What a walk over the log meets, in order.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'e> {
    /// A whole entry.
    Entry(&'e Entry, Before),
    /// A segment that is in the replica only.
    Away,
}

/// Is given everything, in order.
pub type Visit<'v> = &'v mut dyn FnMut(Seen<'_>, &mut Report<'_>) -> anyhow::Result<()>;

/// Reads the whole log of `dir` and gives its entries to `visit`.
pub fn check(dir: &DataDir, report: &mut Report<'_>, visit: Visit<'_>) -> anyhow::Result<LogFacts> {
    let mut walk = Walk {
        facts: LogFacts::default(),
        epoch: 0,
        report,
        visit,
    };
    let mut away = dir.away.iter().peekable();
    for (at, base) in dir.segments.iter().enumerate() {
        let first = at == 0 && walk.facts.away == 0 && away.peek().is_none_or(|away| away.info.base > *base);
        while let Some(away) = away.next_if(|away| away.info.base < *base) {
            walk.away(away)?;
        }
        let newest = at + 1 == dir.segments.len() && away.peek().is_none();
        match SegmentReader::open(&dir.segment_path(*base), *base) {
            Ok(reader) => walk.segment(reader, *base, first, newest, dir.running)?,
            Err(error) if error.is_newer() => return Err(error.into()),
            Err(error) if newest && dir.running => {
                walk.report
                    .note(format!("the newest segment is just being begun: {error}"));
            }
            Err(error) => {
                if dir.running
                    && let Some(gone) = dir.went_away(*base)
                {
                    walk.away(&gone)?;
                    continue;
                }
                walk.facts.holes = true;
                let what =
                    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                let advice = if newest {
                    "a start removes it if it has no frames; else restore from the replica"
                } else {
                    RESTORE
                };
                walk.report
                    .finding(format_args!("segment {}", base.hex()), what, advice);
            }
        }
    }
    for away in away {
        walk.away(away)?;
    }
    Ok(walk.facts)
}

struct Walk<'a, 'o> {
    facts: LogFacts,
    epoch: u64,
    report: &'a mut Report<'o>,
    visit: Visit<'a>,
}

/// What was counted in one segment.
struct Counted {
    frames: u64,
    first: Option<Lsn>,
    last: Lsn,
    /// Damage inside, so that counts and digest are known to differ.
    damaged: bool,
}

impl Walk<'_, '_> {
    /// Takes a segment that is away for what the list says of it.
    fn away(&mut self, away: &AwaySegment) -> anyhow::Result<()> {
        let info = &away.info;
        let place = format!("segment {}, which is away,", info.base.hex());
        self.report.note(format!(
            "segment {} is away: {} entries up to {} in {}",
            info.base.hex(),
            info.frames,
            info.last,
            away.object
        ));
        if self.facts.log_id.is_some_and(|log_id| log_id != away.log_id) {
            self.report.finding(&place, "belongs to another log", RESTORE);
        }
        self.facts.log_id = Some(away.log_id);
        if info.prev != self.facts.last {
            self.facts.holes = true;
            let what = format!(
                "follows entry {}, but the log before it ends with {}: segments or frames are missing",
                info.prev, self.facts.last
            );
            self.report.finding(&place, what, RESTORE);
        }
        self.epoch = self.epoch.max(info.epoch.0);
        self.facts.last = info.last;
        self.facts.away += 1;
        (self.visit)(Seen::Away, self.report)
    }

    fn segment(
        &mut self,
        mut reader: SegmentReader,
        base: Lsn,
        oldest: bool,
        newest: bool,
        running: bool,
    ) -> anyhow::Result<()> {
        self.header(&reader, base, oldest);
        let live = newest && running;
        if reader.footer == Footer::Damaged && !live {
            let place = place(base, reader.frames_end, None);
            self.report
                .finding(place, "the footer is damaged, or not where it was", RESTORE);
        }
        if reader.footer == Footer::None && !newest {
            let place = place(base, reader.file_len, None);
            self.report
                .finding(place, "it has no footer although a later segment exists", RESTORE);
        }
        let counted = self.frames(&mut reader, base, newest, live)?;
        if let Footer::Whole(footer) = reader.footer.clone() {
            let place = place(base, reader.frames_end, None);
            let same = footer.frames == counted.frames
                && Some(footer.first) == counted.first
                && footer.last == counted.last;
            if !same && !counted.damaged {
                let what = format!(
                    "the footer tells of {} frames up to {}, there are {} up to {}",
                    footer.frames, footer.last, counted.frames, counted.last
                );
                self.report.finding(&place, what, RESTORE);
            }
            if footer.sha256 != reader.digest()? {
                let what = "the SHA-256 in the footer is not that of what precedes it";
                self.report.finding(&place, what, RESTORE);
            }
        }
        Ok(())
    }

    fn header(&mut self, reader: &SegmentReader, base: Lsn, oldest: bool) {
        let header = reader.header;
        let place = format!("segment {}", base.hex());
        if header.base != base {
            let what = format!("its header says it is segment {}", header.base.hex());
            self.report.finding(&place, what, RESTORE);
        }
        match self.facts.log_id {
            Some(log_id) if log_id != header.log_id => {
                let what = format!("it belongs to log {}, the others to {log_id}", header.log_id);
                self.report.finding(&place, what, "take it out of this directory");
            }
            _ => self.facts.log_id = Some(header.log_id),
        }
        if header.epoch.0 < self.epoch {
            let what = format!(
                "its epoch {} is below the {} of the one before",
                header.epoch.0, self.epoch
            );
            self.report.finding(&place, what, RESTORE);
        }
        self.epoch = self.epoch.max(header.epoch.0);
        if oldest && header.prev > Lsn::ZERO {
            self.facts.holes = true;
            let what = format!(
                "the log begins here, but entries up to {} came before: segments are missing",
                header.prev
            );
            self.report.finding(&place, what, RESTORE);
        } else if header.prev != self.facts.last {
            self.facts.holes = true;
            let what = format!(
                "it follows entry {}, but the log before it ends with {}: segments or frames are missing",
                header.prev, self.facts.last
            );
            self.report.finding(&place, what, RESTORE);
        }
        self.facts.last = header.prev;
    }

    fn frames(
        &mut self,
        reader: &mut SegmentReader,
        base: Lsn,
        newest: bool,
        live: bool,
    ) -> anyhow::Result<Counted> {
        let mut counted = Counted {
            frames: 0,
            first: None,
            last: reader.header.prev,
            damaged: false,
        };
        let mut group: Vec<Entry> = Vec::new();
        let mut in_group = false;
        // The end of the last whole group.
        let mut whole = (reader.position(), reader.header.prev);
        let mut tail: Option<(u64, String)> = None;
        while let Some(step) = reader.step()? {
            self.report.meter().advance(step_len(&step))?;
            let (header, offset) = match &step {
                Step::Frame(frame) => (*frame.header(), frame.location().offset),
                Step::Damaged { header, offset, .. } => (*header, *offset),
                Step::Broken {
                    offset,
                    resumes_at,
                    what,
                } => {
                    counted.damaged = true;
                    if resumes_at.is_none() && newest && reader.footer == Footer::None {
                        tail = Some((*offset, what.clone()));
                        break;
                    }
                    self.facts.holes = true;
                    let rest = match resumes_at {
                        Some(at) => format!("{what}; frames up to offset {at} cannot be read"),
                        None => format!("{what}; the rest of the segment cannot be read"),
                    };
                    self.report.finding(place(base, *offset, None), rest, RESTORE);
                    group.clear();
                    in_group = false;
                    // What follows is linked to what could not be read.
                    counted.last = Lsn::ZERO;
                    continue;
                }
            };
            if let Some(what) = self.link(&header, reader, &counted, in_group) {
                counted.damaged = true;
                self.facts.holes = true;
                self.report
                    .finding(place(base, offset, Some(header.lsn)), what, RESTORE);
            }
            counted.frames += 1;
            counted.first.get_or_insert(header.lsn);
            counted.last = header.lsn;
            in_group = header.flags.contains(Flags::MORE);
            match step {
                Step::Frame(frame) => match Entry::decode(&frame) {
                    Ok(entry) => group.push(entry),
                    Err(error) => {
                        self.facts.holes = true;
                        let advice = "use a program at least as new as the one that wrote it; else restore from the replica";
                        self.report
                            .finding(place(base, offset, Some(header.lsn)), error, advice);
                    }
                },
                Step::Damaged { bytes, error, .. } => {
                    counted.damaged = true;
                    self.facts.holes = true;
                    let what = damaged_frame(&header, &bytes, &error);
                    self.report
                        .finding(place(base, offset, Some(header.lsn)), what, RESTORE);
                }
                Step::Broken { .. } => {}
            }
            if !in_group {
                whole = (reader.position(), header.lsn);
                self.facts.last = header.lsn;
                for entry in group.drain(..) {
                    self.facts.entries += 1;
                    let before = match (self.facts.holes, self.facts.away) {
                        (true, _) => Before::Damaged,
                        (false, 0) => Before::Whole,
                        (false, _) => Before::Away,
                    };
                    (self.visit)(Seen::Entry(&entry, before), self.report)?;
                }
            }
        }
        if tail.is_none() && in_group {
            tail = Some((whole.0, "the last group is not whole".to_owned()));
        }
        if let Some((offset, what)) = tail {
            self.tail(
                reader,
                base,
                offset,
                &what,
                whole,
                newest && reader.footer == Footer::None,
                live,
            )?;
            counted.damaged = true;
        }
        Ok(counted)
    }

    /// The end of the newest segment, where a crash may leave anything.
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller, and each is one fact about the tail"
    )]
    fn tail(
        &mut self,
        reader: &mut SegmentReader,
        base: Lsn,
        offset: u64,
        what: &str,
        (end, last): (u64, Lsn),
        may_be_torn: bool,
        live: bool,
    ) -> anyhow::Result<()> {
        if live {
            return Ok(()); // Just being written.
        }
        let durable = if may_be_torn {
            reader.synced_frame_after(offset, last)?
        } else {
            Some(offset)
        };
        match durable {
            Some(later) => {
                self.facts.holes = true;
                let proof = if may_be_torn {
                    format!("; a frame at offset {later} proves that it was durable")
                } else {
                    String::new()
                };
                self.report.finding(place(base, offset, None), format!("{what}{proof}"), RESTORE);
            }
            None => self.report.note(format!(
                "segment {}: the last {} bytes, from offset {end}, were never vouched for ({what}); a start cuts them off",
                base.hex(),
                reader.file_len.saturating_sub(end)
            )),
        }
        Ok(())
    }

    /// How a frame fails to continue the chain, if it does.
    fn link(
        &self,
        header: &FrameHeader,
        reader: &SegmentReader,
        counted: &Counted,
        in_group: bool,
    ) -> Option<String> {
        let first = counted.frames == 0;
        if counted.last > Lsn::ZERO || first {
            if header.prev != counted.last {
                return Some(format!(
                    "it says it follows {}, but the frame before it is {}: frames are missing",
                    header.prev, counted.last
                ));
            }
            if in_group && header.flags.contains(Flags::AFTER_SYNC) {
                return Some("the group before it is not whole".to_owned());
            }
        }
        if header.epoch != reader.header.epoch {
            return Some(format!(
                "its epoch {} is not the segment's {}",
                header.epoch.0, reader.header.epoch.0
            ));
        }
        if header.flags.contains(Flags::SEGMENT_START) != first {
            return Some("its segment-start flag is wrong for its place".to_owned());
        }
        if first && header.lsn != reader.header.base {
            return Some("the first frame is not the segment's base".to_owned());
        }
        None
    }
}

fn step_len(step: &Step) -> u64 {
    match step {
        Step::Frame(frame) => u64::from(frame.location().len),
        Step::Damaged { header, .. } => u64::from(header.frame_len),
        Step::Broken { .. } => 0,
    }
}

fn place(base: Lsn, offset: u64, lsn: Option<Lsn>) -> String {
    match lsn {
        Some(lsn) => format!("segment {} offset {offset} entry {lsn}", base.hex()),
        None => format!("segment {} offset {offset}", base.hex()),
    }
}

/// What is wrong with a frame, down to the block if it can be told.
fn damaged_frame(header: &FrameHeader, bytes: &[u8], error: &FrameError) -> String {
    let public = bytes
        .get(FRAME_HEADER_BYTES..)
        .and_then(|rest| rest.get(..header.public_len()));
    let block = match (error, public) {
        (
            FrameError::Checksum {
                part: FramePart::Public,
            },
            Some(public),
        ) if header.kind == EntryKind::Commit as u8 => events::damaged_block(public),
        _ => None,
    };
    match block {
        Some(cid) => format!("{error}: block {cid} does not match its CID"),
        None => error.to_string(),
    }
}
