//! Every aggregate function that DataFusion has, kept from batch to batch.

use super::{Row, batches, entries, oracle, session, shown, sorted};
use crate::testing::SqlProgram;
use arrow_array::RecordBatch;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// How exact an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exact {
    /// The same to the last digit.
    Yes,
    /// Sums of floating-point numbers depend on the order in which they are added.
    Rounded,
    /// The parts of a list, or of a text divided by commas, in any order.
    AnyOrder,
}
use Exact::{AnyOrder, Rounded, Yes};

/// A call of each aggregate, by the function's name. `u` numbers the rows.
const CALLS: [(&str, &str, Exact); 59] = [
    ("any_value", "any_value(tag)", Yes),
    ("approx_distinct", "approx_distinct(n)", Yes),
    ("approx_median", "approx_median(n)", Yes),
    ("approx_percentile_cont", "approx_percentile_cont(0.75) WITHIN GROUP (ORDER BY n)", Yes),
    ("approx_percentile_cont_with_weight", "approx_percentile_cont_with_weight(n, 0.5) WITHIN GROUP (ORDER BY x)", Yes),
    ("array_agg", "array_agg(n)", AnyOrder),
    ("array_agg", "array_agg(n ORDER BY u)", Yes),
    ("array_agg", "array_agg(DISTINCT n)", AnyOrder),
    ("array_agg", "array_agg(n) FILTER (WHERE n > 1)", AnyOrder),
    ("avg", "avg(n)", Yes),
    ("avg", "avg(x)", Rounded),
    ("avg", "avg(DISTINCT x)", Rounded),
    ("bit_and", "bit_and(n)", Yes),
    ("bit_or", "bit_or(n)", Yes),
    ("bit_xor", "bit_xor(n)", Yes),
    ("bool_and", "bool_and(n > 1)", Yes),
    ("bool_or", "bool_or(n > 1)", Yes),
    ("corr", "corr(n, x)", Rounded),
    ("count", "count(*)", Yes),
    ("count", "count(n)", Yes),
    ("count", "count(DISTINCT n)", Yes),
    ("count", "count(DISTINCT tag)", Yes),
    ("count", "count(DISTINCT t)", Yes),
    ("count", "count(DISTINCT x)", Yes),
    ("count", "count(DISTINCT n) FILTER (WHERE x > 0.3)", Yes),
    ("count", "count(*) FILTER (WHERE n > 2)", Yes),
    ("covar_pop", "covar_pop(n, x)", Rounded),
    ("covar_samp", "covar_samp(n, x)", Rounded),
    ("first_value", "first_value(n ORDER BY u)", Yes),
    ("first_value", "first_value(n ORDER BY n DESC NULLS LAST)", Yes),
    ("last_value", "last_value(n ORDER BY u)", Yes),
    ("last_value", "last_value(tag ORDER BY u DESC)", Yes),
    ("max", "max(n)", Yes),
    ("max", "max(tag)", Yes),
    ("max", "max(t)", Yes),
    ("median", "median(n)", Yes),
    ("median", "median(DISTINCT x)", Rounded),
    ("min", "min(n)", Yes),
    ("min", "min(tag)", Yes),
    ("nth_value", "nth_value(n, 2 ORDER BY u)", Yes),
    ("percentile_cont", "percentile_cont(0.25) WITHIN GROUP (ORDER BY x)", Rounded),
    ("regr_avgx", "regr_avgx(n, x)", Rounded),
    ("regr_avgy", "regr_avgy(n, x)", Rounded),
    ("regr_count", "regr_count(n, x)", Yes),
    ("regr_intercept", "regr_intercept(n, x)", Rounded),
    ("regr_r2", "regr_r2(n, x)", Rounded),
    ("regr_slope", "regr_slope(n, x)", Rounded),
    ("regr_sxx", "regr_sxx(n, x)", Rounded),
    ("regr_sxy", "regr_sxy(n, x)", Rounded),
    ("regr_syy", "regr_syy(n, x)", Rounded),
    ("stddev", "stddev(n)", Rounded),
    ("stddev_pop", "stddev_pop(x)", Rounded),
    ("string_agg", "string_agg(CAST(n AS VARCHAR), ',')", AnyOrder),
    ("string_agg", "string_agg(CAST(n AS VARCHAR), ',' ORDER BY u)", Yes),
    ("sum", "sum(n)", Yes),
    ("sum", "sum(x)", Rounded),
    ("sum", "sum(DISTINCT n)", Yes),
    ("var", "var(n)", Rounded),
    ("var_pop", "var_pop(n) FILTER (WHERE n IS NOT NULL)", Rounded),
];

/// Rows with a number of their own.
fn numbered(entries: &[Vec<Vec<Row>>]) -> Vec<Vec<RecordBatch>> {
    let mut next = 0_i64;
    let mut number = |rows: RecordBatch| {
        let count = i64::try_from(rows.num_rows()).unwrap();
        let numbers = arrow_array::Int64Array::from_iter_values(next..next + count);
        next += count;
        let mut columns: Vec<(String, arrow_array::ArrayRef)> =
            rows.schema().fields().iter().map(|f| f.name().clone()).zip(rows.columns().iter().cloned()).collect();
        columns.push(("u".to_string(), std::sync::Arc::new(numbers)));
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap()
    };
    batches(entries).into_iter().map(|entry| entry.into_iter().map(&mut number).collect()).collect()
}

/// A line of an answer in comparable form.
fn comparable(line: &str, exact: Exact) -> String {
    let fields = line.split('|').map(|field| match exact {
        Yes => field.to_string(),
        Rounded => {
            field.parse::<f64>().map_or(field.to_string(), |x| format!("{:.6}", if x.abs() < 1e-9 { 0.0 } else { x }))
        }
        AnyOrder => {
            let mut parts: Vec<&str> = field.trim_matches(['[', ']']).split(',').map(str::trim).collect();
            parts.sort_unstable();
            parts.join(",")
        }
    });
    fields.collect::<Vec<_>>().join("|")
}

fn lines(rows: &[RecordBatch], exact: Exact) -> Vec<String> {
    let mut lines: Vec<String> = sorted(rows).iter().map(|line| comparable(line, exact)).collect();
    lines.sort();
    lines
}

/// Runs `check` for each call and names all that fail.
fn check_each(check: &dyn Fn(&str, Exact) -> tidemill_core::Result<bool>) -> Result<(), TestCaseError> {
    // Any value is right that is one of them: the order of rows decides, and partitions have none.
    let calls = CALLS.iter().filter(|(name, ..)| *name != "any_value");
    let wrong = calls.filter_map(|(_, call, exact)| match check(call, *exact) {
        Ok(true) => None,
        Ok(false) => Some(format!("{call}: another answer")),
        Err(e) => Some(format!("{call}: {e}")),
    });
    let wrong: Vec<String> = wrong.collect();
    prop_assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

const POSTS: &str = "CREATE STREAM posts (WATERMARK FOR t AS t - INTERVAL '10' SECOND) WITH (connector = 'program');\n";

#[test]
fn no_aggregate_is_forgotten() {
    let session = session::session(session::config(1), None);
    let called: BTreeSet<&str> = CALLS.iter().map(|(name, ..)| *name).collect();
    let all: BTreeSet<String> = session
        .state()
        .aggregate_functions()
        .values()
        .map(|function| function.name().to_string())
        // It says which columns a ROLLUP left out, and those are refused.
        .filter(|name| name != "grouping")
        .collect();
    assert_eq!(all, called.into_iter().map(str::to_string).collect::<BTreeSet<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn each_equals_one_query_over_all_rows(entries in entries(), partitions in 1..4_usize) {
        let batches = numbered(&entries);
        let all: Vec<RecordBatch> = batches.iter().flatten().cloned().collect();
        check_each(&|call, exact| {
            let query = |keys: &str, group: &str| format!("SELECT {keys}{call} AS value FROM posts{group}");
            let (grouped, total) = (query("tag, ", " GROUP BY tag"), query("", ""));
            let mut program = SqlProgram::new(partitions);
            program.queue("posts", batches.clone());
            program.start(&format!("{POSTS}CREATE VIEW v AS {grouped}; CREATE VIEW total AS {total}"))?;
            for _ in 0..entries.len() {
                program.step()?;
            }
            let of = |view: &str, query: &str| {
                lines(&[program.view(view).unwrap()], exact) == lines(&oracle(&all, query), exact)
            };
            Ok(of("v", &grouped) && of("total", &total))
        })?;
    }

    #[test]
    fn each_works_within_windows(entries in entries(), partitions in 1..4_usize) {
        let mut entries = entries;
        // In each partition, since the watermark is that of the slowest.
        let parts = entries.iter().map(Vec::len).max().unwrap_or(1);
        entries.push(vec![vec![(1_000, "last", None)]; parts]);
        let batches = numbered(&entries);
        let all: Vec<RecordBatch> = batches.iter().flatten().cloned().collect();
        check_each(&|call, exact| {
            let mut program = SqlProgram::new(partitions);
            program.queue("posts", batches.clone());
            program.start(&format!(
                "{POSTS}CREATE VIEW v AS SELECT window_start AS k, tag, {call} AS value
                 FROM TUMBLE(posts, t, INTERVAL '5' SECOND) GROUP BY window_start, tag"
            ))?;
            let mut got = Vec::new();
            for rows in shown(&program, entries.len(), 1).into_iter().flatten() {
                got.extend(lines(&[rows], exact));
            }
            got.sort();
            let expected = oracle(&all, &format!(
                "SELECT date_bin(INTERVAL '5' SECOND, t) AS k, tag, {call} AS value FROM posts WHERE tag <> 'last' GROUP BY 1, 2"
            ));
            Ok(got == lines(&expected, exact))
        })?;
    }
}

#[test]
fn a_distinct_that_cannot_be_kept_has_a_way_around() {
    let entries =
        vec![vec![vec![(1, "a", Some(5)), (2, "a", Some(5))]], vec![vec![(3, "a", Some(3)), (3, "a", Some(5))]]];
    let mut program = SqlProgram::new(2);
    program.queue("posts", batches(&entries));
    let view = |query: &str| format!("CREATE VIEW v AS {query}");
    let error = program.start(&format!("{POSTS}{}", view("SELECT bit_xor(DISTINCT n) AS b FROM posts"))).unwrap_err();
    assert!(
        error.to_string().contains("line 2, column 25: CREATE VIEW v: `bit_xor` of DISTINCT values over a stream"),
        "{error}"
    );
    let mut program = SqlProgram::new(2);
    program.queue("posts", batches(&entries));
    program.start(&format!("{POSTS}{}", view("SELECT bit_xor(n) AS b FROM (SELECT DISTINCT n FROM posts)"))).unwrap();
    program.step().unwrap();
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|6|"]);
}
