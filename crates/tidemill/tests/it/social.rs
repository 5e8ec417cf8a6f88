//! `simulate` and a program beside it, as users run them: posts come in, and after a kill each is counted once.

use crate::run::{run, start};
use rustix::process::Signal;
use std::fs;

#[test]
fn a_program_reads_a_simulated_network_and_goes_on_after_a_kill() {
    // Not `x`, whose search reaches back seven days, and the posts of a recording are older.
    for network in ["mastodon", "wikimedia", "bluesky"] {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let posts: String = (0..40).map(|n| format!("the mill, turn {n} #tide\n")).collect();
        fs::write(at.join("posts.txt"), posts).unwrap();
        let mut arguments =
            vec!["simulate", network, "--listen", "127.0.0.1:0", "--posts", "posts.txt", "--rate", "10"];
        arguments.extend(["--fault", "hangup:6", "--fault", "half:3"]);
        let mut server = start(at, &arguments, "");
        let line = server.wait_for("; Ctrl-C ends it");
        let url = line.split(" at ").nth(1).unwrap().split(';').next().unwrap().to_string();
        let program = format!(
            "CREATE STREAM posts WITH (connector = '{network}', url = '{url}', format = 'post');\n\
             CREATE VIEW total AS SELECT source, kind, count(*) AS n FROM posts GROUP BY source, kind;\n"
        );
        fs::write(at.join("p.sql"), program).unwrap();
        let running = ["run", "p.sql", "--headless", "--no-web", "--data", "d"];
        let mut first = start(at, &running, "");
        // Killed without a word, in the middle of the stream.
        first.wait_for(&format!("{network} · post "));
        first.signal(Signal::KILL);
        let _killed = first.end();
        let mut second = start(at, &running, "");
        second.wait_for(&format!("{network} · post 40 "));
        second.signal(Signal::INT);
        second.end().code(0);
        let ask = "SELECT count(*) AS n, count(DISTINCT value) AS different FROM posts";
        let answer = run(at, &["sql", "--data", "d", "-e", ask], "");
        assert!(answer.code(0).out.contains("40 |        40"), "{network}: {answer:?}");
        server.signal(Signal::INT);
        assert!(server.end().code(0).out.contains("published 40 posts"));
    }
}

#[test]
fn a_recording_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["simulate", "x-v1", "--posts", "none.txt"], "").code(1).says(&["can't read none.txt"]);
    run(dir.path(), &["simulate", "x", "--fault", "often"], "").code(2).says(&["429:30"]);
}
