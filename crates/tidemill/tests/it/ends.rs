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
    assert!(out.contains("14:00:10 sums: 3 |"), "{out}");
    assert!(out.contains("14:00:20 sums: 4 |"), "the last window: {out}");
    assert!(out.contains("3 records"), "{out}");
}

#[test]
fn standard_input_that_ends_closes_its_last_window() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "connector = 'stdin'");
    let input = record(1, 1) + &record(2, 2) + &record(12, 4).replace('\n', "");
    let drained = run(dir.path(), &with(&["--trigger", "drain"]), &input);
    let out = &drained.code(0).out;
    assert!(out.contains("14:00:20 sums: 4 |"), "the last window: {out}");
    assert!(out.contains("3 records"), "{out}");

    // Its next input goes on where the first one ended: the window that was given stays as it was.
    let again = run(dir.path(), &with(&["--trigger", "drain"]), &(record(13, 100) + &record(25, 8)));
    let out = &again.code(0).out;
    assert!(out.contains("14:00:30 sums: 8 |"), "{out}");
    assert!(!out.contains("14:00:20 sums") && out.contains("1 late"), "{out}");
}

#[test]
fn a_signal_closes_no_window_and_the_next_start_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    program(dir.path(), "connector = 'files', path = 'in.json'");
    let input = dir.path().join("in.json");
    fs::write(&input, record(1, 1) + &record(12, 4)).unwrap();
    let mut first = start(dir.path(), &with(&["--interval", "50ms"]), "");
    first.wait_for("14:00:10 sums: 1 |");
    first.signal(Signal::INT);
    let first = first.end();
    assert!(!first.code(0).out.contains("14:00:20 sums"), "{}", first.out);

    fs::write(&input, record(1, 1) + &record(12, 4) + &record(13, 8)).unwrap();
    let second = run(dir.path(), &with(&["--trigger", "drain"]), "");
    let out = &second.code(0).out;
    assert!(out.contains("14:00:20 sums: 12 |") && !out.contains("14:00:10 sums"), "{out}");
}

/// Numbers from a generator into files; a stop reads on for as long as it may.
const NUMBERS: &str = r#"
CREATE STREAM numbers WITH (connector = 'generator', rows = '200000', rows_per_plan = '500');
CREATE SINK out WITH (connector = 'files', path = 'out', format = 'csv');
INSERT INTO out SELECT "offset" FROM numbers;
CREATE VIEW total AS SELECT count(*) AS n FROM numbers;
"#;

/// All numbers that the sink shows, in order.
fn shown(dir: &Path) -> Vec<i64> {
    let files = fs::read_dir(dir.join("out")).unwrap().map(|entry| entry.unwrap().path());
    let visible = files.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with(['.', '_']));
    let mut all: Vec<i64> = visible
        .filter(|path| path.is_file())
        .flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_string).collect::<Vec<_>>())
        .filter_map(|line| line.parse().ok())
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn a_second_signal_ends_at_once_and_what_was_committed_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("sums.sql"), NUMBERS).unwrap();
    let mut first = start(dir.path(), &with(&["--interval", "20ms"]), "");
    first.wait_for("total: ");
    first.signal(Signal::INT);
    first.wait_for("stopping: finishing the batch; again quits at once");
    first.signal(Signal::INT);
    let first = first.end();
    first.code(130).says(&["quit at once", "the last batch will run again at the next start"]);
    assert!(!first.out.contains("Stopped after"), "it did not wait: {}", first.out);
    let kept = shown(dir.path());
    assert!(!kept.is_empty() && kept.len() < 200_000, "{} numbers", kept.len());

    let second = run(dir.path(), &with(&["--trigger", "drain"]), "");
    second.code(0);
    assert!(second.out.contains("continues after batch "), "{}", second.out);
    assert_eq!(shown(dir.path()), (0..200_000).collect::<Vec<_>>(), "each number once");
}

#[test]
fn a_terminal_is_given_back_after_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = crate::pty::open(dir.path(), &["demo", "--web", "127.0.0.1:0", "--data", "d"], &[]);
    // The other screen, then bars in colour.
    demo.shows("\u{1b}[?1049h");
    demo.shows("words");
    demo.shows("█");
    demo.signal(Signal::INT);
    let (status, shown) = demo.end();
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(shown.contains("\u{1b}[36m") || shown.contains("\u{1b}[38;5;6m"), "bars have a colour");
    let after = shown.rsplit("\u{1b}[?1049l").next().unwrap();
    assert!(after.contains("Stopped after batch ") && after.contains("Kept in d:"), "{after}");
    assert!(!after.contains("\u{1b}["), "nothing is drawn behind the screen: {after:?}");
}
