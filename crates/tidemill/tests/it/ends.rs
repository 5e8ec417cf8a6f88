//! Ends: an exhausted input closes its windows, a signal does not, and a second signal waits for nothing.

use crate::run::{run, start};
use rustix::process::Signal;
use std::{fs, path::Path};

const COLUMNS: &str = "(at TIMESTAMP NOT NULL, n BIGINT NOT NULL, WATERMARK FOR at AS at)";
const SUMS: &str = "CREATE VIEW sums AS SELECT window_end, sum(n) AS n
FROM TUMBLE(TABLE numbers, DESCRIPTOR(at), INTERVAL '10' SECOND) GROUP BY window_end;\n";

fn program(dir: &Path, with: &str) {
    let stream = format!("CREATE STREAM numbers {COLUMNS} WITH ({with}, format = 'json');\n");
    fs::write(dir.join("sums.sql"), stream + SUMS).unwrap();
}

fn record(second: u32, n: u32) -> String {
    format!("{{\"at\":\"2026-05-25T14:00:{second:02}Z\",\"n\":{n}}}\n")
}

const QUIET: [&str; 6] = ["run", "sums.sql", "--headless", "--no-web", "--data", "d"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUIET.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn a_file_that_ends_closes_its_last_window() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "connector = 'files', path = 'in.json'");
    fs::write(dir.path().join("in.json"), record(1, 1) + &record(2, 2) + &record(12, 4)).unwrap();
    let drained = run(dir.path(), &with(&["--trigger", "drain"]), "");
    let out = &drained.code(0).out;
    assert!(out.contains("sums: 2026-05-25T14:00:10Z 3 |"), "{out}");
    assert!(out.contains("sums: 2026-05-25T14:00:20Z 4 |"), "the last window: {out}");
    assert!(out.contains("3 records"), "{out}");
}

#[test]
fn standard_input_that_ends_closes_its_last_window() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "connector = 'stdin'");
    let input = record(1, 1) + &record(2, 2) + &record(12, 4).replace('\n', "");
    let drained = run(dir.path(), &with(&["--trigger", "drain"]), &input);
    let out = &drained.code(0).out;
    assert!(out.contains("sums: 2026-05-25T14:00:20Z 4 |"), "the last window: {out}");
    assert!(out.contains("3 records"), "{out}");

    // Its next input goes on where the first one ended: the window that was given stays as it was.
    let again = run(dir.path(), &with(&["--trigger", "drain"]), &(record(13, 100) + &record(25, 8)));
    let out = &again.code(0).out;
    assert!(out.contains("sums: 2026-05-25T14:00:30Z 8 |"), "{out}");
    assert!(!out.contains("14:00:20Z") && out.contains("1 late"), "{out}");
}

#[test]
fn a_signal_closes_no_window_and_the_next_start_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "connector = 'files', path = 'in.json'");
    let input = dir.path().join("in.json");
    fs::write(&input, record(1, 1) + &record(12, 4)).unwrap();
    let mut first = start(dir.path(), &with(&["--interval", "50ms"]), "");
    first.wait_for("sums: 2026-05-25T14:00:10Z 1 |");
    first.signal(Signal::INT);
    let first = first.end();
    assert!(!first.code(0).out.contains("14:00:20Z"), "{}", first.out);

    fs::write(&input, record(1, 1) + &record(12, 4) + &record(13, 8)).unwrap();
    let second = run(dir.path(), &with(&["--trigger", "drain"]), "");
    let out = &second.code(0).out;
    assert!(out.contains("sums: 2026-05-25T14:00:20Z 12 |") && !out.contains("14:00:10Z"), "{out}");
}
