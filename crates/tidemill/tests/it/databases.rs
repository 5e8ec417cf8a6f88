//! Programs that are killed again and again while they write to a database:
//! each number is in the table once.
//!
//! Only with all connectors: `cargo test --workspace --features tidemill/full --test it databases::`

use crate::run::{run, start};
use rustix::process::Signal;
use std::{fs, path::Path};

const ROWS: usize = 60_000;
const KILLS: usize = 20;

/// Kills a program that writes numbers to the sink `with`, then lets it end; `seen` answers a query.
fn kill_and_check(dir: &Path, with: &str, seen: impl Fn(&str) -> Vec<String>) {
    let program = format!(
        "CREATE STREAM numbers WITH (connector = 'generator', rows = '{ROWS}', rows_per_plan = '100');
         CREATE SINK out WITH ({with});
         INSERT INTO out SELECT \"offset\" AS n FROM numbers;
         CREATE VIEW total AS SELECT count(*) AS n FROM numbers;"
    );
    fs::write(dir.join("p.sql"), program).unwrap();
    let plan = run(dir, &["plan", "p.sql", "--data", "d"], "");
    assert!(plan.code(0).out.contains("out: exactly once into "), "{}", plan.out);
    let arguments = ["run", "p.sql", "--headless", "--no-web", "--data", "d"];
    let mut grown = 0;
    for kill in 0..KILLS {
        let before = seen("SELECT count(*) FROM numbers");
        let mut running = start(dir, &[&arguments[..], &["--interval", "10ms"]].concat(), "");
        // After one batch or several: in the middle of whatever it does then.
        for _ in 0..=kill % 4 {
            running.wait_for("total: ");
        }
        running.signal(Signal::KILL);
        let _killed = running.end();
        grown += usize::from(seen("SELECT count(*) FROM numbers") != before);
    }
    assert!(grown > 0, "some kills came while rows were written");
    run(dir, &[&arguments[..], &["--trigger", "drain"]].concat(), "").code(0);
    let sums = seen("SELECT count(*), count(DISTINCT n), min(n), max(n) FROM numbers");
    assert_eq!(sums, [format!("{ROWS}|{ROWS}|0|{}", ROWS - 1)], "nothing lost, nothing twice");
    let left = seen("SELECT count(*) FROM tidemill_staged_numbers");
    assert_eq!(left, ["0"], "nothing staged is left");
}

#[cfg(feature = "sqlite")]
#[test]
fn kills_leave_a_sqlite_table_exact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    kill_and_check(dir.path(), "connector = 'sqlite', path = 'out.db', table = 'numbers'", |query| {
        tidemill::connectors::database::probe::sqlite(&path, query)
    });
}

/// Against the server that `TIDEMILL_POSTGRES` names: skipped without, unless `TIDEMILL_SERVICES=required`.
#[cfg(feature = "postgres")]
#[test]
fn kills_leave_a_postgres_table_exact() {
    let Ok(url) = std::env::var("TIDEMILL_POSTGRES") else {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_POSTGRES is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: TIDEMILL_POSTGRES is not set; ci/services up starts a server");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let seen = |query: &str| runtime.block_on(tidemill::connectors::database::probe::postgres(&url, query));
    seen("DROP TABLE IF EXISTS numbers, tidemill_staged_numbers");
    seen("DELETE FROM tidemill_batches WHERE sink = 'numbers'");
    let dir = tempfile::tempdir().unwrap();
    kill_and_check(dir.path(), &format!("connector = 'postgres', url = '{url}', table = 'numbers'"), seen);
}
