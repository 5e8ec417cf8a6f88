//! Staged rows of a commit that was cut off, found by a program with other columns.
//!
//! One story for both databases, told by statements that both understand.

use super::*;
use crate::contract::stage;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use std::sync::Arc;
use tidemill_core::{BatchId, Sink};

/// A row of the columns that are named: the number in `n` and others, and a word.
fn row(columns: &[&str], number: i64) -> RecordBatch {
    let column = |name: &&str| -> ArrayRef {
        match *name {
            "word" => Arc::new(StringArray::from(vec![format!("word-{number}")])),
            _ => Arc::new(Int64Array::from(vec![number])),
        }
    };
    RecordBatch::try_from_iter(columns.iter().map(|name| (*name, column(name)))).unwrap()
}

/// `life` makes the sink of the next life, `ask` runs a statement.
async fn told(table: &str, life: impl Fn() -> Arc<dyn Sink>, ask: impl AsyncFn(String) -> Vec<String>) {
    let aside = format!("SELECT count(*) FROM tidemill_before_{table}");
    let all = format!("SELECT * FROM {table} ORDER BY n");
    let open = async |columns: &[&str]| {
        let sink = life();
        sink.open(row(columns, 0).schema()).await.map(|()| sink)
    };
    // A column comes while a commit is under way, and another in the life after that.
    let first = open(&["n", "word"]).await.unwrap();
    first.recover(None).await.unwrap();
    let parts = [
        stage(&*first, 1, 0, vec![row(&["n", "word"], 1)]).await.unwrap(),
        stage(&*first, 1, 1, vec![row(&["n", "word"], 2)]).await.unwrap(),
    ];
    drop(first);
    ask(format!("ALTER TABLE {table} ADD COLUMN more BIGINT")).await;
    drop(open(&["n", "word", "more"]).await.unwrap());
    assert_eq!(ask(aside.clone()).await, ["2"], "they wait for their commit");
    ask(format!("ALTER TABLE {table} ADD COLUMN most BIGINT")).await;
    let columns = ["n", "word", "more", "most"];
    let sink = open(&columns).await.unwrap();
    for _ in 0..2 {
        sink.commit(BatchId(1), &parts).await.unwrap();
    }
    assert_eq!(ask(all.clone()).await, ["1|word-1|null|null", "2|word-2|null|null"]);
    sink.recover(Some(BatchId(1))).await.unwrap();
    assert!(ask(aside.clone()).await.is_empty(), "the table that was set aside is gone");
    let error = sink.commit(BatchId(2), &parts).await.unwrap_err();
    assert!(error.to_string().contains("neither staged nor in table"), "{}", error.chain());
    let part = stage(&*sink, 2, 0, vec![row(&columns, 3)]).await.unwrap();
    sink.commit(BatchId(2), &[part]).await.unwrap();
    assert_eq!(ask(all.clone()).await.last().unwrap(), "3|word-3|3|3");

    // A column goes, from the program and from the table: the rows of then are not cut without a word.
    let part = stage(&*sink, 3, 0, vec![row(&columns, 4)]).await.unwrap();
    drop(sink);
    ask(format!("ALTER TABLE {table} DROP COLUMN most")).await;
    let sink = open(&["n", "word"]).await.unwrap();
    let error = sink.commit(BatchId(3), std::slice::from_ref(&part)).await.unwrap_err();
    let told = "rows of before, whose columns were n, word, more, most (the table must have these until they are in)";
    assert!(error.to_string().contains(told), "{}", error.chain());
    drop(sink);
    ask(format!("ALTER TABLE {table} ADD COLUMN most BIGINT")).await;
    let sink = open(&["n", "word"]).await.unwrap();
    sink.commit(BatchId(3), &[part]).await.unwrap();
    assert_eq!(ask(all.clone()).await.last().unwrap(), "4|word-4|4|4");

    // What no batch committed is in no table, whatever its columns were; and a type may change alone.
    sink.recover(Some(BatchId(3))).await.unwrap();
    let _never = stage(&*sink, 4, 0, vec![row(&["n", "word"], 5)]).await.unwrap();
    drop(sink);
    let words = |more: &str| -> RecordBatch {
        let more: ArrayRef = Arc::new(StringArray::from(vec![more.to_string()]));
        let row = row(&["n", "word"], 6);
        let columns = [("n", Arc::clone(row.column(0))), ("word", Arc::clone(row.column(1))), ("more", more)];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    ask(format!("ALTER TABLE {table} DROP COLUMN more")).await;
    ask(format!("ALTER TABLE {table} ADD COLUMN more TEXT")).await;
    let sink = life();
    sink.open(words("").schema()).await.unwrap();
    sink.recover(Some(BatchId(3))).await.unwrap();
    assert!(ask(aside).await.is_empty());
    let part = stage(&*sink, 4, 0, vec![words("six")]).await.unwrap();
    sink.commit(BatchId(4), &[part]).await.unwrap();
    assert_eq!(ask(format!("SELECT n, more FROM {table} WHERE n > 4")).await, ["6|six"]);
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn rows_of_a_cut_commit_outlive_a_change_of_columns_in_sqlite() {
    for key in ["", "n"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let text = path.to_string_lossy().into_owned();
        let life = || -> Arc<dyn Sink> {
            let options =
                tidemill_core::Options::new("sink", [("path", text.as_str()), ("table", "words"), ("key", key)]);
            Arc::new(SqliteSink::from_options(&options).unwrap())
        };
        told("words", life, async |sql| probe::sqlite(&path, &sql)).await;
    }
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn rows_of_a_cut_commit_outlive_a_change_of_columns_in_postgres() {
    for (table, key) in [("changed", ""), ("changed_by_key", "n")] {
        let Some(url) = tests::postgres_server::server(table).await else { return };
        let life = || tests::postgres_server::sink(&url, table, key);
        told(table, life, async |sql| probe::postgres(&url, &sql).await).await;
    }
}
