//! Two ways to keep where records lie: redb, filled in the order of arrival, and immutable files of sorted blocks, one
//! for each part of the keys, as an index beside compacted segments would be. Same keys, same values, same questions.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use benches::growing::{GrowingRepo, mixed};
use benches::process;
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use serde_json::{Value, json};

const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
const ROW_BYTES: usize = 57;
/// Records of one transaction, about what 4 MiB of log hold.
const BATCH: u64 = 8_000;
/// Records between two durable points, about what 64 MiB of log hold.
const DURABLE_EVERY: u64 = 128_000;
const BLOCK_BYTES: usize = 4096;
const CACHE_BYTES: usize = 64 << 20;
const LOOKUPS: u64 = 200_000;

/// Key `at` in order of arrival: repos take turns, and in each the records ascend.
fn key(repos: &[GrowingRepo], at: u64) -> Result<Vec<u8>> {
    let number = at % repos.len() as u64;
    let repo = repos.get(usize::try_from(number)?).context("a repo")?;
    let mut key = Vec::with_capacity(48);
    key.extend_from_slice(&u32::try_from(number)?.to_be_bytes());
    key.extend_from_slice(&[0, 0]);
    write!(key, "{}", repo.path(at / repos.len() as u64)?)?;
    Ok(key)
}

fn row(at: u64) -> [u8; ROW_BYTES] {
    let mut row = [0; ROW_BYTES];
    for (place, byte) in row.iter_mut().enumerate() {
        *byte = (mixed(at ^ (place as u64 / 8) << 40) >> (place % 8 * 8)) as u8;
    }
    row
}

/// Builds and asks both.
pub fn compare(dir: &Path, records: u64, repos: u32) -> Result<Value> {
    std::fs::create_dir(dir).context("the directory must not be there")?;
    let repos = (0..u64::from(repos.max(1)))
        .map(|number| GrowingRepo::new(number, 1))
        .collect::<Result<Vec<_>>>()?;
    let began = process::usage()?;
    for at in 0..records {
        std::hint::black_box((key(&repos, at)?, row(at)));
    }
    let making = process::usage()?.cpu_seconds - began.cpu_seconds;

    let (began, clock) = (process::usage()?, Instant::now());
    let path = dir.join("records.redb");
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(&path)?;
    let mut at = 0;
    while at < records {
        let mut transaction = database.begin_write()?;
        let durable = at / DURABLE_EVERY != (at + BATCH) / DURABLE_EVERY || at + BATCH >= records;
        if durable {
            transaction.set_quick_repair(true);
        } else {
            transaction.set_durability(Durability::None)?;
        }
        {
            let mut table = transaction.open_table(RECORDS)?;
            for at in at..(at + BATCH).min(records) {
                table.insert(key(&repos, at)?.as_slice(), row(at).as_slice())?;
            }
        }
        transaction.commit()?;
        at += BATCH;
    }
    let ended = process::usage()?;
    let redb_built = json!({
        "seconds": clock.elapsed().as_secs_f64(),
        "cpu_us_each": (ended.cpu_seconds - began.cpu_seconds - making) * 1e6 / records as f64,
        "file_bytes": std::fs::metadata(&path)?.len(),
        "written_bytes": ended.written_bytes - began.written_bytes,
    });
    let redb_asked = ask(&repos, records, |key| {
        let transaction = database.begin_read()?;
        let table = transaction.open_table(RECORDS)?;
        let row = table.get(key)?.context("a key is missing")?;
        Ok(row.value().first().copied().unwrap_or_default())
    })?;

    // What a compaction does: it reads the rows in key order and writes them on.
    let (began, clock) = (process::usage()?, Instant::now());
    let path = dir.join("records.sorted");
    let sorted = {
        let transaction = database.begin_read()?;
        let table = transaction.open_table(RECORDS)?;
        let mut writer = SortedWriter::create(&path)?;
        for entry in table.range::<&[u8]>(..)? {
            let (key, row) = entry?;
            writer.push(key.value(), row.value())?;
        }
        writer.finish()?
    };
    let ended = process::usage()?;
    let sorted_built = json!({
        "seconds": clock.elapsed().as_secs_f64(),
        "cpu_us_each": (ended.cpu_seconds - began.cpu_seconds) * 1e6 / records as f64,
        "file_bytes": std::fs::metadata(&path)?.len(),
        "written_bytes": ended.written_bytes - began.written_bytes,
        "fence_bytes": sorted.fences.iter().map(|(key, _)| key.len() + 32).sum::<usize>(),
    });
    let sorted_asked = ask(&repos, records, |key| {
        Ok(sorted.get(key)?.context("a key is missing")?[0])
    })?;
    Ok(json!({
        "records": records,
        "redb": { "build": redb_built, "lookup": redb_asked },
        "sorted": { "build": sorted_built, "lookup": sorted_asked },
    }))
}

fn ask(repos: &[GrowingRepo], records: u64, get: impl Fn(&[u8]) -> Result<u8>) -> Result<Value> {
    let keys = |number: u64| key(repos, mixed(number) % records);
    let began = process::usage()?;
    for number in 0..LOOKUPS {
        std::hint::black_box(keys(number)?);
    }
    let (making, began) = (
        process::usage()?.cpu_seconds - began.cpu_seconds,
        process::usage()?,
    );
    let mut took = Vec::new();
    for number in 0..LOOKUPS {
        let key = keys(number)?;
        let at = Instant::now();
        let first = get(&key)?;
        took.push(u64::try_from(at.elapsed().as_nanos())?);
        ensure!(first == row(mixed(number) % records)[0], "a wrong row");
    }
    let cpu = process::usage()?.cpu_seconds - began.cpu_seconds - making;
    Ok(json!({ "cpu_us_each": cpu * 1e6 / LOOKUPS as f64, "ns": super::quantiles(&mut took) }))
}

/// Blocks of rows in key order: for each the bytes shared with the key before, the key's rest, the row.
struct SortedWriter {
    out: BufWriter<File>,
    block: Vec<u8>,
    last: Vec<u8>,
    at: u64,
    fences: Vec<(Vec<u8>, u64)>,
}

/// Such a file, with the first key of each block in memory.
struct Sorted {
    file: File,
    fences: Vec<(Vec<u8>, u64)>,
    end: u64,
}

impl SortedWriter {
    fn create(path: &Path) -> Result<SortedWriter> {
        Ok(SortedWriter {
            out: BufWriter::with_capacity(
                1 << 20,
                File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(path)?,
            ),
            block: Vec::new(),
            last: Vec::new(),
            at: 0,
            fences: Vec::new(),
        })
    }

    fn push(&mut self, key: &[u8], row: &[u8]) -> Result<()> {
        if self.block.len() + key.len() + row.len() + 2 > BLOCK_BYTES {
            self.flush()?;
        }
        if self.block.is_empty() {
            self.fences.push((key.to_vec(), self.at));
            self.last.clear();
        }
        let shared = key
            .iter()
            .zip(&self.last)
            .take_while(|(a, b)| a == b)
            .count()
            .min(255);
        let rest = key.get(shared..).unwrap_or_default();
        self.block.push(u8::try_from(shared)?);
        self.block.push(u8::try_from(rest.len())?);
        self.block.extend_from_slice(rest);
        self.block.extend_from_slice(row);
        self.last = key.to_vec();
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.out.write_all(&self.block)?;
        self.at += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Sorted> {
        self.flush()?;
        let file = self.out.into_inner()?;
        file.sync_all()?;
        Ok(Sorted {
            file,
            fences: self.fences,
            end: self.at,
        })
    }
}

impl Sorted {
    fn get(&self, wanted: &[u8]) -> Result<Option<[u8; ROW_BYTES]>> {
        let after = self
            .fences
            .partition_point(|(first, _)| first.as_slice() <= wanted);
        let Some((_, from)) = after.checked_sub(1).and_then(|at| self.fences.get(at)) else {
            return Ok(None);
        };
        let to = self.fences.get(after).map_or(self.end, |(_, at)| *at);
        let mut block = vec![0; usize::try_from(to - from)?];
        self.file.read_exact_at(&mut block, *from)?;
        let (mut rest, mut key) = (block.as_slice(), Vec::new());
        while let [shared, len, tail @ ..] = rest {
            let (part, tail) = tail
                .split_at_checked(usize::from(*len))
                .context("a short block")?;
            let (row, tail) = tail.split_first_chunk::<ROW_BYTES>().context("a short block")?;
            key.truncate(usize::from(*shared));
            key.extend_from_slice(part);
            if key == wanted {
                return Ok(Some(*row));
            }
            rest = tail;
        }
        Ok(None)
    }
}
