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
