//! Programs that are killed again and again while they write to MongoDB, S3, Cassandra, HBase or HDFS: each number is
//! there once.
//!
//! Only with these connectors: `cargo test --workspace --features tidemill/full --test it stores::`
//!
//! As [`super::databases`], for sinks whose rows wait beside the program's data until their batch is committed.

use crate::run::{run, start};
use rustix::process::Signal;
use std::{fs, path::Path};

const KILLS: usize = 20;

/// Kills a program that writes numbers to the sink `with`, then lets it end. `count` tells whether something was
/// written, `seen` gives the numbers that readers see. Each row has its number once more as `same`, for a sink whose
/// keys are no values.
fn kill_and_check(dir: &Path, rows: usize, with: &str, count: impl Fn() -> u64, seen: impl Fn() -> Vec<usize>) {
    let program = format!(
        "CREATE STREAM numbers WITH (connector = 'generator', rows = '{rows}', rows_per_plan = '100');
         CREATE SINK out WITH ({with});
         INSERT INTO out SELECT \"offset\" AS n, \"offset\" AS same FROM numbers;
         CREATE VIEW total AS SELECT count(*) AS n FROM numbers;"
    );
    fs::write(dir.join("p.sql"), program).unwrap();
    let plan = run(dir, &["plan", "p.sql", "--data", "d"], "");
    assert!(plan.code(0).out.contains("out: exactly once into "), "{}", plan.out);
    let arguments = ["run", "p.sql", "--headless", "--no-web", "--data", "d"];
    let mut grown = 0;
    for kill in 0..KILLS {
        let before = count();
        let mut running = start(dir, &[&arguments[..], &["--interval", "10ms"]].concat(), "");
        // After one batch or several: in the middle of whatever it does then.
        for _ in 0..=kill % 4 {
            running.wait_for("total: ");
        }
        running.signal(Signal::KILL);
        let _killed = running.end();
        grown += usize::from(count() != before);
    }
    assert!(grown > 0, "some kills came while rows were written");
    run(dir, &[&arguments[..], &["--trigger", "drain"]].concat(), "").code(0);
    let mut numbers = seen();
    numbers.sort_unstable();
    assert_eq!(numbers.len(), rows, "nothing lost, nothing twice");
    assert!(numbers.into_iter().eq(0..rows), "nothing lost, nothing twice");
    let left = fs::read_dir(dir.join("d/programs/p/staged/out")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "nothing staged is left");
}

/// Against the server that `TIDEMILL_MONGODB` names: skipped without, unless `TIDEMILL_SERVICES=required`.
#[cfg(feature = "mongodb")]
#[test]
fn kills_leave_a_mongodb_collection_exact() {
    use tidemill::connectors::mongo::probe;
    let Some(url) = probe::server("kills") else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(probe::forget(&url, &["numbers"]));
    let seen = || {
        let number = |line: &String| {
            let document: serde_json::Value = serde_json::from_str(line).unwrap();
            usize::try_from(document["n"].as_u64().unwrap()).unwrap()
        };
        runtime.block_on(probe::documents(&url, "numbers")).iter().map(number).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let with = format!("connector = 'mongodb', url = '{url}', collection = 'numbers'");
    kill_and_check(dir.path(), 60_000, &with, || runtime.block_on(probe::count(&url, "numbers")), seen);
}

/// Against the server that `TIDEMILL_S3` names: skipped without, unless `TIDEMILL_SERVICES=required`.
#[cfg(feature = "s3")]
#[test]
fn kills_leave_an_s3_bucket_exact() {
    use tidemill::connectors::s3::probe;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(endpoint) = runtime.block_on(probe::server("kills")) else { return };
    let seen = || {
        let number = |line: &String| {
            let (_, row) = line.split_once(' ').unwrap();
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            usize::try_from(row["n"].as_u64().unwrap()).unwrap()
        };
        probe::rows_of(&runtime.block_on(probe::objects(&endpoint, "kills"))).iter().map(number).collect()
    };
    let count = || runtime.block_on(probe::names(&endpoint, "kills")).len() as u64;
    let dir = tempfile::tempdir().unwrap();
    let with = format!("connector = 's3', url = 's3://kills/numbers', endpoint = '{endpoint}'");
    // An object or two a batch: fewer rows than a table gets.
    kill_and_check(dir.path(), 20_000, &with, count, seen);
}

/// Against the server that `TIDEMILL_CASSANDRA` names: skipped without, unless `TIDEMILL_SERVICES=required`.
#[cfg(feature = "cassandra")]
#[test]
fn kills_leave_a_cassandra_table_exact() {
    use tidemill::connectors::cassandra::probe;
    let Some(server) = probe::server() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Of this run: marks that an earlier one deleted would hide those of now.
    let keyspace = format!("kills_{}", std::process::id());
    let class = "{'class': 'SimpleStrategy', 'replication_factor': 1}";
    let make = format!("CREATE KEYSPACE {keyspace} WITH replication = {class}");
    runtime.block_on(probe::run(&server, &[&make]));
    let rows = |query: String| runtime.block_on(probe::rows(&server, &query));
    let count = || {
        let mark = rows(format!("SELECT batch_number FROM {keyspace}.tidemill_batches WHERE sink = 'numbers'"));
        mark.first().map_or(0, |batch| batch.parse().unwrap())
    };
    let seen = || {
        let number = |row: String| {
            let (n, same) = row.split_once('|').unwrap();
            assert_eq!(n, same, "a row is whole");
            n.parse::<usize>().unwrap()
        };
        rows(format!("SELECT n, same FROM {keyspace}.numbers")).into_iter().map(number).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let with = format!(
        "connector = 'cassandra', hosts = '{server}', keyspace = '{keyspace}', table = 'numbers', key = 'n', \
         user = '{}', password_env = '{}'",
        probe::USER,
        probe::PASSWORD
    );
    kill_and_check(dir.path(), 20_000, &with, count, seen);
    runtime.block_on(probe::run(&server, &[&format!("DROP KEYSPACE {keyspace}")]));
}

/// Against the gateway that `TIDEMILL_HBASE` names: skipped without, unless `TIDEMILL_SERVICES=required`.
#[cfg(feature = "hbase")]
#[test]
fn kills_leave_an_hbase_table_exact() {
    use tidemill::connectors::hbase::probe;
    let Some(server) = probe::server() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // A table of this run: marks of an earlier one would be ahead.
    let table = format!("kills-{}", std::process::id());
    runtime.block_on(probe::forget(&server, &table));
    let seen = || {
        let number = |cell: probe::Cell| {
            let key = String::from_utf8(cell.key).unwrap();
            assert_eq!(cell.value, key.as_bytes(), "a row is whole");
            key.parse::<usize>().unwrap()
        };
        runtime.block_on(probe::cells(&server, &table)).into_iter().map(number).collect()
    };
    let count = || runtime.block_on(probe::batch(&server, &table, "d"));
    let dir = tempfile::tempdir().unwrap();
    let with =
        format!("connector = 'hbase', url = '{server}', table = '{table}', family = 'd', key = 'n', create = 'true'");
    kill_and_check(dir.path(), 20_000, &with, count, seen);
}

/// Against the server that `TIDEMILL_HDFS` names: skipped without, unless `TIDEMILL_SERVICES=required`.
#[cfg(feature = "hdfs")]
#[test]
fn kills_leave_a_directory_of_hdfs_exact() {
    use tidemill::connectors::{hdfs::probe, objects::probe::rows_of};
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(hdfs) = runtime.block_on(probe::server("kills")) else { return };
    let seen = || {
        let number = |line: &String| {
            let (_, row) = line.split_once(' ').unwrap();
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            usize::try_from(row["n"].as_u64().unwrap()).unwrap()
        };
        rows_of(&runtime.block_on(probe::files(&hdfs, "/kills"))).iter().map(number).collect()
    };
    let count = || runtime.block_on(probe::names(&hdfs, "/kills")).len() as u64;
    let dir = tempfile::tempdir().unwrap();
    let with = format!("connector = 'hdfs', url = '{hdfs}/kills/numbers'");
    // A file or two a batch, each with its waits for the NameNode.
    kill_and_check(dir.path(), 10_000, &with, count, seen);
}
