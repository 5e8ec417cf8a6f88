//! `simulate` and a program beside it, as users run them: posts come in, and after a kill each is counted once.

use crate::run::{run, start};
use rustix::process::Signal;
use std::{fs, io::Read, net::TcpStream};

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

#[test]
fn a_deleted_post_is_shown_by_no_later_reading_of_history() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let post = |id: u32, more: &str| {
        format!(
            "{{\"id\": \"{id}\", \"created_at\": \"2026-05-01T00:00:0{id}Z\", \"content\": \"<p>words of {id}</p>\", \
             \"account\": {{\"id\": \"7\", \"acct\": \"ada\"}}{more}}}\n"
        )
    };
    // The third passes the second on.
    let mut posts = post(1, "") + &post(2, "") + &post(3, ", \"reblog\": {\"id\": \"2\", \"content\": \"words of 2\"}");
    posts += "{\"event\": \"delete\", \"payload\": \"2\"}\n";
    posts += &post(4, "");
    fs::write(at.join("posts.jsonl"), posts).unwrap();
    let arguments = ["simulate", "mastodon", "--listen", "127.0.0.1:0", "--posts", "posts.jsonl", "--rate", "20"];
    let mut server = start(at, &arguments, "");
    let line = server.wait_for("; Ctrl-C ends it");
    let url = line.split(" at ").nth(1).unwrap().split(';').next().unwrap().to_string();
    let program = format!(
        "CREATE STREAM posts WITH (connector = 'mastodon', url = '{url}', format = 'post');\n\
         CREATE VIEW total AS SELECT kind, count(*) AS n FROM posts GROUP BY kind ORDER BY kind;\n"
    );
    fs::write(at.join("p.sql"), program).unwrap();
    let mut running = start(at, &["run", "p.sql", "--headless", "--no-web", "--data", "d"], "");
    running.wait_for("post 4 ");
    running.signal(Signal::INT);
    running.end().code(0);
    server.signal(Signal::INT);
    server.end().code(0);

    let ids = "SELECT string_agg(json_get(CAST(value AS TEXT), 'id'), '+' ORDER BY _offset) AS ids FROM posts";
    let asked = run(at, &["sql", "--data", "d", "-e", ids], "");
    assert!(asked.code(0).out.contains("1+4"), "{asked:?}");
    let words = |text: &str| (1..=4).filter(|id| text.contains(&format!("words of {id}"))).collect::<Vec<_>>();
    let printed = run(at, &["consume", "posts", "--from-beginning", "--data", "d"], "");
    assert_eq!(words(&printed.code(0).out), [1, 4]);
    assert!(printed.err.contains("left out 2 records that were deleted since"), "{printed:?}");
    assert!(printed.out.contains("\"delete\""), "the notice is no post");
    let described = run(at, &["topic", "describe", "posts", "--data", "d"], "");
    assert!(
        described.out.contains("posts of mastodon: those that a notice deletes are shown no more"),
        "{described:?}"
    );
    for more in [vec![], vec!["--time", "created_at", "--to", "2026-05-01T00:00:03Z"]] {
        let mut arguments = vec!["replay", "posts", "--data", "d", "--listen", "127.0.0.1:0"];
        arguments.extend(&more);
        let mut replay = start(at, &arguments, "");
        let line = replay.wait_for("; Ctrl-C ends it");
        let address = line.split(" at ").nth(1).unwrap().split(';').next().unwrap().to_string();
        let mut played = String::new();
        TcpStream::connect(address).unwrap().read_to_string(&mut played).unwrap();
        // The notice has no time, and lies behind the span.
        assert_eq!(words(&played), if more.is_empty() { vec![1, 4] } else { vec![1] });
        replay.signal(Signal::INT);
        replay.end().code(0);
    }
}
