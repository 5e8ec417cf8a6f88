//! Topics by hand: made, filled, read, served, deleted.

use crate::run::{run, start};
use rustix::process::Signal;
use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
};

const DATA: [&str; 2] = ["--data", "d"];

fn with<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().copied().chain(DATA).collect()
}

#[test]
fn what_is_produced_is_consumed() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    run(at, &with(&["produce", "words"]), "a\n").code(1).says(&["d is no data directory", "topic create"]);
    run(at, &with(&["topic", "create", "words", "--partitions", "2"]), "").code(0);
    run(at, &with(&["topic", "create", "words"]), "").code(1).says(&["exists already"]);
    run(at, &with(&["produce", "wrods"]), "a\n").code(1).says(&["did you mean `words`?"]);
    run(at, &with(&["produce", "words", "--partition", "2"]), "a\n").code(1).says(&["no partition 2", "2 of them"]);

    let lines: Vec<String> = (0..10_000).map(|i| format!("line {i} 潮汐")).collect();
    let kept = run(at, &with(&["produce", "words"]), &(lines.join("\n") + "\n"));
    assert_eq!(kept.code(0).out, "kept 10000 lines in words partition 0, offsets [0, 10000)");
    let kept = run(at, &with(&["produce", "words", "--partition", "1"]), "last\r\n\nunended");
    assert_eq!(kept.code(0).out, "kept 3 lines in words partition 1, offsets [0, 3)");

    let all = run(at, &with(&["consume", "words", "--from-beginning"]), "");
    assert_eq!(all.code(0).out, lines.join("\n") + "\nlast\n\nunended");
    let oldest = run(at, &with(&["consume", "words", "--from-beginning", "--max", "2", "--offsets"]), "");
    assert_eq!(oldest.code(0).out, "0:0\tline 0 潮汐\n0:1\tline 1 潮汐");
    let newest = run(at, &with(&["consume", "words", "--max", "4"]), "");
    assert_eq!(newest.code(0).out, "line 9999 潮汐\nlast\n\nunended");

    let list = run(at, &with(&["topic", "list"]), "");
    assert_eq!(list.code(0).out, "topic  partitions  records  columns\nwords           2    10003  value");
    let described = run(at, &with(&["topic", "describe", "words"]), "");
    assert!(described.code(0).out.contains("        1             0            3"), "{}", described.out);
    run(at, &with(&["topic", "delete", "words"]), "").code(0);
    run(at, &with(&["consume", "words"]), "").code(1).says(&["there is no topic `words`"]);
}

#[test]
fn a_topic_keeps_the_newest_lines_within_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    run(at, &with(&["topic", "create", "t", "--retention-bytes", "1MB"]), "").code(0);
    let lines: String = (0..40_000).map(|i| format!("{i} {}\n", "x".repeat(90))).collect();
    run(at, &with(&["produce", "t"]), &lines).code(0);
    let kept = run(at, &with(&["consume", "t", "--from-beginning"]), "");
    let first: usize = kept.code(0).out.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(kept.out.lines().count(), 40_000 - first, "the newest are kept, in order");
    assert!((28_000..35_000).contains(&first), "the first {first} of 40000 lines went");
}

#[test]
fn a_line_over_the_bound_is_told_by_number_and_the_rest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &with(&["topic", "create", "t"]), "").code(0);
    let input = format!("a\n{}\nb\n", "x".repeat((1 << 20) + 1));
    let kept = run(dir.path(), &with(&["produce", "t"]), &input);
    kept.code(1).says(&["line 2 is longer than 1048576 bytes"]);
    assert_eq!(kept.out, "kept 1 lines in t partition 0, offsets [0, 1)");
}

/// The address in `serving … at 127.0.0.1:1234; …`.
fn address(line: &str) -> String {
    line.split(" at ").nth(1).unwrap().split(';').next().unwrap().to_string()
}

#[test]
fn a_recording_is_served_whole_to_each_of_two_clients() {
    let dir = tempfile::tempdir().unwrap();
    let lines: Vec<String> = (0..500).map(|i| format!("line {i}")).collect();
    run(dir.path(), &with(&["topic", "create", "t"]), "").code(0);
    run(dir.path(), &with(&["produce", "t"]), &(lines.join("\n") + "\n")).code(0);
    std::fs::write(dir.path().join("lines.txt"), lines.join("\n") + "\n").unwrap();
    for recording in ["lines.txt", "t"] {
        let mut server =
            start(dir.path(), &with(&["replay", recording, "--listen", "127.0.0.1:0", "--rate", "5000/s"]), "");
        let address = address(&server.wait_for("serving "));
        let clients = [(); 2].map(|()| TcpStream::connect(&address).unwrap());
        for client in clients {
            let heard: Vec<String> = BufReader::new(client).lines().map(Result::unwrap).collect();
            assert_eq!(heard, lines, "{recording}");
        }
        server.signal(Signal::INT);
        assert!(server.end().code(0).out.contains("sent 1000 lines"));
    }
    run(dir.path(), &with(&["replay", "nothing"]), "").code(1).says(&["there is no topic `nothing`"]);
}

#[test]
fn a_status_without_a_program_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    run(dir.path(), &["status", "--web", &free], "").code(1).says(&["no program answers at", "--web ADDR"]);
}

#[test]
fn a_running_program_tells_its_status() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = start(dir.path(), &["demo", "--headless", "--web", "127.0.0.1:0"], "");
    let page = demo.wait_for("page: http://");
    demo.wait_for("words: ");
    let status = run(dir.path(), &["status", "--web", page.strip_prefix("page: http://").unwrap()], "");
    assert!(status.code(0).out.starts_with("program demo: running\n"), "{}", status.out);
    assert_eq!(status.out.lines().filter(|l| l.contains("posts tcp 127.0.0.1:")).count(), 3, "{}", status.out);
    demo.signal(Signal::INT);
    demo.end().code(0);
}
