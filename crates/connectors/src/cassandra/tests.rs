//! The sink against the server that `TIDEMILL_CASSANDRA` names: `ci/services up` starts one. Without it they are
//! skipped, and fail if `TIDEMILL_SERVICES=required`.
//!
//! A process has a keyspace of its own: what one deleted of another's marks would hide those that are written at the
//! times of tests, which are long ago.

mod faults;
mod kinds;
#[cfg(feature = "cassandra-tls")]
mod tls;
mod ways;

use super::*;
use crate::contract::{check_cut_off, check_sink, rows, stage};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::Schema;
use futures::{StreamExt, stream};
use scylla::client::{session::Session, session_builder::SessionBuilder};
use std::{
    path::Path,
    sync::{Arc, OnceLock},
};
use tidemill_core::{BatchId, Guarantee, Options, Result, Sink, StagedPart, Timestamp};

/// The keyspace of this process.
fn keyspace() -> &'static str {
    static KEYSPACE: OnceLock<String> = OnceLock::new();
    KEYSPACE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().file_name().unwrap().to_string_lossy().to_lowercase();
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("t{}_{name}", std::process::id())
    })
}

/// The server, with the keyspace made.
async fn server() -> Option<String> {
    let server = probe::server()?;
    let class = "{'class': 'SimpleStrategy', 'replication_factor': 1}";
    let make = format!("CREATE KEYSPACE IF NOT EXISTS {} WITH replication = {class}", keyspace());
    probe::run(&server, &[&make]).await;
    Some(server)
}

/// A sink into a table, with options that come before those that are usual here.
fn sink_of(server: &str, table: &str, more: &[(&str, &str)]) -> Result<CassandraSink> {
    let usual = [
        ("hosts", server),
        ("keyspace", keyspace()),
        ("table", table),
        ("user", probe::USER),
        ("password_env", probe::PASSWORD),
    ];
    let usual = usual.iter().filter(|(key, _)| more.iter().all(|(other, _)| other != key));
    let options = Options::new("sink", usual.chain(more).copied());
    let sink = CassandraSink::from_options(&options)?;
    options.finish()?;
    Ok(sink)
}

/// The same with its rows aside in `dir`.
fn sink(server: &str, table: &str, more: &[(&str, &str)], dir: &Path) -> Arc<dyn Sink> {
    let sink = sink_of(server, table, more).unwrap();
    sink.place("p/out", dir);
    Arc::new(sink)
}

async fn session(server: &str) -> Arc<Session> {
    let password = std::env::var(probe::PASSWORD).unwrap();
    Arc::new(SessionBuilder::new().known_node(server).user(probe::USER, password).build().await.unwrap())
}

/// What a query gives, from where no future may be waited for.
fn now(server: &str, query: &str) -> Vec<String> {
    let found = probe::rows(server, query);
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(found))
}

/// Stages rows of a batch of a time.
async fn staged(sink: &dyn Sink, batch: u64, micros: i64, rows: RecordBatch) -> StagedPart {
    let rows = stream::iter([Ok(rows)]).boxed();
    sink.stage(BatchId(batch), Timestamp(micros), 0, rows).await.unwrap().unwrap()
}

/// Stages and commits.
async fn write(sink: &dyn Sink, batch: u64, micros: i64, rows: RecordBatch) -> StagedPart {
    let part = staged(sink, batch, micros, rows).await;
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
    let Some(server) = server().await else { return };
    let ours = format!("CREATE TABLE {}.theirs (word text, n bigint, more int, PRIMARY KEY ((word), n))", keyspace());
    probe::run(&server, &[&ours]).await;
    for (table, options) in [("made", &[("key", "n")][..]), ("theirs", &[])] {
        let dir = tempfile::tempdir().unwrap();
        let open = || sink(&server, table, options, dir.path());
        assert_eq!(open().guarantee(), Guarantee::ExactlyOnce);
        let query = format!("SELECT n, word FROM {}.{table}", keyspace());
        check_sink(open, || now(&server, &query)).await;
        let all = now(&server, &query);
        assert_eq!(all, ["1|word-1", "2|word-2", "3|word-3", "4|word-4", "5|word-5"], "{table}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing staged is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_may_end_anywhere() {
    let Some(server) = server().await else { return };
    let (dir, session) = (tempfile::tempdir().unwrap(), session(&server).await);
    let open = || {
        let sink = sink_of(&server, "ends", &[("key", "n"), ("requests", "7")]).unwrap();
        sink.place("p/out", dir.path());
        // Each life has a sink of its own, and all of them this session: making one takes longer than a commit.
        let _set = sink.server.session.set(Arc::clone(&session));
        Arc::new(sink) as Arc<dyn Sink>
    };
    // Of this session's making, as a life sees what was there when the session began.
    let first = sink(&server, "ends", &[("key", "n")], dir.path());
    first.open(rows([]).schema()).await.unwrap();
    session.refresh_metadata().await.unwrap();
    let query = format!("SELECT n FROM {}.ends", keyspace());
    let seen = || -> Vec<i64> { now(&server, &query).iter().map(|n| n.parse().unwrap()).collect() };
    check_cut_off(open, seen, 2).await;
}

#[tokio::test]
async fn the_last_row_of_a_key_counts_and_what_comes_late_changes_nothing() {
    let Some(server) = server().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&server, "last", &[("key", "word")], dir.path());
    sink.open(pairs(&[]).schema()).await.unwrap();
    // Of two at one write time Cassandra would keep the greater one.
    write(&*sink, 1, 5000, pairs(&[("a", Some(9)), ("b", Some(2)), ("a", Some(1)), ("c", Some(3))])).await;
    let all = format!("SELECT word, n, writetime(n) FROM {}.last", keyspace());
    assert_eq!(probe::rows(&server, &all).await, ["a|1|5000", "b|2|5000", "c|3|5000"]);
    // A batch of the same time, and one of an earlier, are behind it all the same.
    write(&*sink, 2, 5000, pairs(&[("a", Some(0)), ("b", None)])).await;
    write(&*sink, 3, 70, pairs(&[("c", Some(-1))])).await;
    assert_eq!(probe::rows(&server, &all).await, ["a|0|5001", "b|null|null", "c|-1|5002"]);
    // What was given up of batch 2 arrives now.
    let late = format!("UPDATE {}.last USING TIMESTAMP 5001 SET n = 77 WHERE word = 'c'", keyspace());
    probe::run(&server, &[&late]).await;
    assert_eq!(probe::rows(&server, &all).await, ["a|0|5001", "b|null|null", "c|-1|5002"]);
    let mark =
        format!("SELECT batch_number, batch_time, write_time FROM {}.tidemill_batches WHERE sink = 'last'", keyspace());
    assert_eq!(probe::rows(&server, &mark).await, ["3|70|5002"]);
}

#[tokio::test]
async fn a_commit_that_was_cut_off_is_made_whole_at_its_own_time() {
    let Some(server) = server().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let open = async || {
        let sink = sink(&server, "cut", &[("key", "n")], dir.path());
        sink.open(rows([]).schema()).await.unwrap();
        sink
    };
    let first = open().await;
    let part = stage(&*first, 1, 0, vec![rows(0..300)]).await.unwrap();
    // Some of it was written, in a life that ended before the mark.
    let written: Vec<String> = (0..100)
        .map(|n| format!("INSERT INTO {}.cut (n, word) VALUES ({n}, 'word-{n}') USING TIMESTAMP 1000000", keyspace()))
        .collect();
    probe::run(&server, &written.iter().map(String::as_str).collect::<Vec<_>>()).await;
    drop(first);
    let second = open().await;
    second.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    second.recover(Some(BatchId(1))).await.unwrap();
    let times = format!("SELECT writetime(word) FROM {}.cut", keyspace());
    assert_eq!(probe::rows(&server, &times).await, vec!["1000000"; 300]);
    // The mark alone says that it is whole: with the rows gone, and without it, nobody guesses.
    second.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    probe::run(&server, &[&format!("DELETE FROM {}.tidemill_batches WHERE sink = 'cut'", keyspace())]).await;
    let error = second.commit(BatchId(1), &[part]).await.unwrap_err();
    assert!(error.to_string().contains("neither aside nor noted"), "{error}");
}

#[tokio::test]
async fn a_table_that_is_ahead_is_written_again() {
    let Some(server) = server().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let open = async || {
        let sink = sink(&server, "ahead", &[("key", "word")], dir.path());
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
    let all = format!("SELECT word, n FROM {}.ahead", keyspace());
    assert_eq!(probe::rows(&server, &all).await, ["a|4", "x|0"]);
    write(&*restored, 2, 1500, pairs(&[("a", Some(-2))])).await;
    assert_eq!(probe::rows(&server, &all).await, ["a|-2", "x|0"]);
    let again = open().await;
    again.commit(BatchId(2), &[]).await.unwrap();
    again.recover(Some(BatchId(2))).await.unwrap();
    // A new data directory, with batches that are numbered from the first.
    let anew = sink(&server, "ahead", &[("key", "word")], &dir.path().join("anew"));
    anew.open(pairs(&[]).schema()).await.unwrap();
    anew.recover(None).await.unwrap();
    write(&*anew, 1, 1000, pairs(&[("a", Some(-3))])).await;
    assert_eq!(probe::rows(&server, &all).await, ["a|-3", "x|0"]);
}

#[tokio::test]
async fn nulls_erase_or_leave_and_rows_go_by_their_time() {
    let Some(server) = server().await else { return };
    for (table, nulls, want) in [("erases", "erase", "a|null"), ("leaves", "leave", "a|1")] {
        let dir = tempfile::tempdir().unwrap();
        let sink = sink(&server, table, &[("key", "word"), ("nulls", nulls)], dir.path());
        sink.open(pairs(&[]).schema()).await.unwrap();
        write(&*sink, 1, 1000, pairs(&[("a", Some(1))])).await;
        write(&*sink, 2, 2000, pairs(&[("a", None)])).await;
        assert_eq!(probe::rows(&server, &format!("SELECT word, n FROM {}.{table}", keyspace())).await, [want]);
    }
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&server, "going", &[("key", "word"), ("ttl", "30d")], dir.path());
    sink.open(pairs(&[]).schema()).await.unwrap();
    write(&*sink, 1, 1000, pairs(&[("a", Some(1))])).await;
    let left = probe::rows(&server, &format!("SELECT ttl(n) FROM {}.going", keyspace())).await;
    let left: i64 = left[0].parse().unwrap();
    assert!((29 * 86_400..=30 * 86_400).contains(&left), "{left}");
}

#[test]
fn slips_are_told_without_a_server() {
    use arrow_schema::{DataType, Field, TimeUnit};
    let told = |options: &[(&str, &str)], schema: &Schema| {
        let usual = [("hosts", "localhost"), ("keyspace", "shop"), ("table", "t")];
        let usual = usual.iter().filter(|(key, _)| options.iter().all(|(other, _)| other != key));
        let options = Options::new("sink \"out\"", usual.chain(options).copied());
        let sink = CassandraSink::from_options(&options).and_then(|sink| options.finish().map(|()| sink));
        sink.and_then(|sink| sink.takes(&Arc::new(schema.clone()))).unwrap_err().to_string()
    };
    let schema = |name: &str, ty| Schema::new(vec![Field::new(name, ty, true), Field::new("m", DataType::Int64, true)]);
    let fine = schema("n", DataType::Int64);
    for (options, schema, want) in [
        (&[("table", "tidemill_x")][..], &fine, "can't be a table's name"),
        (&[("table", "a b")], &fine, "can't be a table's name"),
        (&[("keys", "n")], &fine, "did you mean `key`?"),
        (&[("key", "(n")], &fine, "can't be read: write the primary key as CQL does"),
        (&[("key", "m, x")], &fine, "the rows have no column `x`; there are n, m"),
        (&[("ttl", "0s")], &fine, "from 1s to 7300d"),
        (&[("ttl", "10000d")], &fine, "from 1s to 7300d"),
        (&[("nulls", "drop")], &fine, "neither erase nor leave"),
        (&[("requests", "0")], &fine, "from 1 to 2048"),
        (&[], &schema("n", DataType::Duration(TimeUnit::Second)), "column `n` is Duration(s), which no column there"),
        (&[], &schema("", DataType::Int64), "can't be called ``"),
    ] {
        let told = told(options, schema);
        assert!(told.contains(want), "{told}");
    }
    let sink = |host| sink_of(host, "t", &[("keyspace", "shop"), ("user", "u"), ("tls", "off")]).unwrap();
    assert_eq!(sink("db").describe(), "cassandra db:9042/shop (table t, upsert by its primary key)");
    assert!(sink("127.0.0.1").claim().unwrap().clashes(&sink("localhost:9042").claim().unwrap()));
    assert!(!sink("db1").claim().unwrap().clashes(&sink("db2").claim().unwrap()));
    assert!(!format!("{:?}", sink("db")).contains(probe::PASSWORD));
}
