//! Both databases asked by key: against rows that a sink of the same database wrote.
//! Invariant: keys that nobody wrote get no row.

use super::tests::kinds;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_cast::pretty::pretty_format_batches;
use arrow_schema::{Schema, SchemaRef};
use std::sync::Arc;
use tidemill_core::{Blame, Lookup};

fn text(rows: &[RecordBatch]) -> String {
    pretty_format_batches(rows).unwrap().to_string()
}

/// The columns of all rows.
fn values(rows: &[RecordBatch]) -> Vec<ArrayRef> {
    arrow_select::concat::concat_batches(&rows[0].schema(), rows).unwrap().columns().to_vec()
}

/// The columns of rows by name.
fn columns(names: &[&str]) -> SchemaRef {
    let schema = kinds().schema();
    Arc::new(Schema::new(names.iter().map(|name| schema.field_with_name(name).unwrap().clone()).collect::<Vec<_>>()))
}

fn words(of: &[&str]) -> RecordBatch {
    RecordBatch::try_from_iter([("t", Arc::new(StringArray::from(of.to_vec())) as ArrayRef)]).unwrap()
}

/// The table has the first row of [`kinds`], under the key `t`.
async fn check(table: &dyn Lookup) {
    let all = kinds();
    let keys = all.column_by_name("t").unwrap();
    let key = RecordBatch::try_from_iter([("t", Arc::clone(keys))]).unwrap().slice(0, 1);
    let found = table.rows(&key).await.unwrap();
    assert_eq!(values(&found), values(&[all.slice(0, 1)]), "every kind of column comes back as it was");
    assert_eq!(found[0].schema().field(0).data_type(), all.schema().field(0).data_type());
    let none = table.rows(&words(&["nobody", "'; DROP TABLE kinds; --"])).await.unwrap();
    assert_eq!(none.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    let many: Vec<String> = (0..2_345).map(|n| format!("word {n}")).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    many.insert(1_234, "tab\there, \\ \"潮\"\nline");
    assert_eq!(values(&table.rows(&words(&many)).await.unwrap()), values(&[all.slice(0, 1)]), "among many");
}

#[cfg(feature = "sqlite")]
mod sqlite_file {
    use super::*;
    use crate::{
        contract::stage,
        database::{SqliteLookup, SqliteSink},
    };
    use tidemill_core::{BatchId, Options, Sink};

    fn lookup(path: &std::path::Path, columns: &SchemaRef, key: &[&str]) -> SqliteLookup {
        let options = Options::new("table \"k\"", [("path", path.to_str().unwrap()), ("table", "kinds")]);
        let key: Vec<String> = key.iter().map(ToString::to_string).collect();
        SqliteLookup::from_options(&options, columns, &key).unwrap()
    }

    #[tokio::test]
    async fn rows_come_back_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let table = lookup(&path, &kinds().schema(), &["t"]);
        let error = table.rows(&words(&["a"])).await.unwrap_err();
        assert!(error.is_retryable(), "a file may come: {}", error.chain());
        let options = Options::new("sink", [("path", path.to_str().unwrap()), ("table", "kinds"), ("key", "t")]);
        let sink = SqliteSink::from_options(&options).unwrap();
        sink.open(kinds().schema()).await.unwrap();
        let part = stage(&sink, 1, 0, vec![kinds().slice(0, 1)]).await.unwrap();
        sink.commit(BatchId(1), &[part]).await.unwrap();
        check(&table).await;
        assert_eq!(table.describe(), format!("sqlite {}, table kinds", path.display()));
    }

    #[tokio::test]
    async fn keys_of_two_columns_and_values_that_do_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE kinds (i INTEGER, t TEXT, x); INSERT INTO kinds VALUES (1, 'a', 2), (1, 'b', 0.5), (2, 'a', 7),
                 (2, 'a', 8), (3, 'c', 'much')",
            )
            .unwrap();
        let keys = |of: &[(i64, &str)]| {
            RecordBatch::try_from_iter([
                ("i", Arc::new(Int64Array::from_iter_values(of.iter().map(|k| k.0))) as ArrayRef),
                ("t", Arc::new(StringArray::from_iter_values(of.iter().map(|k| k.1))) as _),
            ])
            .unwrap()
        };
        let table = lookup(&path, &columns(&["x", "i", "t"]), &["i", "t"]);
        let found = table.rows(&keys(&[(1, "a"), (2, "a"), (2, "b")])).await.unwrap();
        let lines: Vec<String> = text(&found).lines().skip(3).take(3).map(|l| l.replace(' ', "")).collect();
        assert_eq!(lines, ["|2.0|1|a|", "|7.0|2|a|", "|8.0|2|a|"]);
        let error = table.rows(&keys(&[(3, "c")])).await.unwrap_err();
        assert_eq!(error.blame(), Blame::User);
        assert!(error.chain().contains("column `x` has a value of type Text"), "{}", error.chain());
        let error = lookup(&path, &columns(&["t", "day"]), &["t"]).rows(&words(&["a"])).await.unwrap_err();
        assert_eq!(error.blame(), Blame::User, "{}", error.chain());
        assert!(error.chain().contains("no such column: \"day\""), "{}", error.chain());
    }
}

#[cfg(feature = "postgres")]
mod postgres_server {
    use super::*;
    use crate::{
        contract::stage,
        database::{PostgresLookup, PostgresSink, probe, tests::postgres_server::server},
    };
    use tidemill_core::{BatchId, Options, Sink};

    fn lookup(url: &str, table: &str, columns: &SchemaRef, key: &[&str]) -> PostgresLookup {
        let options = Options::new("table \"k\"", [("url", url), ("table", table)]);
        let key: Vec<String> = key.iter().map(ToString::to_string).collect();
        PostgresLookup::from_options(&options, columns, &key).unwrap()
    }

    #[tokio::test]
    async fn rows_come_back_by_key() {
        let Some(url) = server("asked").await else { return };
        let options = Options::new("sink", [("url", url.as_str()), ("table", "asked"), ("key", "t")]);
        let sink = PostgresSink::from_options(&options).unwrap();
        sink.open(kinds().schema()).await.unwrap();
        let part = stage(&sink, 1, 0, vec![kinds().slice(0, 1)]).await.unwrap();
        sink.commit(BatchId(1), &[part]).await.unwrap();
        let table = lookup(&url, "public.asked", &kinds().schema(), &["t"]);
        check(&table).await;
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tidemill' AND query LIKE '%asked%'";
        probe::postgres(&url, cut).await;
        // As the engine does: what is outside is tried again.
        let mut tries = 0;
        while let Err(error) = table.rows(&words(&["a"])).await {
            assert!(error.is_retryable() && tries < 10, "{}", error.chain());
            tries += 1;
        }
        let error = lookup(&url, "nowhere", &kinds().schema(), &["t"]).rows(&words(&["a"])).await.unwrap_err();
        assert_eq!(error.blame(), Blame::User, "{}", error.chain());
    }

    #[tokio::test]
    async fn keys_of_two_columns_are_asked_for_under_the_types_of_the_server() {
        let Some(url) = server("asked_by_two").await else { return };
        probe::postgres(
            &url,
            "CREATE TABLE asked_by_two (i SMALLINT, t VARCHAR(9), x REAL, PRIMARY KEY (i, t));
             INSERT INTO asked_by_two VALUES (1, 'a', 2), (1, 'b', 0.5), (2, 'a', NULL)",
        )
        .await;
        let table = lookup(&url, "asked_by_two", &columns(&["x", "i", "t"]), &["i", "t"]);
        let keys = RecordBatch::try_from_iter([
            ("i", Arc::new(Int64Array::from(vec![1, 2, 2])) as ArrayRef),
            ("t", Arc::new(StringArray::from(vec!["b", "a", "b"])) as _),
        ]);
        let found = table.rows(&keys.unwrap()).await.unwrap();
        let mut lines: Vec<String> = text(&found).lines().skip(3).take(2).map(|l| l.replace(' ', "")).collect();
        lines.sort();
        assert_eq!(lines, ["|0.5|1|b|", "||2|a|"]);
    }
}
