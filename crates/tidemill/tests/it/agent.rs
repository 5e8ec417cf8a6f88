//! Agents as their users run them: checked, fed over TCP, stopped, killed at any time.

mod flume;

use crate::{
    bad::{connect, free_port},
    run::{Running, run, start},
    tries::{first_seed, landed, tries},
};
use rustix::process::Signal;
use std::{
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something holds.
fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// All lines in the files of a directory, in the order of their names.
fn lines(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|about| about.len()).sum()
}

/// From a TCP port through a channel of this type to a sink.
fn netcat(port: u16, channel: &str, sink: &str) -> String {
    format!(
        "[sources.r1]\ntype = 'netcat'\naddress = '127.0.0.1:{port}'\nchannels = ['c1']\n\
         [channels.c1]\ntype = '{channel}'\n[sinks.k1]\nchannel = 'c1'\n{sink}\n"
    )
}

fn listening(port: u16, running: &mut Running) -> std::net::TcpStream {
    running.wait_for("Ctrl-C stops it");
    connect(port)
}

#[test]
fn lines_over_tcp_are_logged_as_flume_logs_them() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    fs::write(dir.path().join("a1.toml"), netcat(port, "memory", "type = 'logger'")).unwrap();
    let checked = run(dir.path(), &["check", "a1.toml"], "");
    checked.code(0).prints(&[
        "r1: tcp-listen 127.0.0.1:",
        "c1 -> k1: logger, at least once",
        "is free to listen at",
        "ok",
    ]);
    let mut agent = start(dir.path(), &["agent", "a1.toml"], "");
    let mut peer = listening(port, &mut agent);
    let other = run(dir.path(), &["check", "a1.toml"], "");
    assert!(other.code(1).err.contains("a1.toml: source \"r1\": can't listen at"), "{}", other.err);
    peer.write_all(b"Hello world!\r\nebb\n").unwrap();
    let line = agent.wait_for("Event:");
    assert_eq!(line, "Event: { headers:{} body: 48 65 6C 6C 6F 20 77 6F 72 6C 64 21              Hello world! }");
    agent.wait_for("65 62 62 ");
    agent.signal(Signal::INT);
    let ended = agent.end();
    ended.code(0).prints(&["stopping: ", "Stopped: r1 2 in · c1 0 waiting · k1 2 out"]);
    assert!(!dir.path().join("tidemill-data").exists(), "an agent in memory keeps nothing");
}

#[test]
fn what_a_durable_channel_holds_is_kept_for_the_next_start() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let path = dir.path().join("a1.toml");
    // Its directory can't be made: a file is in the way.
    fs::write(dir.path().join("out"), "").unwrap();
    fs::write(&path, netcat(port, "file", "type = 'file'\ndirectory = 'out/k1'\nmax_backoff = '100ms'")).unwrap();
    let checked = run(dir.path(), &["check", "a1.toml"], "");
    assert!(checked.code(1).err.contains("sink \"k1\": out/k1 can't be made"), "{}", checked.err);
    let mut agent = start(dir.path(), &["agent", "a1.toml", "--data", "d"], "");
    let mut peer = listening(port, &mut agent);
    peer.write_all(b"one\ntwo\nthree\n").unwrap();
    agent.wait_for("c1 3 waiting · k1 0 out");
    agent.signal(Signal::TERM);
    let ended = agent.end();
    ended
        .code(0)
        .prints(&["Kept in c1: 3 events that no sink has had.", "`tidemill agent a1.toml` goes on with them."]);
    assert!(ended.out.contains("failures (failing: "), "{}", ended.out);

    fs::remove_file(dir.path().join("out")).unwrap();
    let agent = start(dir.path(), &["agent", "a1.toml", "--data", "d", "--quiet"], "");
    until("the lines are in the file", || lines(&dir.path().join("out/k1")) == ["one", "two", "three"]);
    agent.signal(Signal::INT);
    agent.end().code(0).prints(&["Stopped: r1 0 in · c1 0 waiting · k1 3 out"]);
    // A channel is a table.
    let query = "SELECT CAST(body AS VARCHAR) AS text FROM \"a1.c1\" ORDER BY _offset";
    run(dir.path(), &["sql", "--data", "d", "-e", query], "").code(0).prints(&["one", "two", "three"]);
}

#[test]
fn a_file_with_mistakes_is_refused_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = netcat(1, "memory", "type = 'loger'").replace("address", "adress");
    fs::write(dir.path().join("bad.toml"), file).unwrap();
    for command in ["check", "agent"] {
        let ended = run(dir.path(), &[command, "bad.toml"], "");
        let err = &ended.code(1).err;
        assert!(
            err.contains("bad.toml: line 3, column 1: source \"r1\": unknown key `adress`; did you mean `address`?"),
            "{err}"
        );
        assert!(
            err.contains("bad.toml: line 9, column 9: sink \"k1\": there is no sink `loger`; did you mean `logger`?"),
            "{err}"
        );
    }
}

/// Kills without a request for more.
const KILLS: u64 = 24;

/// Kills an agent again and again, when it has written nothing yet, little, or up to 40 kB; gives how many kills came
/// in the middle.
fn killed(dir: &Path, out: &Path, kills: u64) -> u64 {
    let mut grown = 0;
    for kill in 0..kills {
        let before = bytes(out);
        let agent = start(dir, &["agent", "a1.toml", "--data", "d", "--quiet"], "");
        // Multiplied by a large odd number, so that the kills are spread over the range in another order each seed.
        let more = (first_seed() + kill).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let more = if kill % 6 == 0 { 0 } else { 1 + more % 40_000 };
        until("it writes", || bytes(out) >= before + more);
        agent.signal(Signal::KILL);
        let _killed = agent.end();
        grown += u64::from(bytes(out) > before);
    }
    landed(format_args!("{kills} kills, {grown} of them while it wrote"));
    grown
}

#[test]
fn numbers_through_a_durable_channel_come_once_whenever_the_agent_is_killed() {
    let kills = tries(KILLS);
    // Of six or seven bytes each: more than is written before the last kill.
    let numbers = 14_000 * (kills + 1);
    let dir = tempfile::tempdir().unwrap();
    let file = format!(
        "[sources.r1]\ntype = 'seq'\ntotal = {numbers}\nbatch_size = 200\nchannels = ['c1']\n\
         [channels.c1]\ntype = 'file'\ncapacity = 5000\n\
         [sinks.k1]\ntype = 'file'\ndirectory = 'out'\nchannel = 'c1'\nbatch_size = 200\nroll_size = '100KB'\n"
    );
    fs::write(dir.path().join("a1.toml"), file).unwrap();
    let out = dir.path().join("out");
    let grown = killed(dir.path(), &out, kills);
    assert!(grown > kills / 2, "{grown} of {kills} kills came while it wrote");
    assert!((lines(&out).len() as u64) < numbers, "it ended before it was killed enough");
    // Two thousand numbers a second at the least.
    let patience = Duration::from_secs(60 + numbers / 2000);
    start(dir.path(), &["agent", "a1.toml", "--data", "d"], "").end_within(patience).code(0).prints(&["Stopped: "]);
    let got: Vec<u64> = lines(&out).iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(got.len() as u64, numbers, "nothing lost, nothing twice");
    assert!(got.iter().copied().eq(0..numbers), "and in order");
}

#[test]
fn spooled_files_come_once_and_are_renamed_whenever_the_agent_is_killed() {
    const FILES: usize = 40;
    const LINES: usize = 4000;
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    fs::create_dir(&spool).unwrap();
    for file in 0..FILES {
        let text: String = (0..LINES).map(|line| format!("{:08}\n", file * LINES + line)).collect();
        fs::write(spool.join(format!("f{file:03}.log")), text).unwrap();
    }
    let file = "[sources.r1]\ntype = 'spooldir'\ndirectory = 'spool'\nchannels = ['c1']\npoll = '10ms'\n\
                [channels.c1]\ntype = 'file'\ncapacity = 10000\n\
                [sinks.k1]\ntype = 'file'\ndirectory = 'out'\nchannel = 'c1'\nbatch_size = 500\n";
    fs::write(dir.path().join("a1.toml"), file).unwrap();
    let out = dir.path().join("out");
    let grown = killed(dir.path(), &out, KILLS);
    assert!(grown > KILLS / 2, "{grown} kills came while it wrote");
    let agent = start(dir.path(), &["agent", "a1.toml", "--data", "d"], "");
    until("all lines are there", || lines(&out).len() >= FILES * LINES);
    agent.signal(Signal::INT);
    agent.end().code(0);
    let mut got: Vec<usize> = lines(&out).iter().map(|line| line.parse().unwrap()).collect();
    got.sort_unstable();
    assert!(got.iter().copied().eq(0..FILES * LINES), "{} lines", got.len());
    let names = fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| name.ends_with(".log.COMPLETED")));
}
