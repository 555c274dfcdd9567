//! The driver over a log in memory and a view that counts.

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::clock::SystemClock;
use crate::entry::{Entry, EntryDraft};
use crate::log::{GroupLsns, LogConfig};
use crate::storage::MemoryStorage;
use crate::views::View;
use crate::views::testkit::lsn;

/// Counts what it is given; panics at a chosen entry.
#[derive(Default)]
struct Counting {
    applied: Lsn,
    entries: Arc<AtomicUsize>,
    persisted: Arc<AtomicUsize>,
    panics_at: Option<usize>,
}

impl View for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn applied(&self) -> Lsn {
        self.applied
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), ViewError> {
        let before = self.applied;
        for entry in entries.iter().filter(|entry| entry.lsn > before) {
            let count = self.entries.fetch_add(1, Ordering::SeqCst);
            assert!(self.panics_at != Some(count), "the view's own defect");
            self.applied = entry.lsn;
        }
        Ok(())
    }

    fn persist(&mut self) -> Result<(), ViewError> {
        self.persisted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn log() -> Log {
    let storage = Arc::new(MemoryStorage::new());
    Log::open(
        storage,
        Arc::new(SystemClock),
        Path::new("/log"),
        &LogConfig::default(),
    )
    .unwrap()
    .0
}

fn marks(log: &Log) -> Marks {
    Marks {
        durable: log.local().clone(),
        applied: Watermark::default(),
        remote: None,
        visible: Watermark::default(),
        backlog: Arc::default(),
    }
}

fn append(log: &Log) -> GroupLsns {
    let draft = EntryDraft::marker().into_draft().unwrap();
    log.append(vec![draft]).unwrap().wait_blocking().unwrap()
}

fn wait(mark: &Watermark, at: Lsn) -> Result<Option<Lsn>, crate::log::Failed> {
    mark.wait_past_blocking(lsn(at.get() - 1), Duration::from_secs(30))
}

fn block<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn a_panic_in_a_view_fails_those_who_wait_and_closes_the_log() {
    let (log, view) = (
        log(),
        Counting {
            panics_at: Some(2),
            ..Counting::default()
        },
    );
    let marks = marks(&log);
    let fold = Fold::new(
        vec![Box::new(view)],
        |from| log.tail(from),
        DriverConfig::default(),
    );
    let driver = DriverHandle::spawn(fold, marks.clone(), log.clone()).unwrap();
    let good = append(&log).last;
    assert_eq!(wait(&marks.applied, good).unwrap(), Some(good));
    let second = append(&log).last;
    wait(&marks.applied, second).unwrap();
    let third = append(&log).last;
    let failed = wait(&marks.applied, third).unwrap_err();
    assert_eq!(&*failed.reason, "view code panicked: the view's own defect");
    assert_eq!(marks.applied.get(), second);
    drop(driver);
    assert!(marks.visible.failed().is_some() && log.local().failed().is_some());
}

#[test]
fn views_are_made_durable_at_intervals_of_bytes_and_at_the_end() {
    let (log, view) = (log(), Counting::default());
    let (entries, persisted) = (Arc::clone(&view.entries), Arc::clone(&view.persisted));
    let config = DriverConfig {
        persist_bytes: 1,
        ..DriverConfig::default()
    };
    let marks = marks(&log);
    let driver = DriverHandle::spawn(
        Fold::new(vec![Box::new(view)], |from| log.tail(from), config),
        marks.clone(),
        log.clone(),
    )
    .unwrap();
    for count in 1..=3 {
        let last = append(&log).last;
        wait(&marks.applied, last).unwrap();
        // Between two batches, so after the batch was made durable.
        block(driver.between(|| ())).unwrap();
        assert_eq!(
            (entries.load(Ordering::SeqCst), persisted.load(Ordering::SeqCst)),
            (count, count)
        );
    }
    block(driver.stop()).unwrap();
    assert_eq!(
        persisted.load(Ordering::SeqCst),
        3,
        "nothing is new, nothing is written"
    );
    assert!(
        log.local().failed().is_none(),
        "an orderly end is no failure of the log"
    );
    assert_eq!(
        &*marks.applied.failed().unwrap().reason,
        "the views were shut down"
    );
}

#[test]
fn no_batch_ends_within_a_group_however_small_it_is_and_wherever_the_limit_lies() {
    let log = log();
    let marker = || EntryDraft::marker().into_draft().unwrap();
    append(&log);
    let group = log.append(vec![marker(); 3]).unwrap().wait_blocking().unwrap();
    let after = append(&log);
    let config = DriverConfig {
        batch_bytes: 1,
        ..DriverConfig::default()
    };
    let mut fold = Fold::new(vec![Box::new(Counting::default())], |from| log.tail(from), config);
    assert_eq!(fold.step(Lsn::MAX).unwrap().entries, 1);
    let within = lsn(group.first.get() + 1);
    assert_eq!(
        fold.step(within).unwrap().entries,
        0,
        "the group's end may not be applied yet"
    );
    assert!(fold.applied() < group.first);
    assert_eq!(fold.step(group.last).unwrap().entries, 3);
    assert_eq!(fold.applied(), group.last);
    assert_eq!(fold.step(Lsn::MAX).unwrap().entries, 1);
    assert_eq!(fold.applied(), after.last);
}

#[test]
fn a_view_that_is_ahead_of_another_waits_for_it() {
    let log = log();
    let (first, last) = (append(&log).last, append(&log).last);
    let (behind, ahead) = (
        Counting::default(),
        Counting {
            applied: first,
            ..Counting::default()
        },
    );
    let counts = (Arc::clone(&behind.entries), Arc::clone(&ahead.entries));
    let mut fold = Fold::new(
        vec![Box::new(behind), Box::new(ahead)],
        |from| log.tail(from),
        DriverConfig::default(),
    );
    let replayed = fold.replay(last, &mut |_| {}).unwrap();
    assert_eq!((replayed.applied, replayed.entries), (last, 2));
    assert_eq!(
        (counts.0.load(Ordering::SeqCst), counts.1.load(Ordering::SeqCst)),
        (2, 1)
    );
}
