//! The sink against the gateway that `TIDEMILL_HBASE` names: `ci/services up` starts one. Without it they are skipped,
//! and fail if `TIDEMILL_SERVICES=required`.
//!
//! A process has tables of its own: what one deleted would hide what is written at the times of tests, which are long
//! ago.

mod faults;
mod kinds;
mod slips;

use super::*;
use crate::contract::{check_cut_off, check_sink, rows, stage};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use futures::{StreamExt, stream};
use std::{
    path::Path,
    sync::{Arc, OnceLock},
};
use tidemill_core::{BatchId, Guarantee, Options, Result, Sink, StagedPart, Timestamp};

/// A table of this process.
fn table(name: &str) -> String {
    static OWN: OnceLock<String> = OnceLock::new();
    let own = OWN.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("t{}{name}", std::process::id())
    });
    format!("{own}-{name}")
}

/// A sink into a table, with options that come before those that are usual here.
fn sink_of(server: &str, table: &str, more: &[(&str, &str)]) -> Result<HbaseSink> {
    let usual =
        [("url", server), ("table", table), ("family", "d"), ("key", "word"), ("create", "true"), ("proxy", "none")];
    let usual = usual.iter().filter(|(key, _)| more.iter().all(|(other, _)| other != key));
    let options = Options::new("sink \"out\"", usual.chain(more).copied());
    let sink = HbaseSink::from_options(&options)?;
    options.finish()?;
    Ok(sink)
}

/// The same with its rows aside in `dir`.
fn sink(server: &str, table: &str, more: &[(&str, &str)], dir: &Path) -> Arc<dyn Sink> {
    let sink = sink_of(server, table, more).unwrap();
    sink.place("p/out", dir);
    Arc::new(sink)
}

/// The cells of a table, from where no future may be waited for.
fn now(server: &str, table: &str) -> Vec<probe::Cell> {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(probe::cells(server, table)))
}

/// Stages and commits.
async fn write(sink: &dyn Sink, batch: u64, millis: i64, rows: RecordBatch) -> StagedPart {
    let rows = stream::iter([Ok(rows)]).boxed();
    let part = sink.stage(BatchId(batch), Timestamp::from_millis(millis), 0, rows).await.unwrap().unwrap();
    sink.commit(BatchId(batch), std::slice::from_ref(&part)).await.unwrap();
    part
}

/// Rows of `word` and `n`, where there is one.
fn pairs(pairs: &[(&str, Option<i64>)]) -> RecordBatch {
    let columns: [(&str, ArrayRef, bool); 2] = [
        ("word", Arc::new(StringArray::from_iter_values(pairs.iter().map(|pair| pair.0))), false),
        ("n", Arc::new(Int64Array::from_iter(pairs.iter().map(|pair| pair.1))), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_sink() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("sink"));
    let open = || sink(&server, &table, &[("key", "n")], dir.path());
    assert_eq!(open().guarantee(), Guarantee::ExactlyOnce);
    check_sink(open, || now(&server, &table)).await;
    let all = probe::lines(&server, &table).await;
    let want = [1, 2, 3, 4].map(|n| format!("{n} d:word=word-{n}@1000"));
    // The second batch has the first one's time.
    assert_eq!(all, [&want[..], &["5 d:word=word-5@1001".to_string()]].concat());
    assert_eq!(probe::batch(&server, &table, "d").await, 2);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing staged is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_may_end_anywhere() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("ends"));
    let open = || sink(&server, &table, &[("key", "n"), ("max_rows", "7"), ("requests", "3")], dir.path());
    let number = |cell: probe::Cell| String::from_utf8(cell.key).unwrap().parse().unwrap();
    check_cut_off(open, || now(&server, &table).into_iter().map(number).collect(), 2).await;
    let times: Vec<i64> = now(&server, &table).iter().map(|cell| cell.timestamp).collect();
    assert_eq!(times, [vec![1000; 60], vec![1001; 60]].concat(), "each row at its batch's time, however often");
}

#[tokio::test]
async fn the_last_row_of_a_key_counts_and_what_comes_late_changes_nothing() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("last"));
    let sink = sink(&server, &table, &[], dir.path());
    sink.open(pairs(&[]).schema()).await.unwrap();
    // Of a null and a value at one timestamp the null would win.
    let first = [("a", None), ("b", Some(2)), ("a", Some(1)), ("c", Some(7)), ("c", None), ("e", Some(5))];
    write(&*sink, 1, 5000, pairs(&first)).await;
    assert_eq!(probe::lines(&server, &table).await, ["a d:n=1@5000", "b d:n=2@5000", "e d:n=5@5000"]);
    // A batch of the same time, and one of an earlier, are behind it all the same.
    write(&*sink, 2, 5000, pairs(&[("a", Some(0)), ("b", None)])).await;
    write(&*sink, 3, 70, pairs(&[("c", Some(-1)), ("b", Some(9)), ("e", None)])).await;
    let after = ["a d:n=0@5001", "b d:n=9@5002", "c d:n=-1@5002"];
    assert_eq!(probe::lines(&server, &table).await, after);
    // What was given up of the batches before arrives now.
    probe::put(&server, &table, "a", "d:n", 5000, Some("1")).await;
    probe::put(&server, &table, "b", "d:n", 5001, None).await;
    probe::put(&server, &table, "e", "d:n", 5000, Some("5")).await;
    assert_eq!(probe::lines(&server, &table).await, after);
    assert_eq!(probe::batch(&server, &table, "d").await, 3);
}

#[tokio::test]
async fn a_commit_that_was_cut_off_is_made_whole_at_its_own_time() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("cut"));
    let open = async || {
        let sink = sink(&server, &table, &[("key", "n")], dir.path());
        sink.open(rows([]).schema()).await.unwrap();
        sink
    };
    let first = open().await;
    let part = stage(&*first, 1, 0, vec![rows(0..300)]).await.unwrap();
    // Some of it was written, in a life that ended before the mark.
    probe::put(&server, &table, "7", "d:word", 1000, Some("word-7")).await;
    drop(first);
    let second = open().await;
    second.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    second.recover(Some(BatchId(1))).await.unwrap();
    let cells = probe::cells(&server, &table).await;
    assert!(cells.len() == 300 && cells.iter().all(|cell| cell.timestamp == 1000), "{}", cells.len());
    // The mark alone says that it is whole: without it, and with the rows gone, nobody guesses.
    second.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    probe::put(&server, "tidemill_batches", &format!("{table}:d"), "b:mark", 9_000_000, None).await;
    let error = second.commit(BatchId(1), &[part]).await.unwrap_err();
    assert!(error.to_string().contains("neither aside nor noted"), "{error}");
}

#[tokio::test]
async fn a_table_that_is_ahead_is_written_again() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("ahead"));
    let open = async || {
        let sink = sink(&server, &table, &[], dir.path());
        sink.open(pairs(&[]).schema()).await.unwrap();
        sink
    };
    let first = open().await;
    let part = write(&*first, 1, 1000, pairs(&[("a", Some(1))])).await;
    for batch in 2..=4 {
        write(&*first, batch, 1000 * batch as i64, pairs(&[("a", Some(batch as i64)), ("x", Some(0))])).await;
    }
    assert_eq!((first.undoes(), first.stays().is_empty()), (None, false));
    // Restored from a backup at batch 1, on a machine whose clock is behind: it repeats 1, and gives another 2.
    let restored = open().await;
    restored.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    restored.recover(Some(BatchId(1))).await.unwrap();
    assert_eq!(probe::lines(&server, &table).await, ["a d:n=4@4000", "x d:n=0@4000"]);
    write(&*restored, 2, 1500, pairs(&[("a", Some(-2)), ("x", None)])).await;
    assert_eq!(probe::lines(&server, &table).await, ["a d:n=-2@4002"]);
    let again = open().await;
    again.commit(BatchId(2), &[]).await.unwrap();
    again.recover(Some(BatchId(2))).await.unwrap();
    // A new data directory, with batches that are numbered from the first.
    let anew = sink(&server, &table, &[], &dir.path().join("anew"));
    anew.open(pairs(&[]).schema()).await.unwrap();
    anew.recover(None).await.unwrap();
    write(&*anew, 1, 1000, pairs(&[("a", Some(-3))])).await;
    assert_eq!(probe::lines(&server, &table).await, ["a d:n=-3@4004"]);
}

#[tokio::test]
async fn two_families_of_a_table_have_a_program_each() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("both"));
    probe::make(&server, &table, &["d", "e", "theirs"]).await;
    probe::put(&server, &table, "a", "theirs:x", 3, Some("1")).await;
    let open = async |family: &str| {
        let sink = sink(&server, &table, &[("family", family), ("create", "false")], &dir.path().join(family));
        sink.open(pairs(&[]).schema()).await.unwrap();
        sink
    };
    let (one, other) = (open("d").await, open("e").await);
    assert!(!one.claim().unwrap().clashes(&other.claim().unwrap()));
    write(&*one, 1, 1000, pairs(&[("a", Some(1)), ("b", Some(2))])).await;
    write(&*other, 1, 2000, pairs(&[("a", Some(3))])).await;
    write(&*one, 2, 3000, pairs(&[("a", None)])).await;
    assert_eq!(probe::lines(&server, &table).await, ["a e:n=3@2000", "a theirs:x=1@3", "b d:n=2@1000"]);
}

#[tokio::test]
async fn large_batches_are_cut_and_whole() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("large"));
    let sink = sink(&server, &table, &[("key", "n"), ("max_bytes", "40KB")], dir.path());
    sink.open(rows([]).schema()).await.unwrap();
    let words = (0..5000).map(|n| format!("{n}-{}", "x".repeat(if n == 77 { 2_000_000 } else { n % 97 })));
    let columns: [(&str, ArrayRef); 2] = [
        ("n", Arc::new(Int64Array::from_iter_values(0..5000))),
        ("word", Arc::new(StringArray::from_iter_values(words))),
    ];
    write(&*sink, 1, 1000, RecordBatch::try_from_iter(columns).unwrap()).await;
    let cells = probe::cells(&server, &table).await;
    assert_eq!(cells.len(), 5000);
    for cell in cells {
        let (key, value) = (String::from_utf8(cell.key).unwrap(), String::from_utf8(cell.value).unwrap());
        let n: usize = key.parse().unwrap();
        let long = if n == 77 { 2_000_000 } else { n % 97 };
        assert!(value.len() == key.len() + 1 + long && value.starts_with(&format!("{key}-")), "{key}");
    }
}
