//! Both databases against the contract of sinks, and what upserts do.

use super::*;
use crate::contract::{check_sink, rows, stage};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use std::sync::Arc;
use tidemill_core::{BatchId, Options, Sink};

/// Rows of every kind of column, the second without values.
pub(super) fn kinds() -> RecordBatch {
    use arrow_array::{BinaryArray, BooleanArray, Date32Array, Float64Array, Int32Array, StringArray};
    let times = arrow_array::TimestampMicrosecondArray::from(vec![Some(1_500_000), None]);
    let columns: [(&str, ArrayRef); 7] = [
        ("i", Arc::new(Int32Array::from(vec![Some(-7), None]))),
        ("x", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
        ("t", Arc::new(StringArray::from(vec![Some("tab\there, \\ \"潮\"\nline"), None]))),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("raw", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"ebb"), None]))),
        ("at", Arc::new(times.with_timezone("UTC"))),
        ("day", Arc::new(Date32Array::from(vec![Some(1), None]))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

#[test]
fn columns_that_no_table_holds_are_told() {
    let table = table::Table::from_options(&Options::new("s", [("table", "t"), ("key", "n, word")])).unwrap();
    table.with(&rows([]).schema()).unwrap();
    let list = DataType::List(Arc::new(arrow_schema::Field::new("item", DataType::Int64, true)));
    for (name, ty, hint) in
        [("n", list, "CAST it"), ("", DataType::Int64, "can't be called"), ("m", DataType::Int64, "no column `n`")]
    {
        let schema = arrow_schema::Schema::new(vec![arrow_schema::Field::new(name, ty, true)]);
        let error = table.with(&schema).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
    let _micros = TimeUnit::Microsecond;
    for bad in ["a b", "x\"; DROP", "", "tidemill_batches"] {
        assert!(table::Table::from_options(&Options::new("s", [("table", bad)])).is_err(), "{bad}");
    }
}

#[cfg(feature = "sqlite")]
mod sqlite_file {
    use super::*;
    use std::path::Path;

    fn sink(path: &Path, key: &str) -> Arc<dyn Sink> {
        let path = path.to_string_lossy().into_owned();
        let options = Options::new("sink", [("path", path.as_str()), ("table", "words"), ("key", key)]);
        let sink = SqliteSink::from_options(&options).unwrap();
        options.finish().unwrap();
        Arc::new(sink)
    }

    #[test]
    fn a_table_is_claimed_however_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let claim = |path: &str, table: &str| {
            let path = dir.path().join(path).to_string_lossy().into_owned();
            let options = Options::new("sink", [("path", path.as_str()), ("table", table)]);
            SqliteSink::from_options(&options).unwrap().claim().unwrap()
        };
        assert!(claim("out.db", "words").clashes(&claim("x/../out.db", "Words")));
        assert!(!claim("out.db", "words").clashes(&claim("out.db", "word")));
        assert!(!claim("out.db", "words").clashes(&claim("other.db", "words")));
    }

    fn seen(path: &Path) -> Vec<String> {
        probe::sqlite(path, "SELECT n, word FROM words ORDER BY n")
    }

    #[tokio::test]
    async fn it_is_a_sink() {
        for key in ["", "n"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out.db");
            assert_eq!(sink(&path, key).guarantee(), tidemill_core::Guarantee::ExactlyOnce);
            check_sink(|| sink(&path, key), || seen(&path)).await;
            assert_eq!(seen(&path), ["1|word-1", "2|word-2", "3|word-3", "4|word-4", "5|word-5"]);
            let left = probe::sqlite(&path, "SELECT count(*) FROM tidemill_staged_words");
            assert_eq!(left, ["0"], "nothing staged is left");
        }
    }

    #[tokio::test]
    async fn the_last_row_of_a_key_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let sink = sink(&path, "word");
        let renumbered = |words: &RecordBatch, by: i64| {
            let numbers = arrow_array::Int64Array::from_iter_values((0..words.num_rows() as i64).map(|i| i + by));
            RecordBatch::try_new(words.schema(), vec![Arc::new(numbers), Arc::clone(words.column(1))]).unwrap()
        };
        sink.open(rows([]).schema()).await.unwrap();
        let parts = [
            stage(&*sink, 1, 0, vec![rows([1, 2]), renumbered(&rows([1]), 10)]).await.unwrap(),
            stage(&*sink, 1, 1, vec![renumbered(&rows([2]), 20)]).await.unwrap(),
        ];
        sink.commit(BatchId(1), &parts).await.unwrap();
        assert_eq!(seen(&path), ["10|word-1", "20|word-2"]);
    }

    #[tokio::test]
    async fn every_kind_of_column_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let sink = sink(&path, "");
        sink.open(kinds().schema()).await.unwrap();
        let part = stage(&*sink, 1, 0, vec![kinds()]).await.unwrap();
        sink.commit(BatchId(1), &[part]).await.unwrap();
        let rows = probe::sqlite(&path, "SELECT * FROM words");
        let times = "1970-01-01T00:00:01.500000Z";
        assert_eq!(
            rows,
            [format!("-7|0.5|tab\there, \\ \"潮\"\nline|1|ebb|{times}|1970-01-02"), ["null"; 7].join("|")]
        );
    }

    #[tokio::test]
    async fn a_table_that_is_ahead_is_written_again_by_key_or_refused() {
        for (key, refused) in [("", true), ("n", false)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out.db");
            let first = sink(&path, key);
            first.open(rows([]).schema()).await.unwrap();
            let mut parts = Vec::new();
            for batch in 1..=3 {
                let part = stage(&*first, batch, 0, vec![rows([i64::try_from(batch).unwrap()])]).await.unwrap();
                first.commit(BatchId(batch), std::slice::from_ref(&part)).await.unwrap();
                parts.push(part);
            }
            // Restored from a backup at batch 1, whose commit each start repeats.
            let restored = sink(&path, key);
            restored.open(rows([]).schema()).await.unwrap();
            restored.commit(BatchId(1), &parts[..1]).await.unwrap();
            let recovered = restored.recover(Some(BatchId(1))).await;
            if refused {
                let error = recovered.unwrap_err().to_string();
                assert!(error.contains("up to batch 3, and the program is at batch 1"), "{error}");
                let (_, keep) = error.split_once("say so with: ").unwrap();
                rusqlite::Connection::open(&path).unwrap().execute(keep, []).unwrap();
            } else {
                recovered.unwrap();
            }
            let next = sink(&path, key);
            next.open(rows([]).schema()).await.unwrap();
            next.commit(BatchId(1), &parts[..1]).await.unwrap();
            next.recover(Some(BatchId(1))).await.unwrap();
            assert_eq!(seen(&path).len(), 3, "nothing is added by the repetition");
            let part = stage(&*next, 2, 0, vec![rows([2])]).await.unwrap();
            next.commit(BatchId(2), &[part]).await.unwrap();
            assert_eq!(seen(&path).len(), if refused { 4 } else { 3 });
        }
    }

    #[test]
    fn a_mark_is_compared_with_its_time_unless_it_was_set_back() {
        use table::{ANY, Mark, Step, step};
        let at = |batch, time| step(Some(Mark { batch, time }), 2, tidemill_core::Timestamp(7));
        assert_eq!((at(2, 7), at(2, ANY)), (Step::Done, Step::Done));
        assert_eq!((at(2, 8), at(1, ANY), at(0, 0)), (Step::Apply, Step::Apply, Step::Apply));
        assert_eq!((at(3, 7), at(3, ANY)), (Step::Ahead, Step::Ahead));
        // The row that is there before the first commit.
        let none = Some(Mark { batch: 0, time: ANY });
        assert_eq!(step(none, 0, tidemill_core::Timestamp(7)), Step::Apply);
    }

    #[tokio::test]
    async fn rows_that_are_gone_and_tables_of_others_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let first = sink(&path, "");
        first.open(rows([]).schema()).await.unwrap();
        let part = stage(&*first, 1, 0, vec![rows([1])]).await.unwrap();
        first.recover(None).await.unwrap();
        let error = first.commit(BatchId(1), &[part]).await.unwrap_err().to_string();
        assert!(error.contains("neither staged nor in table `words`"), "{error}");
        // The table is there without the key that the sink now asks for.
        let error = sink(&path, "n").open(rows([]).schema()).await.unwrap_err();
        assert_eq!(error.blame(), tidemill_core::Blame::User, "{}", error.chain());
        assert!(error.to_string().contains("can't open table `words`"), "{error}");
    }
}

/// Against the server that `TIDEMILL_POSTGRES` names: `ci/services up` starts one.
/// Without it these tests are skipped, and fail if `TIDEMILL_SERVICES=required`.
#[cfg(feature = "postgres")]
pub(super) mod postgres_server {
    use super::*;

    /// The server, with a table of its own for the test.
    pub(in crate::database) async fn server(table: &str) -> Option<String> {
        let Ok(url) = std::env::var("TIDEMILL_POSTGRES") else {
            let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
            assert!(!required, "TIDEMILL_POSTGRES is not set, and TIDEMILL_SERVICES=required");
            eprintln!("skipped: TIDEMILL_POSTGRES is not set; ci/services up starts a server");
            return None;
        };
        let clean = format!("DROP TABLE IF EXISTS {table}, tidemill_staged_{table}, tidemill_before_{table}");
        probe::postgres(&url, &clean).await;
        probe::postgres(&url, &format!("DELETE FROM {BATCHES} WHERE sink = '{table}'")).await;
        Some(url)
    }

    pub(in crate::database) fn sink(url: &str, table: &str, key: &str) -> Arc<dyn Sink> {
        let options = Options::new("sink", [("url", url), ("table", table), ("key", key)]);
        let sink = PostgresSink::from_options(&options).unwrap();
        options.finish().unwrap();
        Arc::new(sink)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_is_a_sink() {
        for (table, key) in [("added", ""), ("upserted", "n")] {
            let Some(url) = server(table).await else { return };
            let select = format!("SELECT n, word FROM {table} ORDER BY n");
            let seen = || {
                let (url, select) = (url.clone(), select.clone());
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(async { probe::postgres(&url, &select).await })
                })
            };
            check_sink(|| sink(&url, table, key), seen).await;
            assert_eq!(seen(), ["1|word-1", "2|word-2", "3|word-3", "4|word-4", "5|word-5"]);
            let left = probe::postgres(&url, &format!("SELECT count(*) FROM tidemill_staged_{table}")).await;
            assert_eq!(left, ["0"], "nothing staged is left");
        }
    }

    #[tokio::test]
    async fn every_kind_of_column_is_written_and_the_last_row_of_a_key_counts() {
        let Some(url) = server("kinds").await else { return };
        let sink = sink(&url, "kinds", "t");
        sink.open(kinds().schema()).await.unwrap();
        let one = kinds().slice(0, 1);
        let part = stage(&*sink, 1, 0, vec![one.clone(), one]).await.unwrap();
        sink.commit(BatchId(1), &[part]).await.unwrap();
        let rows = probe::postgres(
            &url,
            "SELECT i, x, t, b, convert_from(raw, 'UTF8'), at AT TIME ZONE 'UTC', day FROM kinds",
        )
        .await;
        assert_eq!(rows, ["-7|0.5|tab\there, \\ \"潮\"\nline|t|ebb|1970-01-01 00:00:01.5|1970-01-02"]);
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_is_made_anew_and_the_commit_happens_once() {
        let Some(url) = server("cut").await else { return };
        let sink = sink(&url, "cut", "");
        sink.open(rows([]).schema()).await.unwrap();
        sink.recover(None).await.unwrap();
        for batch in 1..=5_u64 {
            let number = i64::try_from(batch).unwrap();
            let part = stage(&*sink, batch, 0, vec![rows([number])]).await.unwrap();
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tidemill' AND query LIKE '%cut%'";
            probe::postgres(&url, cut).await;
            // As the engine does: what is outside is tried again.
            let mut tries = 0;
            while let Err(error) = sink.commit(BatchId(batch), std::slice::from_ref(&part)).await {
                assert!(error.is_retryable() && tries < 10, "{}", error.chain());
                tries += 1;
            }
            sink.commit(BatchId(batch), &[part]).await.unwrap();
        }
        let rows = probe::postgres(&url, "SELECT n FROM cut ORDER BY n").await;
        assert_eq!(rows, ["1", "2", "3", "4", "5"]);
    }

    #[test]
    fn a_table_is_claimed_however_its_server_is_named() {
        let claim = |url: &str, table: &str| {
            PostgresSink::from_options(&Options::new("sink", [("url", url), ("table", table)]))
                .unwrap()
                .claim()
                .unwrap()
        };
        let words = claim("postgres://me@localhost/shop", "words");
        assert!(words.clashes(&claim("postgres://you@127.0.0.1:5432/shop?sslmode=disable", "words")));
        assert!(claim("postgres://shop@localhost", "words").clashes(&words), "a user's own database");
        for (url, table) in [
            ("postgres://me@localhost/shop", "Words"),
            ("postgres://me@localhost:5433/shop", "words"),
            ("postgres://me@localhost/other", "words"),
            ("postgres://me@db.example.org/shop", "words"),
        ] {
            assert!(!words.clashes(&claim(url, table)), "{url} {table}");
        }
    }

    #[test]
    fn a_password_in_a_program_is_refused_and_not_told() {
        let options = |url: &str| PostgresSink::from_options(&Options::new("sink", [("url", url), ("table", "t")]));
        for url in ["postgres://me:hunter2@localhost/x", "host=localhost password=hunter2", "postgres://me:hunter2@[/x"]
        {
            let error = options(url).unwrap_err();
            assert!(!error.chain().contains("hunter2"), "{}", error.chain());
        }
        let sink = options("postgres://me@db.example.org/shop").unwrap();
        assert_eq!(sink.describe(), "postgres db.example.org/shop (table t, added to)");
        assert!(!format!("{sink:?}").contains("password"));
    }
}
