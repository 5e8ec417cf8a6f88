//! The sink: its contract, and crashes between Kafka's commit and ours.

use super::*;
use crate::{
    contract::{check_sink, rows, stage},
    kafka::probe,
};
use std::{fs, path::Path, sync::Arc};
use tidemill_core::{BatchId, StagedPart};

fn exact(brokers: &str, topic: &str, dir: &Path, more: &[(&str, &str)]) -> Arc<KafkaSink> {
    let options = [&with(brokers, topic, &[("guarantee", "exactly once")])[..], more].concat();
    let sink = sink(&options).unwrap();
    sink.place(&format!("test/{topic}"), dir);
    Arc::new(sink)
}

/// Values that a consumer of committed records sees.
fn seen(brokers: &str, topic: &str) -> Vec<String> {
    let mut values: Vec<String> = probe::committed(brokers, topic).into_iter().map(|record| record.3).collect();
    values.sort();
    values
}

async fn opened(sink: &KafkaSink, last: Option<u64>) -> Result<()> {
    sink.open(rows([]).schema()).await?;
    sink.recover(last.map(BatchId)).await
}

fn files(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_sink() {
    let Some(brokers) = probe::server() else { return };
    for (topic, partitions) in [("sink-one", 1), ("sink-three", 3)] {
        probe::fresh(&brokers, topic, partitions);
        let dir = tempfile::tempdir().unwrap();
        let open = || -> Arc<dyn Sink> { exact(&brokers, topic, dir.path(), &[("key_column", "word")]) };
        check_sink(open, || tokio::task::block_in_place(|| seen(&brokers, topic))).await;
        let want = |n: u32| format!("{{\"n\":{n},\"word\":\"word-{n}\"}}");
        assert_eq!(seen(&brokers, topic), (1..=5).map(want).collect::<Vec<_>>());
        let keys: Vec<Option<String>> = probe::committed(&brokers, topic).into_iter().map(|record| record.2).collect();
        assert!(keys.iter().all(|key| key.as_ref().is_some_and(|key| key.starts_with("word-"))), "{keys:?}");
        assert!(files(dir.path()).is_empty(), "nothing staged is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_kafka_has_and_we_forgot_is_not_repeated() {
    let Some(brokers) = probe::server() else { return };
    probe::fresh(&brokers, "forgot", 1);
    let dir = tempfile::tempdir().unwrap();
    let first = exact(&brokers, "forgot", dir.path(), &[]);
    opened(&first, None).await.unwrap();
    let parts =
        [stage(&*first, 1, 0, vec![rows([1])]).await.unwrap(), stage(&*first, 1, 1, vec![rows([2])]).await.unwrap()];
    let kept: Vec<(String, Vec<u8>)> =
        files(dir.path()).into_iter().map(|name| (name.clone(), fs::read(dir.path().join(name)).unwrap())).collect();
    assert_eq!(kept.len(), 2);
    first.commit(BatchId(1), &parts).await.unwrap();
    let once = seen(&brokers, "forgot");
    assert_eq!(once.len(), 2);
    drop(first);
    // Killed after the transaction's commit: both files are still there, or one of them.
    for left in [&kept[..], &kept[..1], &kept[1..]] {
        for (name, bytes) in left {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let next = exact(&brokers, "forgot", dir.path(), &[]);
        next.open(rows([]).schema()).await.unwrap();
        next.commit(BatchId(1), &parts).await.unwrap();
        next.recover(Some(BatchId(1))).await.unwrap();
        assert_eq!(seen(&brokers, "forgot"), once);
        assert!(files(dir.path()).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_left_open_is_not_seen_and_the_batch_comes_once() {
    let Some(brokers) = probe::server() else { return };
    probe::fresh(&brokers, "left-open", 1);
    let dir = tempfile::tempdir().unwrap();
    let first = exact(&brokers, "left-open", dir.path(), &[]);
    opened(&first, None).await.unwrap();
    let part = stage(&*first, 1, 0, vec![rows([1])]).await.unwrap();
    // Killed in the middle of the transaction: its rows are in the log, and nobody ends it.
    probe::leave_open(&brokers, "left-open", "tidemill.test.left-open", &["{\"n\":1,\"word\":\"word-1\"}"]);
    drop(first);
    let next = exact(&brokers, "left-open", dir.path(), &[]);
    next.open(rows([]).schema()).await.unwrap();
    next.commit(BatchId(1), &[part]).await.unwrap();
    next.recover(Some(BatchId(1))).await.unwrap();
    assert_eq!(seen(&brokers, "left-open"), ["{\"n\":1,\"word\":\"word-1\"}"]);
    assert!(probe::end(&brokers, "left-open", 0) > 2, "the rows of both are in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_ahead_is_told() {
    let Some(brokers) = probe::server() else { return };
    probe::fresh(&brokers, "ahead", 1);
    let dir = tempfile::tempdir().unwrap();
    let first = exact(&brokers, "ahead", dir.path(), &[]);
    opened(&first, None).await.unwrap();
    for batch in 1..=3 {
        let part = stage(&*first, batch, 0, vec![rows([1])]).await.unwrap();
        first.commit(BatchId(batch), &[part]).await.unwrap();
    }
    drop(first);
    for (last, says) in [(Some(1), "the program is at batch 1"), (None, "the program has none yet")] {
        let error = opened(&exact(&brokers, "ahead", dir.path(), &[]), last).await.unwrap_err().to_string();
        assert!(
            error.contains("up to batch 3") && error.contains(says) && error.contains("`transactional_id`"),
            "{error}"
        );
    }
    let other = exact(&brokers, "ahead", dir.path(), &[("transactional_id", "ahead-anew")]);
    probe::forget(&brokers, "ahead-anew");
    opened(&other, None).await.unwrap();
    let part = stage(&*other, 1, 0, vec![rows([9])]).await.unwrap();
    other.commit(BatchId(1), &[part]).await.unwrap();
    assert_eq!(seen(&brokers, "ahead").len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_too_old_to_know_of_is_left_to_a_human() {
    let Some(brokers) = probe::server() else { return };
    probe::fresh(&brokers, "old", 1);
    let dir = tempfile::tempdir().unwrap();
    let first = exact(&brokers, "old", dir.path(), &[]);
    opened(&first, None).await.unwrap();
    let part = stage(&*first, 1, 0, vec![rows([1])]).await.unwrap();
    drop(first);
    let file = dir.path().join(&files(dir.path())[0]);
    let touch = |age: u64| {
        let at = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        fs::File::options().append(true).open(&file).unwrap().set_modified(at).unwrap();
    };
    touch(25 * 3600);
    let next = exact(&brokers, "old", dir.path(), &[]);
    next.open(rows([]).schema()).await.unwrap();
    let error = next.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap_err();
    assert!(error.to_string().contains("nobody knows whether batch 1 is in topic `old`"), "{}", error.chain());
    assert!(!error.is_retryable() && seen(&brokers, "old").is_empty());
    // The human has looked.
    touch(0);
    next.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    assert_eq!(seen(&brokers, "old").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_producer_of_the_id_is_noticed() {
    let Some(brokers) = probe::server() else { return };
    probe::fresh(&brokers, "rivals", 1);
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = exact(&brokers, "rivals", here.path(), &[]);
    opened(&one, None).await.unwrap();
    let part = stage(&*one, 1, 0, vec![rows([1])]).await.unwrap();
    one.commit(BatchId(1), &[part]).await.unwrap();
    // A copy of the program, of which somebody thought that the first had ended.
    let two = exact(&brokers, "rivals", there.path(), &[]);
    opened(&two, Some(1)).await.unwrap();
    let part = stage(&*two, 2, 0, vec![rows([2])]).await.unwrap();
    two.commit(BatchId(2), &[part]).await.unwrap();
    let part = stage(&*one, 2, 0, vec![rows([20])]).await.unwrap();
    let error = one.commit(BatchId(2), std::slice::from_ref(&part)).await.unwrap_err().to_string();
    assert!(error.contains("another producer writes under the transactional id `tidemill.test.rivals`"), "{error}");
    assert_eq!(seen(&brokers, "rivals").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_least_once_is_sent_when_it_is_staged_and_again_when_it_runs_again() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "plain", 2, &[]);
    for (compression, count) in [("none", 5), ("lz4", 10), ("gzip", 15), ("snappy", 20)] {
        let sink = sink(&with(&brokers, "plain", &[("compression", compression)])).unwrap();
        assert_eq!(sink.guarantee(), Guarantee::AtLeastOnce);
        opened(&sink, None).await.unwrap();
        let part = stage(&sink, 1, 0, vec![rows([1, 2]), rows([]), rows([3])]).await.unwrap();
        assert_eq!(part, StagedPart("3 records".into()));
        assert_eq!(stage(&sink, 1, 1, vec![rows([])]).await, None);
        sink.commit(BatchId(1), &[part]).await.unwrap();
        stage(&sink, 1, 0, vec![rows([4, 5])]).await.unwrap();
        assert_eq!(seen(&brokers, "plain").len(), count, "{compression}");
    }
    // What it wrote is what the source reads, whatever it was compressed with.
    let read = crate::contract::read_all(&source(&with(&brokers, "plain", &[])).unwrap()).await;
    assert_eq!(read.values().map(Vec::len).sum::<usize>(), 20);
}

#[cfg(feature = "protobuf")]
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_makes_no_message_is_refused_before_its_batch_is_committed() {
    let Some(brokers) = probe::server() else { return };
    probe::fresh(&brokers, "narrow-rows", 1);
    let dir = tempfile::tempdir().unwrap();
    let schema = "syntax = \"proto3\"; message Row { uint32 n = 1; string word = 2; }";
    let message = [("format", "protobuf"), ("schema", schema), ("message", "Row")];
    let sink = exact(&brokers, "narrow-rows", dir.path(), &message);
    opened(&sink, None).await.unwrap();
    let below = futures::stream::iter([Ok(rows([1, -1]))]);
    let error = sink.stage(BatchId(1), tidemill_core::Timestamp(0), 0, Box::pin(below)).await.unwrap_err();
    assert!(error.to_string().contains("column `n`: -1 does not fit") && !error.is_retryable(), "{error}");
    assert!(files(dir.path()).is_empty(), "nothing is staged");
    let part = stage(&*sink, 1, 0, vec![rows([7])]).await.unwrap();
    sink.commit(BatchId(1), &[part]).await.unwrap();
    assert_eq!(seen(&brokers, "narrow-rows"), ["\u{8}\u{7}\u{12}\u{6}word-7"]);
}
