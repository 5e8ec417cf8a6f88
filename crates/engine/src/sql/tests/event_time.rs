//! Each kind of window against plain DataFusion over all the input at once:
//! with random rows out of order, partitions, cuts into batches, and a restart
//! after every batch, each time with another number of partitions.

use super::*;

/// The parts of every batch, so that each partition ends with the last entry.
const PARTS: usize = 3;
/// A time after which all windows of the test are closed.
const END: i64 = 5_000;

/// Random rows in [`PARTS`] partitions, out of order by less than five seconds.
fn shuffled() -> impl Strategy<Value = Vec<Vec<Vec<Row>>>> {
    let row = (0..9_i64, prop::sample::select(vec!["a", "b", "c"]), prop::option::of(0..4_i64));
    let part = prop::collection::vec(row, 0..6);
    let entry = prop::collection::vec(part, PARTS);
    let pause = prop::sample::select(vec![0_i64, 0, 4, 4, 15]);
    prop::collection::vec((entry, pause), 1..7).prop_map(|entries| {
        let mut now = 0;
        let moved = entries.into_iter().map(|(mut entry, pause)| {
            now += pause;
            entry.iter_mut().flatten().for_each(|row| row.0 += now);
            now += 4;
            entry
        });
        let mut entries: Vec<_> = moved.collect();
        entries.push(vec![vec![(END, "the end", None)]; PARTS]);
        entries
    })
}

/// What `v` gives in each batch of a program that is started anew for each of them.
fn given(entries: &[Vec<Vec<Row>>], bound: i64, options: &str, views: &str) -> Vec<Vec<RecordBatch>> {
    let dir = tempfile::tempdir().unwrap();
    (0..entries.len())
        .map(|batch| {
            let context = crate::StreamingContext::builder("test").trigger(crate::Trigger::Drain);
            let mut program =
                SqlProgram::over(context.partitions(1 + (batch + 1) % 3).data_dir(dir.path()).build());
            program.queue("posts", batches(entries));
            let stream = format!(
                "CREATE STREAM posts (WATERMARK FOR t AS t - INTERVAL '{bound}' SECOND) WITH (connector = 'program'{options});"
            );
            program.start(&format!("{stream} {views}")).unwrap();
            program.step().unwrap();
            let view = program.context().board().view("v");
            view.filter(|view| view.batch.0 == batch as u64 + 1).map(|view| view.rows.clone()).into_iter().collect()
        })
        .collect()
}

/// All rows but the last ones, with their number in the order of arrival.
fn table(entries: &[Vec<Vec<Row>>]) -> RecordBatch {
    let mut all = Vec::new();
    for (batch, entry) in entries.iter().enumerate() {
        // The parts that a partition of the plan reads follow each other.
        let partitions = 1 + (batch + 1) % 3;
        let mut parts: Vec<usize> = (0..entry.len()).collect();
        parts.sort_by_key(|part| part % partitions);
        all.extend(parts.into_iter().flat_map(|part| entry[part].iter().copied()).filter(|row| row.0 < END));
    }
    let numbers: arrow_array::ArrayRef = Arc::new(Int64Array::from_iter_values(0..all.len() as i64));
    let rows = rows(&all);
    let mut columns: Vec<(String, arrow_array::ArrayRef)> =
        rows.schema().fields().iter().map(|f| f.name().clone()).zip(rows.columns().iter().cloned()).collect();
    columns.push(("place".to_string(), numbers));
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

const COLUMNS: &str = "window_start, window_end, tag, count(*) AS rows, sum(n) AS s, count(DISTINCT n) AS d, avg(x) AS a, \
     min(n) AS lo, count(*) FILTER (WHERE n > 1) AS big";

/// The oracle's rows as text.
fn expected(entries: &[Vec<Vec<Row>>], source: &str) -> Vec<String> {
    let query = format!("SELECT {COLUMNS} FROM ({source}) GROUP BY window_start, window_end, tag");
    sorted(&oracle(&[table(entries)], &query))
}

/// A view over a window of the posts.
fn view(options: &str, window: &str) -> String {
    format!(
        "CREATE VIEW v {options} AS SELECT {COLUMNS} FROM {window} WHERE tag <> 'the end' GROUP BY window_start, window_end, tag"
    )
}

const HOP: &str = "HOP(TABLE posts, DESCRIPTOR(t), INTERVAL '4' SECOND, INTERVAL '10' SECOND)";
const HOP_ORACLE: &str = "SELECT *, start AS window_start, start + INTERVAL '10 seconds' AS window_end FROM (
       SELECT posts.*, date_bin(INTERVAL '4 seconds', t) - k AS start
       FROM posts CROSS JOIN (VALUES (INTERVAL '0 seconds'), (INTERVAL '4 seconds'), (INTERVAL '8 seconds')) AS ks (k))
     WHERE t < start + INTERVAL '10 seconds'";
const SESSION: &str = "SESSION(TABLE posts, DESCRIPTOR(t), INTERVAL '6' SECOND)";
const SESSION_ORACLE: &str = "SELECT *, min(t) OVER (PARTITION BY tag, session) AS window_start,
       max(t) OVER (PARTITION BY tag, session) + INTERVAL '6 seconds' AS window_end
     FROM (SELECT *, sum(CASE WHEN t >= last + INTERVAL '6 seconds' THEN 1 ELSE 0 END)
             OVER (PARTITION BY tag ORDER BY t, place) AS session
           FROM (SELECT *, lag(t) OVER (PARTITION BY tag ORDER BY t, place) AS last FROM posts))";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn tumbling_windows_equal_one_query_over_all_rows(entries in shuffled()) {
        let window = "TUMBLE(TABLE posts, DESCRIPTOR(t), INTERVAL '10' SECOND)";
        let got: Vec<RecordBatch> = given(&entries, 5, "", &view("", window)).concat();
        let bins = "SELECT *, date_bin(INTERVAL '10 seconds', t) AS window_start,
             date_bin(INTERVAL '10 seconds', t) + INTERVAL '10 seconds' AS window_end FROM posts";
        prop_assert_eq!(sorted(&got), expected(&entries, bins));
    }

    #[test]
    fn hopping_windows_equal_one_query_over_all_rows(entries in shuffled()) {
        let got: Vec<RecordBatch> = given(&entries, 5, "", &view("", HOP)).concat();
        prop_assert_eq!(sorted(&got), expected(&entries, HOP_ORACLE));
    }

    /// Twelve panes a window, with aggregates that are merged pane by pane.
    #[test]
    fn many_panes_equal_one_query_over_all_rows(entries in shuffled()) {
        let columns = "window_start, window_end, tag, n, count(*) AS rows, sum(n) AS s, avg(x) AS a, max(n) AS hi";
        let hop = "HOP(TABLE posts, DESCRIPTOR(t), INTERVAL '1' SECOND, INTERVAL '12' SECOND)";
        let view = format!("CREATE VIEW v AS SELECT {columns} FROM {hop} WHERE tag <> 'the end' GROUP BY window_start, window_end, tag, n");
        let got: Vec<RecordBatch> = given(&entries, 5, "", &view).concat();
        let starts: Vec<String> = (0..12).map(|k| format!("(INTERVAL '{k} seconds')")).collect();
        let query = format!(
            "SELECT {columns} FROM (SELECT posts.*, date_bin(INTERVAL '1 second', t) - k AS window_start,
               date_bin(INTERVAL '1 second', t) - k + INTERVAL '12 seconds' AS window_end
             FROM posts CROSS JOIN (VALUES {}) AS ks (k)) GROUP BY window_start, window_end, tag, n",
            starts.join(", ")
        );
        prop_assert_eq!(sorted(&got), sorted(&oracle(&[table(&entries)], &query)));
    }

    #[test]
    fn sessions_equal_one_query_over_all_rows(entries in shuffled()) {
        let got: Vec<RecordBatch> = given(&entries, 5, "", &view("", SESSION)).concat();
        prop_assert_eq!(sorted(&got), expected(&entries, SESSION_ORACLE));
    }

    #[test]
    fn count_windows_equal_one_query_over_all_rows(entries in shuffled(), (size, slide) in prop::sample::select(vec![(3, 3), (4, 2), (5, 3), (1, 1)])) {
        let window = format!("COUNT_WINDOW(TABLE posts, DESCRIPTOR(tag), {size}, {slide})");
        let view = format!("CREATE VIEW v AS SELECT {COLUMNS} FROM {window} GROUP BY window_start, window_end, tag");
        let got: Vec<RecordBatch> = given(&entries, 5, "", &view).concat();
        let source = format!(
            "SELECT *, start AS window_start, start + {size} AS window_end FROM (
               SELECT numbered.*, number / {slide} * {slide} - k * {slide} AS start
               FROM (SELECT *, CAST(row_number() OVER (PARTITION BY tag ORDER BY place) AS BIGINT) - 1 AS number,
                            count(*) OVER (PARTITION BY tag) AS has FROM posts) AS numbered
               CROSS JOIN (VALUES (0), (1), (2), (3), (4)) AS ks (k))
             WHERE start >= 0 AND number < start + {size} AND start + {size} <= has"
        );
        let mut got = sorted(&got);
        got.retain(|line| !line.contains("the end"));
        prop_assert_eq!(got, expected(&entries, &source));
    }

    /// Late rows correct what was given: what is said last of a window is what all rows say.
    #[test]
    fn corrected_windows_equal_one_query_over_all_rows(
        entries in shuffled(),
        emit in prop::sample::select(vec!["append", "update"]),
    ) {
        let options = format!("WITH (emit = '{emit}', allowed_lateness = '5s')");
        let views = view(&options, HOP);
        let mut last = std::collections::BTreeMap::new();
        for line in given(&entries, 0, ", allowed_lateness = '1s'", &views).concat().iter().flat_map(in_order) {
            let key: Vec<String> = line.split('|').take(4).map(str::to_string).collect();
            last.insert(key, line);
        }
        let mut last: Vec<String> = last.into_values().collect();
        last.sort();
        prop_assert_eq!(last, expected(&entries, HOP_ORACLE));
    }
}

/// The rows as text, as they come.
fn in_order(rows: &RecordBatch) -> Vec<String> {
    let text = pretty_format_batches(std::slice::from_ref(rows)).unwrap().to_string();
    text.lines().filter(|l| l.starts_with('|')).skip(1).map(squeeze).collect()
}
