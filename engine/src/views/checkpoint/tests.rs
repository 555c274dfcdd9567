//! Checkpoints as a whole: of one LSN while writing goes on, and never trusted without their digests (I4, I7).

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::entry::Change;
use crate::views::View;
use crate::views::accounts::tests::{LOG, changeset, dump, entry, lsn, open};
use crate::views::accounts::{Accounts, AccountsError, AccountsView, FILE_NAME, queries};
use crate::views::index::IndexView;

/// A view of a single number, for where a second one is needed.
struct Other(Lsn);

impl ViewSnapshot for Other {
    fn file_name(&self) -> &'static str {
        "other.bin"
    }

    fn lsn(&self) -> Lsn {
        self.0
    }

    fn copy_to(&self, path: &Path) -> Result<(), ViewError> {
        fs::write(path, self.0.hex()).map_err(|error| ViewError::store("other", error))
    }
}

/// One more refresh token.
fn step(accounts: &Accounts, number: u64) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let prepared = runtime.block_on(accounts.prepare([], move |tx| {
        let id = format!("{number}-{}", "x".repeat(300));
        tx.execute(
            "INSERT INTO refresh_token (id, did, expiresAt) VALUES (?1, 'd', 'e')",
            [id],
        )?;
        Ok::<_, AccountsError>(())
    }));
    prepared.unwrap().changeset
}

fn take(checkpoints: &Checkpoints, view: &AccountsView) -> Checkpoint {
    let snapshot = view.handle().snapshot().unwrap();
    checkpoints
        .take(&[&snapshot, &Other(snapshot.lsn())], Epoch(4))
        .unwrap()
}

#[test]
fn a_copy_under_concurrent_writes_is_the_state_of_its_lsn() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(&{
        let views = dir.path().join("views");
        fs::create_dir(&views).unwrap();
        views
    });
    let accounts = view.handle();
    let mut log = Vec::new();
    for number in 10..200 {
        log.push(changeset(number, &step(&accounts, number)));
        view.apply(&log[log.len() - 1..]).unwrap();
    }
    let checkpoints = Checkpoints::new(dir.path().join("ckpt"), LOG);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let stop = Arc::clone(&stop);
        let accounts = accounts.clone();
        move || {
            let mut log = Vec::new();
            for number in 200.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                log.push(changeset(number, &step(&accounts, number)));
                view.apply(&log[log.len() - 1..]).unwrap();
            }
            (view, log)
        }
    });
    let mut taken = Vec::new();
    while taken.len() < 5 {
        let snapshot = accounts.snapshot().unwrap();
        let rows = dump(snapshot.connection());
        taken.push((checkpoints.take(&[&snapshot], Epoch(1)).unwrap(), rows));
    }
    stop.store(true, Ordering::Relaxed);
    let (_view, more) = writer.join().unwrap();
    log.extend(more);

    for (checkpoint, rows) in taken {
        checkpoint.verify().unwrap();
        let restored = dir.path().join(format!("restored-{}", checkpoint.lsn().hex()));
        checkpoint.install(&restored).unwrap();
        let view = AccountsView::open(&restored, LOG).unwrap();
        assert_eq!(view.applied(), checkpoint.lsn());
        let copied = view
            .handle()
            .read_blocking(|conn| Ok::<_, AccountsError>(dump(conn)))
            .unwrap();
        assert_eq!(copied, rows);

        let replayed = tempfile::tempdir().unwrap();
        let mut replayed = open(replayed.path());
        replayed
            .apply(
                &log.iter()
                    .filter(|e| e.lsn <= checkpoint.lsn())
                    .cloned()
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        let folded = replayed
            .handle()
            .read_blocking(|conn| Ok::<_, AccountsError>(dump(conn)))
            .unwrap();
        assert_eq!(
            copied,
            folded,
            "the copy is the fold of the log up to {}",
            checkpoint.lsn()
        );
    }
}

#[test]
fn an_installed_checkpoint_goes_on_from_its_lsn_and_old_write_ahead_files_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let first = changeset(10, &step(&view.handle(), 10));
    view.apply(&[first]).unwrap();
    let checkpoints = Checkpoints::new(dir.path().join("ckpt"), LOG);
    let checkpoint = take(&checkpoints, &view);
    assert_eq!(checkpoint.manifest.files.len(), 2);
    assert_eq!(take(&checkpoints, &view), checkpoint, "once is enough");

    let views = dir.path().join("views");
    fs::create_dir(&views).unwrap();
    fs::write(views.join(format!("{FILE_NAME}-wal")), b"of another database").unwrap();
    fs::write(views.join(FILE_NAME), b"another database").unwrap();
    checkpoint.install(&views).unwrap();
    let mut names: Vec<_> = fs::read_dir(&views)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, [FILE_NAME, "other.bin"]);
    let mut restored = AccountsView::open(&views, LOG).unwrap();
    let second = changeset(11, &step(&view.handle(), 11));
    restored
        .apply(&[
            entry(
                10,
                vec![Change::AccountsChangeset {
                    bytes: b"skipped".to_vec(),
                }],
            ),
            second,
        ])
        .unwrap();
    assert_eq!(restored.applied(), lsn(11));
    assert_eq!(
        restored
            .handle()
            .read_blocking(queries::count_actors)
            .unwrap()
            .active,
        0
    );
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_becomes_the_views_and_is_none_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let first = changeset(10, &step(&view.handle(), 10));
    view.apply(&[first]).unwrap();
    let checkpoints = Checkpoints::new(dir.path().join("ckpt"), LOG);
    let checkpoint = take(&checkpoints, &view);
    let files = checkpoint.manifest.files.clone();
    let views = dir.path().join("views");
    fs::create_dir(&views).unwrap();
    fs::write(views.join(format!("{FILE_NAME}-wal")), b"of another database").unwrap();
    let (largest, at) = (FILE_NAME, checkpoint.dir.clone());
    assert!(files.iter().all(|file| file.name == largest || file.size < 4_096));
    let moved = fs::metadata(at.join(largest)).unwrap().ino();
    checkpoint.become_views(&views).unwrap();
    assert_eq!(names_in(&views), [FILE_NAME, "other.bin"]);
    assert_eq!(
        fs::metadata(views.join(largest)).unwrap().ino(),
        moved,
        "it was not copied"
    );
    for file in &files {
        file.check(&views, &mut io::sink()).unwrap();
    }
    assert!(!at.exists());
    assert!(checkpoints.newest_valid(Lsn::MAX).unwrap().checkpoint.is_none());
    assert_eq!(AccountsView::open(&views, LOG).unwrap().applied(), lsn(10));
}

#[test]
fn what_is_left_of_a_move_that_crashed_is_no_checkpoint_and_what_cannot_be_moved_stays_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut view = open(dir.path());
    let first = changeset(10, &step(&view.handle(), 10));
    view.apply(&[first]).unwrap();
    let checkpoints = Checkpoints::new(dir.path().join("ckpt"), LOG);
    let checkpoint = take(&checkpoints, &view);
    let views = dir.path().join("views");

    // One whose small file is damaged: nothing is moved.
    let other = checkpoint.dir.join("other.bin");
    let whole = fs::read(&other).unwrap();
    fs::write(&other, vec![0; whole.len()]).unwrap();
    let refused = checkpoint.clone().become_views(&views);
    assert!(
        matches!(refused, Err(CheckpointError::Damaged { .. })),
        "{refused:?}"
    );
    assert!(checkpoint.dir.join(FILE_NAME).exists());
    fs::write(&other, whole).unwrap();
    checkpoint.verify().unwrap();
    // One whose large file is short.
    let large = checkpoint.dir.join(FILE_NAME);
    let whole = fs::read(&large).unwrap();
    fs::write(&large, &whole[1..]).unwrap();
    let refused = checkpoint.clone().become_views(&views);
    assert!(
        matches!(refused, Err(CheckpointError::Damaged { .. })),
        "{refused:?}"
    );
    fs::write(&large, whole).unwrap();

    // A crash after the move: the directory claims more than it has.
    fs::rename(&large, views.join(FILE_NAME)).unwrap();
    let newest = checkpoints.newest_valid(Lsn::MAX).unwrap();
    assert!(newest.checkpoint.is_none());
    assert_eq!(newest.rejected.len(), 1);
    assert_eq!(AccountsView::open(&views, LOG).unwrap().applied(), lsn(10));
    assert_eq!(
        take(&checkpoints, &view).lsn(),
        lsn(10),
        "another one takes its place"
    );
    assert!(checkpoints.newest_valid(Lsn::MAX).unwrap().checkpoint.is_some());
}

#[test]
fn both_views_come_back_from_one_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut accounts = open(dir.path());
    let mut index = IndexView::open(&dir.path().join(crate::views::index::FILE_NAME), LOG, 1 << 20).unwrap();
    let batch = [changeset(10, &step(&accounts.handle(), 10))];
    index.apply(&batch).unwrap();
    let checkpoints = Checkpoints::new(dir.path().join("ckpt"), LOG);
    let early = accounts.handle().snapshot().unwrap();
    let disagree = checkpoints.take(&[&index.reader().unwrap(), &early], Epoch(1));
    assert!(matches!(disagree, Err(CheckpointError::Disagree { .. })));
    accounts.apply(&batch).unwrap();
    let snapshot = accounts.handle().snapshot().unwrap();
    checkpoints
        .take(&[&index.reader().unwrap(), &snapshot], Epoch(1))
        .unwrap();

    let found = checkpoints.newest_valid(Lsn::MAX).unwrap().checkpoint.unwrap();
    let views = dir.path().join("views");
    found.install(&views).unwrap();
    let index = IndexView::open(&views.join(crate::views::index::FILE_NAME), LOG, 1 << 20).unwrap();
    assert_eq!(
        (
            index.applied(),
            AccountsView::open(&views, LOG).unwrap().applied()
        ),
        (lsn(10), lsn(10))
    );
}

#[test]
fn snapshots_of_different_lsns_and_empty_views_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), LOG);
    let mixed = checkpoints.take(&[&Other(lsn(1)), &Other(lsn(2))], Epoch(1));
    assert!(matches!(mixed, Err(CheckpointError::Disagree { .. })));
    assert!(matches!(
        checkpoints.take(&[], Epoch(1)),
        Err(CheckpointError::Empty)
    ));
    assert!(matches!(
        checkpoints.take(&[&Other(Lsn::ZERO)], Epoch(1)),
        Err(CheckpointError::Empty)
    ));
    assert!(checkpoints.list().unwrap().is_empty());
}

/// Three checkpoints, of LSN 1 to 3.
fn three(root: &Path) -> Checkpoints {
    let checkpoints = Checkpoints::new(root, LOG);
    for number in 1..=3 {
        checkpoints.take(&[&Other(lsn(number))], Epoch(1)).unwrap();
    }
    checkpoints
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 5] = [
        ("a flipped bit in a copy", |dir| {
            let path = dir.join("other.bin");
            let mut bytes = fs::read(&path).unwrap();
            bytes[3] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("a truncated copy", |dir| {
            fs::write(dir.join("other.bin"), b"000").unwrap();
        }),
        ("a missing copy", |dir| {
            fs::remove_file(dir.join("other.bin")).unwrap();
        }),
        ("a truncated manifest", |dir| {
            let path = dir.join(MANIFEST_NAME);
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("no manifest", |dir| {
            fs::remove_file(dir.join(MANIFEST_NAME)).unwrap();
        }),
    ];
    for (number, (what, harm)) in harms.into_iter().enumerate() {
        let checkpoints = three(&dir.path().join(number.to_string()));
        harm(&checkpoints.dir_of(lsn(3)));
        let found = checkpoints.newest_valid(Lsn::MAX).unwrap();
        assert_eq!(found.checkpoint.unwrap().lsn(), lsn(2), "{what}");
        assert_eq!(found.rejected.len(), 1, "{what}");
        assert!(!found.rejected[0].1.to_string().is_empty());
        // The damaged one does not stand in the way of a new one.
        checkpoints.take(&[&Other(lsn(3))], Epoch(2)).unwrap();
        assert_eq!(
            checkpoints
                .newest_valid(Lsn::MAX)
                .unwrap()
                .checkpoint
                .unwrap()
                .lsn(),
            lsn(3),
            "{what}"
        );
    }
}

#[test]
fn a_checkpoint_beyond_the_log_or_of_another_log_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = three(dir.path());
    assert_eq!(
        checkpoints
            .newest_valid(lsn(2))
            .unwrap()
            .checkpoint
            .unwrap()
            .lsn(),
        lsn(2)
    );
    let strange = Checkpoints::new(dir.path(), LogId([8; 16]))
        .newest_valid(Lsn::MAX)
        .unwrap();
    assert!(strange.checkpoint.is_none());
    assert!(
        strange
            .rejected
            .iter()
            .all(|(_, error)| matches!(error, CheckpointError::Foreign { .. }))
    );
    fs::rename(checkpoints.dir_of(lsn(3)), checkpoints.dir_of(lsn(9))).unwrap();
    assert!(matches!(
        checkpoints.open(lsn(9)),
        Err(CheckpointError::Foreign { .. })
    ));
}

#[test]
fn an_install_from_a_damaged_checkpoint_leaves_the_views_alone() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = three(&dir.path().join("ckpt"));
    let checkpoint = checkpoints.open(lsn(3)).unwrap();
    fs::write(checkpoint.dir.join("other.bin"), "f".repeat(16)).unwrap();
    let views = dir.path().join("views");
    fs::create_dir(&views).unwrap();
    fs::write(views.join("other.bin"), b"live").unwrap();
    assert!(matches!(
        checkpoint.install(&views),
        Err(CheckpointError::Damaged { .. })
    ));
    assert_eq!(fs::read(views.join("other.bin")).unwrap(), b"live");
    assert_eq!(fs::read_dir(&views).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn pruning_keeps_the_newest_and_removes_what_is_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = three(dir.path());
    fs::create_dir(checkpoints.dir_of(lsn(4))).unwrap();
    fs::write(checkpoints.dir_of(lsn(4)).join("other.bin"), b"half").unwrap();
    fs::write(dir.path().join("unrelated"), b"").unwrap();
    assert_eq!(checkpoints.prune(2).unwrap(), 2);
    assert_eq!(checkpoints.list().unwrap(), [lsn(3), lsn(2)]);
    assert!(dir.path().join("unrelated").exists());
    assert!(
        Checkpoints::new(dir.path().join("absent"), LOG)
            .list()
            .unwrap()
            .is_empty()
    );
}
