//! What is refused, when, and in which words.

use super::*;
use arrow_array::BinaryArray;
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use tidemill_core::Error;

#[test]
fn slips_are_told_without_a_server() {
    let told = |options: &[(&str, &str)], schema: &Schema| {
        let sink = sink_of("http://localhost:1", "t", options);
        sink.and_then(|sink| sink.takes(&Arc::new(schema.clone()))).unwrap_err().to_string()
    };
    let schema =
        |name: &str, ty| Schema::new(vec![Field::new(name, ty, true), Field::new("word", DataType::Utf8, true)]);
    let fine = schema("n", DataType::Int64);
    for (options, schema, want) in [
        (&[("table", "tidemill_batches")][..], &fine, "can't be a table's name"),
        (&[("table", "shop:tidemill_batches")], &fine, "can't be a table's name"),
        (&[("table", "a/b")], &fine, "can't be a table's name"),
        (&[("table", "..")], &fine, "can't be a table's name"),
        (&[("table", "a:b:c")], &fine, "can't be a table's name"),
        (&[("family", "d:")], &fine, "can't be a family's name"),
        (&[("keys", "n")], &fine, "did you mean `key`?"),
        (&[("key", "n,")], &fine, "can't be read"),
        (&[("key", "n, n")], &fine, "can't be read"),
        (&[("key", "m, x")], &fine, "the rows have no column `m`; there are n, word"),
        (&[("key", "n, word")], &fine, "all columns are of the key"),
        (&[("separator", "|")], &fine, "nothing to part"),
        (&[("key", "n, word"), ("separator", "ab")], &fine, "one sign of ASCII"),
        (&[("key", "n, word"), ("separator", "\\")], &fine, "one sign of ASCII"),
        (&[("values", "java")], &fine, "neither text nor bytes"),
        (&[("nulls", "drop")], &fine, "neither erase nor leave"),
        (&[("requests", "0")], &fine, "from 1 to 64"),
        (&[("max_rows", "0")], &fine, "at least 1"),
        (&[], &schema("n", DataType::Duration(TimeUnit::Second)), "column `n` is Duration(s), which is not written"),
        (&[("values", "bytes")], &schema("n", DataType::UInt64), "CAST it to TEXT or BIGINT"),
        (&[("key", "n")], &schema("n", DataType::new_list(DataType::Int8, true)), "take columns of plain values"),
        (&[], &schema("", DataType::Int64), "can't be called ``"),
    ] {
        let told = told(options, schema);
        assert!(told.contains(want), "{told}");
    }
    // Keys are text in either form.
    let numbers = sink_of("http://localhost:1", "t", &[("key", "n"), ("values", "bytes")]).unwrap();
    numbers.takes(&Arc::new(schema("n", DataType::UInt64))).unwrap();
    let sink = sink_of("http://127.0.0.1:8080/", "game:scores", &[("key", "word , n")]).unwrap();
    assert_eq!(sink.describe(), "hbase http://127.0.0.1:8080 (table game:scores, family d, upsert by word, n)");
    let same = sink_of("http://localhost:8080", "game:scores", &[]).unwrap();
    assert!(sink.claim().unwrap().clashes(&same.claim().unwrap()));
    let other = sink_of("http://localhost:8080", "scores", &[]).unwrap();
    assert!(!sink.claim().unwrap().clashes(&other.claim().unwrap()));
}

#[tokio::test]
async fn tables_and_families_that_are_not_there_are_told_with_the_mend() {
    let Some(server) = probe::server() else { return };
    let here = table("here");
    probe::make(&server, &here, &["x", "y"]).await;
    let opened = async |table: &str, options: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        sink(&server, table, options, dir.path()).open(pairs(&[]).schema()).await
    };
    let refused = async |table: &str, options: &[(&str, &str)]| -> Error {
        let error = opened(table, options).await.unwrap_err();
        assert!(!error.is_retryable(), "{}", error.chain());
        error
    };
    let missing = refused(&table("none"), &[("create", "false")]).await;
    assert!(missing.to_string().contains("set option `create` to true"), "{missing}");
    assert!(missing.to_string().contains(&format!("create '{}', 'd'", table("none"))), "{missing}");
    let family = refused(&here, &[]).await;
    assert!(family.to_string().contains("no family `d`; there are x, y"), "{family}");
    let space = refused("nowhere:t", &[]).await;
    assert!(space.to_string().contains("create_namespace"), "{space}");
    assert!(!space.to_string().contains("\tat "), "{space}");
    // What is there is left as it is.
    opened(&here, &[("family", "y"), ("create", "true")]).await.unwrap();
    assert!(refused(&here, &[]).await.to_string().contains("there are x, y"));
}

#[tokio::test]
async fn rows_that_hbase_would_refuse_are_refused_before_their_batch_is_committed() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("refused"));
    let sink = sink(&server, &table, &[("key", "k")], dir.path());
    let row = |key: Option<Vec<u8>>, length: usize| {
        let columns: [(&str, ArrayRef, bool); 2] = [
            ("k", Arc::new(BinaryArray::from_iter([key])), true),
            ("v", Arc::new(StringArray::from(vec!["x".repeat(length)])), true),
        ];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    };
    sink.open(row(None, 0).schema()).await.unwrap();
    let most = (10 << 20) - (64 << 10);
    for (rows, want) in [
        (row(None, 1), "column `k` is of the key, and null in a row"),
        (row(Some(vec![]), 1), "the key of a row is empty"),
        (row(Some(vec![7; 32_001]), 1), "has 32001 bytes, and 32000 is the most"),
        (row(Some(vec![7]), most + 1), "column `d:v` has a value of"),
    ] {
        let rows = stream::iter([Ok(rows)]).boxed();
        let error = sink.stage(BatchId(1), Timestamp(1), 0, rows).await.unwrap_err();
        assert!(error.to_string().contains(want) && !error.is_retryable(), "{error}");
    }
    // The longest that pass are taken, and erased.
    write(&*sink, 1, 1000, row(Some(vec![7; 32_000]), most)).await;
    let cells = probe::cells(&server, &table).await;
    assert_eq!((cells.len(), cells[0].key.len(), cells[0].value.len()), (1, 32_000, most));
    let none: [(&str, ArrayRef, bool); 2] = [
        ("k", Arc::new(BinaryArray::from_iter([Some(vec![7; 32_000])])), true),
        ("v", Arc::new(StringArray::new_null(1)), true),
    ];
    write(&*sink, 2, 2000, RecordBatch::try_from_iter_with_nullable(none).unwrap()).await;
    assert_eq!(probe::cells(&server, &table).await, []);
}
