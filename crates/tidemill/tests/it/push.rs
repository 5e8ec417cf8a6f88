//! Records that are posted to a program which is killed again and again: what was answered with 200 is there, once.

use crate::{
    bad::free_port,
    run::{run, start},
};
use rustix::process::Signal;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

const KILLS: usize = 12;
/// Records of a request.
const RECORDS: usize = 20;
/// Requests after the last kill.
const LAST: usize = 10;

/// Posts a request, over a connection that is made anew when it is gone; `None` when there is no answer.
fn post(connection: &mut Option<BufReader<TcpStream>>, port: u16, key: usize, body: &str) -> Option<u16> {
    if connection.is_none() {
        *connection = TcpStream::connect(("127.0.0.1", port)).ok().map(BufReader::new);
    }
    let mut asked = || -> std::io::Result<u16> {
        let stream = connection.as_mut().ok_or(std::io::ErrorKind::NotConnected)?;
        let head = format!(
            "POST /in HTTP/1.1\r\nhost: mill\r\ncontent-type: application/x-ndjson\r\nidempotency-key: {key}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.get_mut().write_all(format!("{head}{body}").as_bytes())?;
        let (mut line, mut length) = (String::new(), 0);
        stream.read_line(&mut line)?;
        let status =
            line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some(("content-length", told)) => length = told.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        Ok(status)
    };
    let answer = asked().ok();
    if answer != Some(200) {
        *connection = None;
    }
    answer
}

/// Posts numbers until it is told that the last kill is over, and a little longer; how many.
fn client(port: u16, over: &AtomicBool) -> usize {
    let (mut connection, mut key, mut left) = (None, 0, LAST);
    while left > 0 {
        let body: String = (0..RECORDS).map(|i| format!("{{\"n\":{}}}\n", key * RECORDS + i)).collect();
        let after = over.load(Ordering::SeqCst);
        while post(&mut connection, port, key, &body) != Some(200) {
            std::thread::yield_now();
        }
        key += 1;
        left -= usize::from(after);
    }
    key * RECORDS
}

fn answer_of(dir: &Path, query: &str) -> String {
    run(dir, &["sql", "--data", "d", "-e", query], "").code(0).out.clone()
}

#[test]
fn what_is_posted_is_there_once_whenever_the_program_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let program = format!(
        "CREATE STREAM numbers (n BIGINT NOT NULL) WITH (connector = 'http', address = '127.0.0.1:{port}', path = '/in', format = 'json');\n\
         CREATE VIEW total AS SELECT count(*) AS n FROM numbers;\n"
    );
    fs::write(dir.path().join("p.sql"), program).unwrap();
    run(dir.path(), &["check", "p.sql"], "").code(0);
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let client = std::thread::spawn(move || client(port, &told));
    let arguments = ["run", "p.sql", "--headless", "--no-web", "--data", "d", "--interval", "10ms"];
    for kill in 0..KILLS {
        let mut running = start(dir.path(), &arguments, "");
        for _ in 0..=kill % 4 {
            running.wait_for("total: ");
        }
        running.signal(Signal::KILL);
        let _killed = running.end();
    }
    over.store(true, Ordering::SeqCst);
    let mut running = start(dir.path(), &arguments, "");
    let count = client.join().unwrap();
    running.wait_for(&format!("total: {count} |"));
    running.signal(Signal::INT);
    running.end().code(0);
    let there = answer_of(dir.path(), "SELECT count(*) AS n, count(DISTINCT value) AS d FROM numbers");
    assert!(there.contains(&format!("{count} | {count}")), "{count} posted: {there}");
}
