//! What the sink of objects owes in every store: checks that the tests of each run against its server.
//!
//! Invariant: what is there is looked at past the sink's store. Called by tests of `s3` and `hdfs`.

use super::sink::{MARK, ObjectsSink};
use crate::{
    aside::Part,
    contract::{rows, stage},
};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use futures::future::BoxFuture;
use object_store::{ObjectStoreExt, PutPayload};
use std::{collections::BTreeMap, sync::Arc};
use tidemill_core::{BatchId, Sink, StagedPart};

/// A place of a store for one check.
pub(crate) struct Made<'a> {
    /// As people name it.
    pub(crate) url: &'a str,
    /// A life of the sink into it, with these options more.
    pub(crate) make: &'a (dyn Fn(&[(&str, &str)]) -> ObjectsSink + Sync),
    /// What lies there, by what follows the prefix.
    pub(crate) seen: &'a (dyn Fn() -> BoxFuture<'a, BTreeMap<String, Vec<u8>>> + Sync),
}

impl Made<'_> {
    async fn open(&self, options: &[(&str, &str)]) -> ObjectsSink {
        let sink = (self.make)(options);
        sink.open(rows([]).schema()).await.unwrap();
        sink
    }

    async fn names(&self) -> Vec<String> {
        (self.seen)().await.into_keys().collect()
    }
}

/// Puts one of the objects of a part, as a life that is cut off there does.
async fn put_one(sink: &ObjectsSink, batch: BatchId, part: &StagedPart, which: usize) {
    let parts = Part::parse(std::slice::from_ref(part)).unwrap();
    let (rest, bytes) =
        sink.encoded(batch, 0, &sink.aside.read(batch, &parts[0]).await.unwrap()).unwrap().remove(which);
    sink.at.store.put(&sink.at.key(&rest).unwrap(), PutPayload::from(bytes)).await.unwrap();
}

pub(crate) async fn dealt_out(made: &Made<'_>) {
    let columns: [(&str, ArrayRef); 2] = [
        ("lang", Arc::new(StringArray::from(vec![Some("en"), Some("a/b c"), Some("en"), None]))),
        ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
    ];
    let all = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
    let open = async || {
        let sink = (made.make)(&[("partition_by", "lang"), ("format", "json")]);
        sink.open(all.schema()).await.unwrap();
        sink
    };
    let first = open().await;
    let part = stage(&first, 3, 0, vec![all.clone()]).await.unwrap();
    // One object was written, half a second before the machine stopped.
    put_one(&first, BatchId(3), &part, 1).await;
    assert_eq!((made.seen)().await.len(), 1);
    let second = open().await;
    second.commit(BatchId(3), std::slice::from_ref(&part)).await.unwrap();
    let name = "batch-000000000003-part-00000.json";
    let want = [
        ("_tidemill.json".to_string(), "{\"batch\":3}"),
        (format!("lang=__HIVE_DEFAULT_PARTITION__/{name}"), "{\"n\":4}\n"),
        (format!("lang=a%2Fb c/{name}"), "{\"n\":2}\n"),
        (format!("lang=en/{name}"), "{\"n\":1}\n{\"n\":3}\n"),
    ];
    let mut stored = Vec::new();
    for (name, _) in &want {
        // By the store's own way too: what it writes it reads under the same name.
        let got = second.at.store.get(&second.at.key(name).unwrap()).await.unwrap().bytes().await.unwrap();
        stored.push((name.clone(), String::from_utf8(got.to_vec()).unwrap()));
    }
    assert_eq!(stored, want.clone().map(|(name, text)| (name, text.to_string())));
    assert_eq!(made.names().await, want.map(|(name, _)| name));
    // With the rows gone, and without the mark, nobody guesses.
    second.commit(BatchId(3), std::slice::from_ref(&part)).await.unwrap();
    second.at.store.delete(&second.at.key(MARK).unwrap()).await.unwrap();
    let error = second.commit(BatchId(3), &[part]).await.unwrap_err();
    assert!(error.to_string().contains("neither aside nor noted"), "{error}");
}

pub(crate) async fn rewind(made: &Made<'_>) {
    let first = made.open(&[]).await;
    for batch in 1..=4_u64 {
        let part = stage(&first, batch, 0, vec![rows([i64::try_from(batch).unwrap()])]).await.unwrap();
        first.commit(BatchId(batch), &[part]).await.unwrap();
    }
    let error = made.open(&[]).await.recover(Some(BatchId(2))).await.unwrap_err().to_string();
    assert!(error.contains("objects of batches up to 4") && error.contains("rewind --to 2 --upto 4"), "{error}");
    let error = made.open(&[]).await.recover(None).await.unwrap_err().to_string();
    assert!(error.contains("committed none"), "{error}");
    let rewound = made.open(&[]).await;
    rewound.undo(BatchId(2), BatchId(4)).await.unwrap();
    rewound.undo(BatchId(2), BatchId(4)).await.unwrap();
    rewound.recover(Some(BatchId(2))).await.unwrap();
    let name = |batch: u8| format!("batch-00000000000{batch}-part-00000.parquet");
    let want = [
        "_tidemill.json".to_string(),
        format!("_undone/2-4/{}", name(3)),
        format!("_undone/2-4/{}", name(4)),
        name(1),
        name(2),
    ];
    let all = (made.seen)().await;
    assert_eq!(all.keys().cloned().collect::<Vec<_>>(), want);
    assert_eq!(all["_tidemill.json"], b"{\"batch\":2}");
}

pub(crate) async fn unknown(made: &Made<'_>) {
    let first = made.open(&[]).await;
    let mut parts = Vec::new();
    for batch in 1..=2_u64 {
        let part = stage(&first, batch, 0, vec![rows([i64::try_from(batch).unwrap()])]).await.unwrap();
        first.commit(BatchId(batch), std::slice::from_ref(&part)).await.unwrap();
        parts.push(part);
    }
    // Of batch 3 one object was written, and then the ledger lost it. Others have names like ours below.
    let put = async |rest: &str| first.at.store.put(&first.at.key(rest).unwrap(), PutPayload::from("x")).await.unwrap();
    for of_others in ["other/batch-000000000009-part-00000.json", "_undone/2-4/batch-000000000004-part-00000.json"] {
        put(of_others).await;
    }
    made.open(&[]).await.recover(Some(BatchId(2))).await.unwrap();
    put("lang=en/batch-000000000003-part-00000.json").await;
    let error = made.open(&[]).await.recover(Some(BatchId(2))).await.unwrap_err().to_string();
    assert!(error.contains("objects of batches up to 3") && error.contains("rewind --to 2 --upto 3"), "{error}");
    // A data directory of batch 1: what is told to do is done by hand, and the start after it repeats batch 1.
    let error = made.open(&[]).await.recover(Some(BatchId(1))).await.unwrap_err().to_string();
    let (_, mark) = error.split_once(&format!("let {}/_tidemill.json be ", made.url)).unwrap();
    first.at.store.put(&first.at.key(MARK).unwrap(), PutPayload::from(mark.to_string())).await.unwrap();
    for rest in ["batch-000000000002-part-00000.parquet", "lang=en/batch-000000000003-part-00000.json"] {
        first.at.store.delete(&first.at.key(rest).unwrap()).await.unwrap();
    }
    let restored = made.open(&[]).await;
    restored.commit(BatchId(1), &parts[..1]).await.unwrap();
    restored.recover(Some(BatchId(1))).await.unwrap();
}

pub(crate) async fn other_options(made: &Made<'_>) {
    let first = made.open(&[("format", "json"), ("partition_by", "word")]).await;
    let part = stage(&first, 1, 0, vec![rows([1, 2])]).await.unwrap();
    // One object was put, and the program ended.
    put_one(&first, BatchId(1), &part, 0).await;
    let second = made.open(&[("format", "csv")]).await;
    second.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    second.recover(Some(BatchId(1))).await.unwrap();
    assert_eq!(made.names().await, ["_tidemill.json", "batch-000000000001-part-00000.csv"]);
}
