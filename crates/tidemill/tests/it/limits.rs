//! A process at the end of what the system gives it: files that may not grow, and no more open files.
//!
//! The limits are set on the process while it runs and taken away again, so
//! that no right is needed; the program says that it waits, and why, and goes
//! on by itself.

use crate::{
    bad::{connect, free_port},
    run::{PATIENCE, Running, start_by},
    tries::landed,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    time::Instant,
};

/// A connection to the program's page, which is there before its process has none left.
struct Page(BufReader<TcpStream>);

impl Page {
    /// What `/readyz` answers: the first line, and the body.
    fn ready(&mut self) -> String {
        let host = self.0.get_ref().peer_addr().unwrap();
        write!(self.0.get_mut(), "GET /readyz HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let (mut answer, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the page has hung up");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if answer.is_empty() {
                answer.clone_from(&line);
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        answer + &String::from_utf8(body).unwrap()
    }

    /// Asks until the answer is as it should be; gives the seconds that it took, and the answer.
    #[track_caller]
    fn until(&mut self, what: &str, is: impl Fn(&str) -> bool) -> (f64, String) {
        let begun = Instant::now();
        loop {
            let answer = self.ready();
            if is(&answer) {
                return (begun.elapsed().as_secs_f64(), answer);
            }
            assert!(begun.elapsed() < PATIENCE, "never {what}: {answer}");
            std::thread::yield_now();
        }
    }
}

/// Sets what the process may have at most, up to what this one may.
fn limit(running: &Running, resource: Resource, current: Option<u64>) {
    let process = Pid::from_raw(i32::try_from(running.id()).unwrap());
    let maximum = getrlimit(resource).maximum;
    prlimit(process, resource, Rlimit { current, maximum }).unwrap();
}

/// Runs a program whose limit is set to `at(process)` while records come, and taken away again.
fn at_the_limit(resource: Resource, at: u64, told: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (port, address) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let program = format!(
        "CREATE STREAM lines WITH (connector = 'tcp-listen', address = '127.0.0.1:{port}', format = 'text');
         CREATE SINK out WITH (connector = 'files', path = 'out', format = 'text');
         INSERT INTO out SELECT value FROM lines;
         CREATE VIEW total AS SELECT count(*) AS n FROM lines;"
    );
    fs::write(dir.path().join("p.sql"), program).unwrap();
    let arguments = ["run", "p.sql", "--interval", "50ms", "--headless", "--web", &address, "--data", "d"];
    // A write beyond the limit is an error to be told; without this it is a signal that ends the process.
    let mut running = start_by(dir.path(), &["env", "--ignore-signal=XFSZ"], &arguments, "");
    let mut client = connect(port);
    client.write_all(b"line 0\n").unwrap();
    running.wait_for("total: 1 |");
    let mut page = Page(BufReader::new(TcpStream::connect(&address).unwrap()));
    page.until("ready at first", |answer| answer.starts_with("HTTP/1.1 200"));

    limit(&running, resource, Some(at));
    for n in 1..200 {
        writeln!(client, "line {n}").unwrap();
    }
    let not = |answer: &str| answer.starts_with("HTTP/1.1 503") && answer.contains(told);
    let (seconds, answer) = page.until("not ready", not);
    limit(&running, resource, getrlimit(resource).current);
    let (resumed, _) = page.until("ready again", |answer| answer.starts_with("HTTP/1.1 200"));
    landed(format_args!("not ready after {seconds:.2} s, ready again after {resumed:.2} s: {}", answer.trim()));
    assert!(answer.contains("/d/") || answer.contains("out"), "it names the path: {answer}");
    running.wait_for("total: 200 |");
    writeln!(client, "line 200").unwrap();
    running.wait_for("total: 201 |");
    running.signal(Signal::TERM);
    running.end().code(0);
    let lines = written(dir.path());
    assert_eq!(lines.len(), 201);
    assert!(lines.iter().all(|(line, times)| *times == 1 && line.starts_with("line ")), "each once: {lines:?}");
}

/// The lines in all files of the sink, and how often each is there.
fn written(dir: &Path) -> BTreeMap<String, u32> {
    let mut lines = BTreeMap::new();
    for file in fs::read_dir(dir.join("out")).unwrap().map(|file| file.unwrap()) {
        if file.file_name().to_string_lossy().starts_with("batch-") {
            for line in fs::read_to_string(file.path()).unwrap().lines() {
                *lines.entry(line.to_string()).or_default() += 1;
            }
        }
    }
    lines
}

#[test]
fn a_process_whose_files_may_not_grow_says_so_and_goes_on_when_they_may() {
    at_the_limit(Resource::Fsize, 0, "can't");
}

#[test]
fn a_process_without_free_descriptors_says_so_and_goes_on_when_it_has_some() {
    at_the_limit(Resource::Nofile, 3, "Too many open files");
}
