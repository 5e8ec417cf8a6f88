//! The demo: results, an end by itself, a start where it stopped, and the
//! errors that a newcomer meets.

use crate::run::{run, start};
use rustix::process::Signal;
use std::net::TcpListener;

const QUIET: [&str; 4] = ["demo", "--headless", "--web", "127.0.0.1:0"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUIET.iter().copied().chain(more.iter().copied()).collect()
}

/// The batch in `Stopped after batch 12: …`.
fn last_batch(out: &str) -> u64 {
    let rest = out.split("Stopped after batch ").nth(1).unwrap_or_else(|| panic!("no summary: {out}"));
    rest.split(':').next().unwrap().parse().unwrap()
}

#[test]
fn it_shows_trends_ends_by_itself_and_continues() {
    let dir = tempfile::tempdir().unwrap();
    let first = run(dir.path(), &with(&["--for", "5s"]), "");
    first.code(0);
    for view in ["hashtags: ", "words: "] {
        let line = first.out.lines().find(|l| l.contains(view)).unwrap_or_else(|| panic!("no {view}: {}", first.out));
        let figures = line.split(view).nth(1).unwrap();
        assert!(figures.split(", ").next().unwrap().rsplit(' ').next().unwrap().parse::<u64>().is_ok(), "{line}");
        assert!(line.contains(" records/s, delay "), "{line}");
    }
    assert!(first.out.contains("hashtags: #") || first.out.contains(", #"), "{}", first.out);
    assert!(first.out.contains("0 refused"), "{}", first.out);
    assert!(first.out.contains("Kept in tidemill-data/demo"), "{}", first.out);
    let before = last_batch(&first.out);

    let second = run(dir.path(), &with(&["--for", "2s"]), "");
    second.code(0);
    assert!(second.out.contains(&format!("continues after batch {before}")), "{}", second.out);
    assert!(last_batch(&second.out) > before, "{}", second.out);
}

#[test]
fn a_signal_finishes_the_batch_and_says_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = None;
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo = start(dir.path(), &with(&[]), "");
        if let Some(before) = before {
            demo.wait_for(&format!("continues after batch {before}"));
        }
        demo.wait_for("words: ");
        demo.signal(signal);
        let ended = demo.end();
        ended.code(0);
        assert!(ended.out.contains("Kept in tidemill-data/demo"), "{}", ended.out);
        before = Some(last_batch(&ended.out));
    }
}

#[test]
fn a_busy_port_and_a_directory_in_use_are_told_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap();
    let refused = run(dir.path(), &["demo", "--headless", "--for", "5s", "--web", &address.to_string()], "");
    refused.code(1).says(&["error: ", &address.port().to_string(), "--web 127.0.0.1:0"]);

    let mut first = start(dir.path(), &with(&["--data", "d"]), "");
    first.wait_for("words: ");
    let second = run(dir.path(), &with(&["--data", "d"]), "");
    second.code(1).says(&["error: ", "the data directory d is in use by process"]);
    first.signal(Signal::INT);
    first.end().code(0);
}

#[test]
fn a_wrong_command_line_is_code_2() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["demo", "--for", "20"], "").code(2).says(&["20s"]);
    run(dir.path(), &["dmeo"], "").code(2).says(&["demo"]);
    run(dir.path(), &["demo", "--web", "example"], "").code(2).says(&["127.0.0.1:4040"]);
}

#[test]
fn another_program_runs_on_the_same_stream() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("my views.sql"),
        "CREATE VIEW longest AS SELECT char_length(text) AS n FROM posts ORDER BY n DESC LIMIT 2;\n\
         CREATE VIEW posts_so_far AS SELECT count(*) AS n FROM posts;\n",
    )
    .unwrap();
    let ended = run(dir.path(), &with(&["--program", "my views.sql", "--for", "3s"]), "");
    let out = &ended.code(0).out;
    let counts: Vec<u64> =
        out.lines().filter_map(|line| line.split(" posts_so_far: ").nth(1)?.split(' ').next()?.parse().ok()).collect();
    assert!(counts.len() > 1 && counts.is_sorted() && counts[0] > 0, "{out}");
    let longest = out.lines().find_map(|line| line.split(" longest: ").nth(1)).unwrap_or_else(|| panic!("{out}"));
    let longest: Vec<u64> = longest.split(" | ").next().unwrap().split(", ").map(|n| n.parse().unwrap()).collect();
    assert!(longest.len() == 2 && longest.is_sorted_by(|a, b| a >= b), "{out}");
    assert!(!out.contains("hashtags:") && out.contains("Kept in tidemill-data/demo-my-views"), "{out}");

    std::fs::write(dir.path().join("wrong.sql"), "CREATE VIEW v AS\nSELECT txet FROM posts;\n").unwrap();
    let wrong = run(dir.path(), &with(&["--program", "wrong.sql", "--for", "3s"]), "");
    wrong.code(1).says(&["error: wrong.sql: line ", "txet"]);
    run(dir.path(), &with(&["--program", "none.sql"]), "").code(1).says(&["can't read the program none.sql"]);
}

#[test]
fn without_a_terminal_it_prints_plain_lines() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run(dir.path(), &["demo", "--web", "127.0.0.1:0", "--for", "3s"], "");
    assert!(ended.code(0).out.contains(" records/s, delay "), "{}", ended.out);
    assert!(!ended.out.contains('\u{1b}') && !ended.err.contains('\u{1b}'), "{ended:?}");
    // A terminal that can't draw gets the same.
    let dumb = crate::pty::open(dir.path(), &["demo", "--web", "127.0.0.1:0", "--for", "3s"], &[("TERM", "dumb")]);
    let (status, shown) = dumb.end();
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(shown.contains(" records/s, delay ") && !shown.contains('\u{1b}'), "{shown:?}");
}
