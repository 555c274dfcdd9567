//! `pds-tools inspect`: what is in a log.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use engine::entry::{Entry, EntryKind};
use engine::log::{Frame, Lsn, SEGMENT_HEADER_BYTES};
use engine::repo::Did;
use engine::repo::datetime::parse_datetime;
use serde_json::json;

use crate::Outcome;
use crate::summary;
use audit::data_dir::DataDir;
use audit::segment::{Footer, SegmentReader, Step};

/// What to show.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The data directory; its server may be running.
    dir: PathBuf,
    /// List entries instead of segments. A filter asks for it, too.
    #[arg(long)]
    entries: bool,
    /// Show this one entry with everything in it.
    #[arg(long, value_name = "LSN", conflicts_with_all = ["entries", "did", "since", "until", "kind", "limit"])]
    lsn: Option<u64>,
    /// Only entries about this account.
    #[arg(long)]
    did: Option<String>,
    /// Only entries from here on: an LSN or a time such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<Lsn>,
    /// Only entries up to here, this one included.
    #[arg(long, value_name = "WHEN", value_parser = when)]
    until: Option<Lsn>,
    /// Only entries of this kind: commit, sync, identity, account, private or marker.
    #[arg(long, value_parser = kind)]
    kind: Option<EntryKind>,
    /// At most so many entries.
    #[arg(long)]
    limit: Option<u64>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Reads an LSN, or a time as one.
pub fn when(text: &str) -> Result<Lsn, String> {
    if let Ok(number) = text.parse::<u64>() {
        return Lsn::new(number).ok_or_else(|| "an LSN is below 2^53".to_owned());
    }
    let micros = parse_datetime(text).map_err(|error| format!("neither an LSN nor a time: {error}"))?;
    let micros = u64::try_from(micros).map_err(|_| "before 1970 there were no entries".to_owned())?;
    Ok(Lsn::saturating(micros))
}

fn kind(text: &str) -> Result<EntryKind, String> {
    let mut kinds = EntryKind::ALL.into_iter();
    kinds.find(|kind| kind.name() == text).ok_or_else(|| {
        let names: Vec<&str> = EntryKind::ALL.into_iter().map(EntryKind::name).collect();
        format!("one of {}", names.join(", "))
    })
}

impl Inspect {
    /// Shows it.
    ///
    /// # Errors
    /// The directory is none, or cannot be read, or the filter is not sound.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let dir = DataDir::open(&self.dir)?;
        if dir.running {
            eprintln!("note: a server is running here; this is what it has written up to now");
        }
        if let Some(lsn) = self.lsn {
            return self.show_one(&dir, Lsn::new(lsn).context("an LSN is below 2^53")?, out);
        }
        let filtered = self.did.is_some() || self.since.is_some() || self.until.is_some();
        if self.entries || filtered || self.kind.is_some() || self.limit.is_some() {
            return self.list_entries(&dir, out);
        }
        self.list_segments(&dir, out)
    }

    fn list_segments(&self, dir: &DataDir, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        if !self.json {
            writeln!(
                out,
                "{:<16}  {:<6}  {:>5}  {:>8}  {:>10}  {:<24}  {:<24}",
                "BASE", "STATE", "EPOCH", "FRAMES", "BYTES", "FIRST", "LAST"
            )?;
        }
        let mut outcome = Outcome::Clean;
        let mut log_id = None;
        for base in &dir.segments {
            let mut reader = match SegmentReader::open(&dir.segment_path(*base), *base) {
                Ok(reader) => reader,
                Err(error) if error.is_newer() => return Err(error.into()),
                Err(error) => {
                    eprintln!("note: {:#}", anyhow::Error::from(error));
                    outcome = Outcome::Damaged;
                    continue;
                }
            };
            log_id = Some(reader.header.log_id);
            let (sealed, frames, first, last) = match &reader.footer {
                Footer::Whole(footer) => (true, footer.frames, footer.first, footer.last),
                Footer::None | Footer::Damaged => {
                    let sealed = reader.footer == Footer::Damaged;
                    let counted = count(&mut reader, &mut outcome)?;
                    (sealed, counted.0, reader.header.base, counted.1)
                }
            };
            let epoch = reader.header.epoch.0;
            if self.json {
                let object = json!({
                    "base": base.hex(), "sealed": sealed, "epoch": epoch, "frames": frames, "bytes": reader.segment_len(),
                    "firstLsn": first.get(), "firstTime": summary::time(first),
                    "lastLsn": last.get(), "lastTime": summary::time(last), "prevLsn": reader.header.prev.get(),
                    "logId": reader.header.log_id.to_string(),
                });
                writeln!(out, "{object}")?;
            } else {
                let state = if sealed { "sealed" } else { "open" };
                let (first, last) = (summary::time(first), summary::time(last));
                let (hex, bytes) = (base.hex(), reader.segment_len());
                writeln!(
                    out,
                    "{hex}  {state:<6}  {epoch:>5}  {frames:>8}  {bytes:>10}  {first}  {last}"
                )?;
            }
        }
        for away in &dir.away {
            let info = &away.info;
            log_id = Some(away.log_id);
            let (epoch, frames, bytes) = (info.epoch.0, info.frames, info.bytes);
            let (first, last) = (summary::time(info.first), summary::time(info.last));
            if self.json {
                let object = json!({
                    "base": info.base.hex(), "sealed": true, "away": away.object, "epoch": epoch, "frames": frames,
                    "bytes": bytes, "firstLsn": info.first.get(), "firstTime": first, "lastLsn": info.last.get(),
                    "lastTime": last, "prevLsn": info.prev.get(), "logId": away.log_id.to_string(),
                });
                writeln!(out, "{object}")?;
            } else {
                let hex = info.base.hex();
                writeln!(
                    out,
                    "{hex}  away    {epoch:>5}  {frames:>8}  {bytes:>10}  {first}  {last}"
                )?;
            }
        }
        if !self.json {
            match log_id {
                Some(log_id) => writeln!(
                    out,
                    "{} segments of log {log_id}",
                    dir.segments.len() + dir.away.len()
                )?,
                None => writeln!(out, "the log is empty")?,
            }
        }
        Ok(outcome)
    }

    fn list_entries(&self, dir: &DataDir, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        if let Some(away) = dir.say_away() {
            eprintln!("note: {away}");
        }
        let did = self
            .did
            .as_deref()
            .map(str::parse::<Did>)
            .transpose()
            .context("--did")?;
        let (since, until) = (self.since.unwrap_or(Lsn::ZERO), self.until.unwrap_or(Lsn::MAX));
        let mut left = self.limit.unwrap_or(u64::MAX);
        if !self.json {
            writeln!(
                out,
                "{:<16}  {:<24}  {:<8}  {:<32}  WHAT",
                "LSN", "TIME", "KIND", "DID"
            )?;
        }
        visit(dir, since, until, &mut |frame| {
            if left == 0 {
                return Ok(false);
            }
            let entry = Entry::decode(&frame).with_context(|| format!("entry {}", frame.lsn()))?;
            let whom = summary::dids(&entry);
            if self.kind.is_some_and(|kind| kind != entry.kind)
                || did.as_ref().is_some_and(|did| !whom.contains(did))
            {
                return Ok(true);
            }
            left -= 1;
            if self.json {
                writeln!(out, "{}", summary::short_json(&entry))?;
            } else {
                let whom = whom.first().map_or("", Did::as_str);
                let (time, kind, line) = (summary::time(entry.lsn), entry.kind.name(), summary::line(&entry));
                writeln!(
                    out,
                    "{:<16}  {time}  {kind:<8}  {whom:<32}  {line}",
                    entry.lsn.get()
                )?;
            }
            Ok(true)
        })
    }

    fn show_one(&self, dir: &DataDir, lsn: Lsn, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let mut found = None;
        let outcome = visit(dir, lsn, lsn, &mut |frame| {
            found = Some(frame);
            Ok(false)
        })?;
        let Some(frame) = found else {
            bail!("the log has no entry {lsn}")
        };
        let value = summary::full_json(&Entry::decode(&frame).with_context(|| format!("entry {lsn}"))?);
        if self.json {
            writeln!(out, "{value}")?;
        } else {
            summary::write_plain(&value, 0, out)?;
        }
        Ok(outcome)
    }
}

/// Number of frames, and the last one's LSN.
fn count(reader: &mut SegmentReader, outcome: &mut Outcome) -> anyhow::Result<(u64, Lsn)> {
    let (mut frames, mut last) = (0, reader.header.prev);
    while let Some(step) = reader.step()? {
        match step {
            Step::Frame(frame) => (frames, last) = (frames + 1, frame.lsn()),
            Step::Damaged {
                header,
                offset,
                error,
                ..
            } => {
                eprintln!("note: segment {} at offset {offset}: {error}", reader.header.base);
                (frames, last, *outcome) = (frames + 1, header.lsn, Outcome::Damaged);
            }
            Step::Broken { offset, what, .. } => {
                eprintln!(
                    "note: segment {} ends at offset {offset}: {what}",
                    reader.header.base
                );
            }
        }
    }
    Ok((frames, last))
}

/// Gives the whole frames from `since` to `until`, both included, until `visit` has seen enough (`false`). Segments that
/// cannot hold any are not read; damage is noted and stepped over.
fn visit(
    dir: &DataDir,
    since: Lsn,
    until: Lsn,
    visit: &mut dyn FnMut(Frame) -> anyhow::Result<bool>,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Clean;
    // The last segment that begins at or before `since` may hold it.
    let from = dir
        .segments
        .partition_point(|base| *base <= since)
        .saturating_sub(1);
    for base in dir.segments.iter().skip(from).take_while(|base| **base <= until) {
        let mut reader = SegmentReader::open(&dir.segment_path(*base), *base)?;
        if let Footer::Whole(footer) = &reader.footer {
            let offset = footer.seek(since);
            if offset > SEGMENT_HEADER_BYTES as u64 {
                reader.seek(offset)?;
            }
        }
        while let Some(step) = reader.step()? {
            let frame = match step {
                Step::Frame(frame) => frame,
                Step::Damaged {
                    header,
                    offset,
                    error,
                    ..
                } => {
                    eprintln!(
                        "note: entry {} (segment {base}, offset {offset}): {error}",
                        header.lsn
                    );
                    outcome = Outcome::Damaged;
                    continue;
                }
                Step::Broken { offset, what, .. } => {
                    if !(dir.running && reader.footer == Footer::None) {
                        eprintln!("note: segment {base} at offset {offset}: {what}; see `pds-tools verify`");
                    }
                    continue;
                }
            };
            if frame.lsn() > until {
                return Ok(outcome);
            }
            if frame.lsn() >= since && !visit(frame)? {
                return Ok(outcome);
            }
        }
    }
    Ok(outcome)
}
