//! The sink `postgres` where connections, servers and starts fail.
//! What has to do with a real server is against that of `TIDEMILL_POSTGRES`.

use super::{
    probe,
    tests::postgres_server::{server, sink},
    *,
};
use crate::contract::{rows, stage};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use std::{sync::Arc, time::Duration};
use tidemill_core::{BatchId, Blame, Lookup, Options, Sink};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::NoTls;

#[tokio::test]
async fn a_start_that_is_refused_leaves_staged_rows() {
    let Some(url) = server("refused").await else { return };
    let first = sink(&url, "refused", "");
    first.open(rows([]).schema()).await.unwrap();
    // The ledger has batch 1, and the program ends before its commit here.
    let part = stage(&*first, 1, 0, vec![rows([1, 2])]).await.unwrap();
    drop(first);
    // A mistaken version of the program, whose column the table lacks.
    let more: [(&str, ArrayRef); 3] = [
        ("n", Arc::new(Int64Array::from(vec![1]))),
        ("word", Arc::new(StringArray::from(vec!["x"]))),
        ("more", Arc::new(Int64Array::from(vec![1]))),
    ];
    let schema = RecordBatch::try_from_iter(more).unwrap().schema();
    let error = sink(&url, "refused", "").open(schema).await.unwrap_err();
    assert_eq!(error.blame(), Blame::User, "{}", error.chain());
    let second = sink(&url, "refused", "");
    second.open(rows([]).schema()).await.unwrap();
    second.commit(BatchId(1), &[part]).await.unwrap();
    assert_eq!(probe::postgres(&url, "SELECT n FROM refused ORDER BY n").await, ["1", "2"]);
}

#[tokio::test]
async fn the_first_commit_waits_for_its_own_repetition() {
    let Some(url) = server("twice").await else { return };
    let sink = sink(&url, "twice", "");
    sink.open(rows([]).schema()).await.unwrap();
    let part = stage(&*sink, 1, 0, vec![rows([1])]).await.unwrap();
    // The first try: its connection was cut, and the server is still at it.
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let running = tokio::spawn(connection);
    client
        .batch_execute(
            "BEGIN; SELECT batch FROM tidemill_batches WHERE sink = 'twice' FOR UPDATE;
             INSERT INTO twice (n, word) SELECT n, word FROM tidemill_staged_twice;
             DELETE FROM tidemill_staged_twice;
             INSERT INTO tidemill_batches (sink, batch, time) VALUES ('twice', 1, 1000000)
                 ON CONFLICT (sink) DO UPDATE SET batch = excluded.batch, time = excluded.time",
        )
        .await
        .unwrap();
    let again = tokio::spawn(async move { sink.commit(BatchId(1), &[part]).await });
    let waits = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'tidemill' AND wait_event_type = 'Lock'
                 AND (query LIKE '%FOR UPDATE' OR query LIKE '%twice%')";
    while probe::postgres(&url, waits).await.is_empty() {
        assert!(!again.is_finished(), "it waits for the one before it");
        tokio::task::yield_now().await;
    }
    client.batch_execute("COMMIT").await.unwrap();
    again.await.unwrap().unwrap();
    assert_eq!(probe::postgres(&url, "SELECT count(*) FROM twice").await, ["1"], "once");
    drop(client);
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_table_that_is_ahead_is_written_again_by_key_or_refused() {
    for (table, key) in [("ahead_added", ""), ("ahead_upserted", "n")] {
        let Some(url) = server(table).await else { return };
        let first = sink(&url, table, key);
        first.open(rows([]).schema()).await.unwrap();
        let mut parts = Vec::new();
        for batch in 1..=3_u64 {
            let part = stage(&*first, batch, 0, vec![rows([i64::try_from(batch).unwrap()])]).await.unwrap();
            first.commit(BatchId(batch), std::slice::from_ref(&part)).await.unwrap();
            parts.push(part);
        }
        // Restored from a backup at batch 1, whose commit each start repeats.
        let restored = sink(&url, table, key);
        restored.open(rows([]).schema()).await.unwrap();
        restored.commit(BatchId(1), &parts[..1]).await.unwrap();
        let recovered = restored.recover(Some(BatchId(1))).await;
        if key.is_empty() {
            let error = recovered.unwrap_err().to_string();
            assert!(error.contains("up to batch 3, and the program is at batch 1"), "{error}");
            let (_, keep) = error.split_once("say so with: ").unwrap();
            probe::postgres(&url, keep).await;
        } else {
            recovered.unwrap();
        }
        let next = sink(&url, table, key);
        next.open(rows([]).schema()).await.unwrap();
        next.commit(BatchId(1), &parts[..1]).await.unwrap();
        next.recover(Some(BatchId(1))).await.unwrap();
        let part = stage(&*next, 2, 0, vec![rows([2])]).await.unwrap();
        next.commit(BatchId(2), &[part]).await.unwrap();
        let count = probe::postgres(&url, &format!("SELECT count(*) FROM {table}")).await;
        assert_eq!(count, [if key.is_empty() { "4" } else { "3" }]);
    }
}

#[tokio::test]
async fn a_text_with_nul_is_written_and_asked_for() {
    let Some(url) = server("nul").await else { return };
    let sink = sink(&url, "nul", "word");
    let words = |words: &[&str]| {
        let word: ArrayRef = Arc::new(StringArray::from(words.to_vec()));
        RecordBatch::try_from_iter([("word", word)]).unwrap()
    };
    sink.open(words(&[]).schema()).await.unwrap();
    let part = stage(&*sink, 1, 0, vec![words(&["a\0b", "\0", "whole"])]).await.unwrap();
    sink.commit(BatchId(1), &[part]).await.unwrap();
    let seen = probe::postgres(&url, "SELECT word FROM nul ORDER BY length(word)").await;
    assert_eq!(seen, ["\u{FFFD}", "a\u{FFFD}b", "whole"]);
    let options = Options::new("table \"k\"", [("url", url.as_str()), ("table", "nul")]);
    let table = PostgresLookup::from_options(&options, &words(&[]).schema(), &["word".to_string()]).unwrap();
    for (asked, want) in [(&["a\0b", "whole", "\0"][..], 1), (&["\0"], 0), (&["a\u{FFFD}b"], 1)] {
        let found = table.rows(&words(asked)).await.unwrap();
        assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), want, "{asked:?}");
    }
}

/// What a client sends first.
async fn first_message(stream: &mut TcpStream) {
    let length = stream.read_u32().await.unwrap();
    let mut rest = vec![0; usize::try_from(length).unwrap() - 4];
    stream.read_exact(&mut rest).await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_and_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://me@{}/x", listener.local_addr().unwrap());
    let sink = sink(&url, "silent", "");
    let open = |sink: &Arc<dyn Sink>| {
        let sink = Arc::clone(sink);
        tokio::spawn(async move { sink.open(rows([]).schema()).await })
    };
    // Silent from the start on; then once it has let us in; each try is on a connection of its own.
    let mut streams = Vec::new();
    for greeting in [&b""[..], b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", b""] {
        let opening = open(&sink);
        let accepted = tokio::time::timeout(Duration::from_secs(30), listener.accept()).await;
        let (mut stream, _) = accepted.expect("a new connection").unwrap();
        first_message(&mut stream).await;
        stream.write_all(greeting).await.unwrap();
        if !greeting.is_empty() {
            // The first question.
            stream.read_u8().await.unwrap();
        }
        tokio::time::pause();
        let since = tokio::time::Instant::now();
        let error = opening.await.unwrap().unwrap_err();
        assert!(since.elapsed() < Duration::from_secs(61), "by the clock that this test moves");
        assert!(error.is_retryable() && error.to_string().contains("no answer in"), "{}", error.chain());
        tokio::time::resume();
        // Closed by nobody.
        streams.push(stream);
    }
}
