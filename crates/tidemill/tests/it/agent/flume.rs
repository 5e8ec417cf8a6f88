//! Hops between an agent and a real Apache Flume, both ways, plain and compressed.
//!
//! Against the Flume whose first port `TIDEMILL_FLUME` names (ci/flume/a1.conf says what the ports are): skipped
//! without, unless `TIDEMILL_SERVICES=required`.

use super::{lines, until};
use crate::{
    bad::connect,
    run::{run, start},
};
use rustix::process::Signal;
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    time::SystemTime,
};

/// The first port of Flume, and the directory of its files.
fn server() -> Option<(u16, PathBuf)> {
    let (Ok(port), Ok(dir)) = (std::env::var("TIDEMILL_FLUME"), std::env::var("TIDEMILL_FLUME_DIR")) else {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_FLUME is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: TIDEMILL_FLUME is not set; ci/services up starts Apache Flume");
        return None;
    };
    Some((port.parse().unwrap(), dir.into()))
}

/// A name that no other run has.
fn mark() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("run-{}-{}", std::process::id(), since.as_nanos())
}

#[test]
fn flume_has_every_event_that_an_agent_sends() {
    const NUMBERS: usize = 5000;
    let Some((port, out)) = server() else { return };
    for (place, port, more) in [("plain", port, ""), ("deflated", port + 1, "compression = 'deflate'\n")] {
        let (dir, mark) = (tempfile::tempdir().unwrap(), mark());
        let file = format!(
            "[sources.r1]\ntype = 'seq'\ntotal = {NUMBERS}\nchannels = ['c1']\n\
             [[sources.r1.interceptors]]\ntype = 'static'\nkey = 'run'\nvalue = '{mark}'\n\
             [channels.c1]\ntype = 'file'\n\
             [sinks.k1]\ntype = 'avro'\naddress = '127.0.0.1:{port}'\nchannel = 'c1'\ncall_size = 300\n{more}"
        );
        fs::write(dir.path().join("a1.toml"), file).unwrap();
        run(dir.path(), &["check", "a1.toml"], "").code(0).prints(&["sink \"k1\": 127.0.0.1:", " answers"]);
        let ended = run(dir.path(), &["agent", "a1.toml", "--data", "d"], "");
        ended.code(0).prints(&[&format!("k1 {NUMBERS} out")]);
        assert!(!ended.out.contains("failures"), "{}", ended.out);
        let begin = format!("{{run={mark}}} ");
        let got = || {
            let all = lines(&out.join(place));
            all.iter().filter_map(|line| line.strip_prefix(&begin)?.parse::<usize>().ok()).collect::<Vec<_>>()
        };
        until("Flume has written them", || got().len() >= NUMBERS);
        assert!(got().into_iter().eq(0..NUMBERS), "{place}: each once, in order");
    }
}

#[test]
fn an_agent_has_every_event_that_flume_sends() {
    const LINES: usize = 500;
    let Some((port, _)) = server() else { return };
    let (dir, mark) = (tempfile::tempdir().unwrap(), mark());
    let source = |name: &str, port: u16, more: &str| {
        format!(
            "[sources.{name}]\ntype = 'avro'\naddress = '127.0.0.1:{port}'\nchannels = ['{name}']\n{more}[channels.{name}]\ntype = 'file'\n"
        )
    };
    let file = source("plain", port + 4, "")
        + &source("zip", port + 5, "compression = 'deflate'\n")
        + "[sinks.k1]\ntype = 'logger'\nmax_bytes = 80\nchannel = 'plain'\n\
           [sinks.k2]\ntype = 'file'\ndirectory = 'out'\nchannel = 'zip'\n";
    fs::write(dir.path().join("a1.toml"), file).unwrap();
    let mut agent = start(dir.path(), &["agent", "a1.toml", "--data", "d"], "");
    agent.wait_for("Ctrl-C stops it");
    for port in [port + 2, port + 3] {
        let mut peer = connect(port);
        let mut answers = BufReader::new(peer.try_clone().unwrap()).lines();
        for line in 0..LINES {
            writeln!(peer, "{mark} {line}").unwrap();
            assert_eq!(answers.next().unwrap().unwrap(), "OK");
        }
    }
    let line = agent.wait_for(&format!("{mark} {}", LINES - 1));
    assert!(line.contains("headers:{from=flume}"), "{line}");
    let got = || {
        let all = lines(&dir.path().join("out"));
        all.iter().filter_map(|line| line.strip_prefix(&mark)?.trim().parse::<usize>().ok()).collect::<Vec<_>>()
    };
    until("the compressed ones are there", || got().iter().collect::<BTreeSet<_>>().len() == LINES);
    agent.signal(Signal::INT);
    let ended = agent.end();
    ended.code(0).prints(&["Stopped: "]);
    let logged = ended.out.lines().filter(|line| line.contains(&mark)).count();
    assert!(logged >= LINES, "{logged} of {LINES}");
}

/// What an import writes of connectors is what these understand; and whether their servers are there is told.
#[cfg(all(feature = "kafka", feature = "hbase"))]
#[test]
fn imported_connectors_are_understood() {
    let toml = include_str!("../../../../agent/src/flume/golden/kafka-syslog-hbase.toml");
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = server.local_addr().unwrap().to_string();
    let [tcp, udp, gone, gate] = [(); 4].map(|()| format!("127.0.0.1:{}", crate::bad::free_port()));
    let mut file = toml.to_owned();
    for (from, to) in [
        ("0.0.0.0:5140", &tcp),
        ("0.0.0.0:5141", &udp),
        // One that answers is enough.
        ("kafka-1:9092,kafka-2:9092", &format!("{gone},{there}")),
        ("kafka-1:9092", &there),
        ("127.0.0.1:8080", &gate),
    ] {
        assert!(file.contains(from), "{from}");
        file = file.replace(from, to);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a1.toml"), file).unwrap();
    let checked = run(dir.path(), &["check", "a1.toml"], "");
    checked.code(1).prints(&[
        &format!("in: kafka {gone},{there} topic orders, refunds"),
        &format!("tcp: syslog tcp {tcp}"),
        &format!("udp: syslog udp {udp}"),
        &format!("out: kafka {there} topic mirror (text), at least once"),
        &format!("over: kafka {there} topic default-flume-topic (text)"),
        &format!("table: hbase http://{gate} (table events, family raw, upsert by id), exactly once"),
        &format!("source \"in\": {there} answers"),
        &format!("source \"tcp\": {tcp} is free to listen at"),
        &format!("source \"udp\": {udp} (UDP) is free to listen at"),
        &format!("sink \"out\": {there} answers"),
    ]);
    let told = format!("a1.toml: sink \"table\": can't connect to {gate}: ");
    assert!(checked.err.contains(&told), "{}", checked.err);
    assert_eq!(checked.err.matches("can't").count(), 1, "{}", checked.err);
}
