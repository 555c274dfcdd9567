//! Damage of the log on a disk that has no replica (I3): a torn tail is cut, damage before whole entries refuses the
//! start, names segment and offset, and changes no byte.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::Outcome;
use tests::api::{Account, Written};
use tests::stack::{Pds, ReplicaKind, SOON, Settings, Stack};

/// Bytes of a frame's header, from the format's description.
const FRAME_HEADER_BYTES: usize = 48;

/// A server with twenty posts that died with its segment open.
async fn dead_server() -> Result<(Stack, Settings, Account, Vec<Written>, PathBuf)> {
    let stack = Stack::start(ReplicaKind::None)
        .await?
        .context("a stack without an emulator")?;
    let data = stack.place("data");
    let settings = stack.settings(&data);
    let mut pds = Pds::start(&settings).await?;
    let account = pds.api.create_account("alice").await?;
    let mut posts = Vec::new();
    for n in 0..20 {
        posts.push(pds.api.post(&account, &format!("post {n}")).await?);
    }
    pds.process.kill().await?;
    let newest = newest_segment(&data)?;
    Ok((stack, settings, account, posts, newest))
}

fn newest_segment(data: &Path) -> Result<PathBuf> {
    let mut segments: Vec<PathBuf> = std::fs::read_dir(data.join("log"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    segments.sort();
    segments.pop().context("there is no segment")
}

/// How many bytes there are before the zeros that the log writes ahead of its entries.
fn written(bytes: &[u8]) -> Result<usize> {
    let last = bytes.iter().rposition(|byte| *byte != 0);
    Ok(last.context("an empty segment")? + 1)
}

async fn has(pds: &Pds, written: &Written) -> bool {
    pds.api
        .record(&written.did, &written.collection, &written.rkey)
        .await
        .is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_after_the_last_entry_is_cut_off() -> Outcome {
    let (stack, settings, account, posts, segment) = dead_server().await?;
    let mut bytes = std::fs::read(&segment)?;
    bytes.extend_from_slice(&[0xa5; 100]);
    std::fs::write(&segment, bytes)?;
    let pds = Pds::start(&settings).await?;
    for written in &posts {
        ensure!(has(&pds, written).await, "lost {written:?}");
    }
    pds.api.post(&account, "and on").await?;
    pds.stop().await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_last_entry_is_cut_and_views_that_had_it_follow() -> Outcome {
    let (stack, settings, account, posts, segment) = dead_server().await?;
    let mut bytes = std::fs::read(&segment)?;
    let end = written(&bytes)?;
    // The end of the last frame never reached the disk: what was written ahead is still there.
    bytes.get_mut(end - 10..end).context("a short segment")?.fill(0);
    std::fs::write(&segment, bytes)?;
    let pds = Pds::start(&settings).await?;
    let (last, earlier) = posts.split_last().context("no posts")?;
    for written in earlier {
        ensure!(has(&pds, written).await, "lost {written:?}");
    }
    ensure!(
        !has(&pds, last).await,
        "a view kept an entry that the log has not: {last:?}"
    );
    let next = pds.api.post(&account, "and on").await?;
    ensure!(
        next.rev > last.rev || next.commit != last.commit,
        "the torn commit came back"
    );
    pds.stop().await?;
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_before_whole_entries_refuses_the_start_and_touches_nothing() -> Outcome {
    let (stack, settings, _, _, segment) = dead_server().await?;
    let mut bytes = std::fs::read(&segment)?;
    // The tail is long enough that the middle has whole entries on both sides.
    let middle = written(&bytes)? / 2;
    ensure!(middle > FRAME_HEADER_BYTES * 4, "the segment is too short");
    *bytes.get_mut(middle).context("the middle")? ^= 0x10;
    std::fs::write(&segment, &bytes)?;
    // Without checkpoint and views everything is read.
    for view in ["index.redb", "account.sqlite", "ckpt"] {
        remove_everywhere(&stack.place("data"), view)?;
    }
    let (mut process, _) = Pds::spawn(&settings)?;
    let status = process
        .wait(SOON)
        .await
        .context("the server starts over damage")?;
    ensure!(!status.success(), "it ended well");
    let said = process.tail();
    let name = segment
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    ensure!(
        said.contains(&name),
        "the message names no segment {name}:\n{said}"
    );
    ensure!(
        said.to_lowercase().contains("offset") || said.contains(" at "),
        "the message names no place:\n{said}"
    );
    ensure!(
        std::fs::read(&segment)? == bytes,
        "a refused start changed the segment"
    );
    stack.stop().await
}

fn remove_everywhere(dir: &Path, start: &str) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let matches = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(start));
        match (path.is_dir(), matches) {
            (true, true) => std::fs::remove_dir_all(&path)?,
            (true, false) => remove_everywhere(&path, start)?,
            (false, true) => std::fs::remove_file(&path)?,
            (false, false) => {}
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_header_of_a_segment_with_entries_refuses_the_start() -> Outcome {
    let (stack, settings, _, _, segment) = dead_server().await?;
    let mut bytes = std::fs::read(&segment)?;
    *bytes.get_mut(20).context("a header")? ^= 0x01;
    std::fs::write(&segment, &bytes)?;
    let (mut process, _) = Pds::spawn(&settings)?;
    let status = process
        .wait(SOON)
        .await
        .context("the server starts over damage")?;
    ensure!(!status.success(), "it ended well");
    let name = segment
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    ensure!(
        process.tail().contains(&name),
        "the message names no segment:\n{}",
        process.tail()
    );
    ensure!(
        std::fs::read(&segment)? == bytes,
        "a refused start changed the segment"
    );
    stack.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_data_directory_is_refused() -> Outcome {
    let stack = Stack::start(ReplicaKind::None)
        .await?
        .context("a stack without an emulator")?;
    let settings = stack.settings(&stack.place("data"));
    let pds = Pds::start(&settings).await?;
    let (mut second, _) = Pds::spawn(&settings)?;
    let status = second
        .wait(SOON)
        .await
        .context("a second server runs on the same directory")?;
    ensure!(!status.success(), "it ended well");
    pds.api.create_account("alice").await?;
    pds.stop().await?;
    stack.stop().await
}
