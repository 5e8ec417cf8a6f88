//! Agents: lines over TCP, through a durable channel, into files; beside an Apache Flume of the same shape.
//!
//! Both are processes of their own with one source, one channel and one sink. The
//! job sends numbered lines over one connection as fast as they are taken, and a
//! run ends when all of them are in the agent's files; then they are read and
//! compared. Flume commits each line of its netcat source by itself, so it is
//! given fewer; rates are compared.

use crate::{Result, measure::median};
use serde::Serialize;
use std::{
    fs,
    io::{BufWriter, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Bytes of a line, without its end.
const LINE: usize = 99;
/// The other one's lines: one of so many.
const FEWER: u64 = 25;
/// A run that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// The last line of the job's output.
#[derive(Debug, Serialize)]
pub(crate) struct Agents {
    job: &'static str,
    /// Our rate over Flume's; nothing where there is none.
    ratio: Option<f64>,
    /// Lines a second from the first one sent until all are in files, median of the runs.
    lines_per_s: f64,
    flume_lines_per_s: Option<f64>,
    /// Whether each run's files held every line once.
    exact: bool,
}

/// Sends `items` lines through our agent, the program at `program`, and fewer through Flume from the jars in `flume`.
///
/// # Errors
/// When an agent can't be run, or does not do it in time.
pub(crate) fn agent(items: u64, runs: usize, program: &Path, flume: Option<&Path>) -> Result<Agents> {
    let (mut ours, mut theirs, mut exact) = (Vec::new(), Vec::new(), true);
    for run in 0..runs {
        let (rate, right) = once(items, |dir, port| start_ours(program, dir, port))?;
        eprintln!("agent: run {run}: tidemill {rate:.0} lines/s");
        ours.push(rate);
        exact &= right;
        if let Some(jars) = flume {
            let (rate, right) = once((items / FEWER).max(1), |dir, port| start_flume(jars, dir, port))?;
            eprintln!("agent: run {run}: flume {rate:.0} lines/s");
            theirs.push(rate);
            exact &= right;
        }
    }
    let (lines_per_s, flume_lines_per_s) = (median(&ours).unwrap_or(0.0), median(&theirs));
    let ratio = flume_lines_per_s.map(|theirs| lines_per_s / theirs);
    Ok(Agents { job: "agent", ratio, lines_per_s, flume_lines_per_s, exact })
}

fn start_ours(program: &Path, dir: &Path, port: u16) -> Result<Command> {
    let file = format!(
        "[sources.r1]\ntype = 'netcat'\naddress = '127.0.0.1:{port}'\nchannels = ['c1']\n\
         [channels.c1]\ntype = 'file'\n\
         [sinks.k1]\ntype = 'file'\ndirectory = '{}'\nroll_interval = '0s'\nchannel = 'c1'\n",
        dir.join("out").display()
    );
    let path = dir.join("a1.toml");
    fs::write(&path, file)?;
    let mut command = Command::new(program);
    command.arg("agent").arg(path).arg("--data").arg(dir.join("data")).arg("--quiet");
    Ok(command)
}

fn start_flume(jars: &Path, dir: &Path, port: u16) -> Result<Command> {
    let file = format!(
        "a1.sources = r1\na1.channels = c1\na1.sinks = k1\n\
         a1.sources.r1.type = netcat\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {port}\n\
         a1.sources.r1.ack-every-event = false\na1.sources.r1.channels = c1\n\
         a1.channels.c1.type = file\na1.channels.c1.checkpointDir = {dir}/checkpoint\n\
         a1.channels.c1.dataDirs = {dir}/data\n\
         a1.sinks.k1.type = file_roll\na1.sinks.k1.channel = c1\na1.sinks.k1.sink.directory = {dir}/out\n\
         a1.sinks.k1.sink.rollInterval = 0\na1.sinks.k1.sink.batchSize = 1000\n",
        dir = dir.display()
    );
    let path = dir.join("a1.conf");
    fs::write(&path, file)?;
    fs::create_dir(dir.join("out"))?;
    let mut command = Command::new("java");
    command.args(["-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]);
    command.arg(format!("{}/*", jars.display()));
    command.args(["org.apache.flume.node.Application", "--no-reload-conf", "-n", "a1", "-f"]).arg(path);
    Ok(command)
}

/// An agent that ends with the job, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn once(items: u64, command: impl Fn(&Path, u16) -> Result<Command>) -> Result<(f64, bool)> {
    let dir = tempfile::tempdir()?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let mut command = command(dir.path(), port)?;
    let said = fs::File::create(dir.path().join("said"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
    let child = command.spawn().map_err(|error| format!("can't run {}: {error}", command.get_program().display()))?;
    let mut agent = Running(child);
    let failed = |what: &str| {
        let said = fs::read_to_string(dir.path().join("said")).unwrap_or_default();
        format!("{}: {what}: {said}", command.get_program().display())
    };
    let until = Instant::now() + PATIENCE;
    let stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => break stream,
            Err(_) if agent.0.try_wait()?.is_some() || Instant::now() > until => {
                return Err(failed("does not listen").into());
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    };
    let begun = Instant::now();
    let mut into = BufWriter::with_capacity(64 << 10, stream);
    for n in 0..items {
        writeln!(into, "{n:0LINE$}")?;
    }
    into.flush()?;
    let (out, whole) = (dir.path().join("out"), items * (LINE as u64 + 1));
    while bytes(&out) < whole {
        if agent.0.try_wait()?.is_some() || Instant::now() > until {
            return Err(failed("has not written all lines").into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    let took = begun.elapsed();
    drop(agent);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = items as f64 / took.as_secs_f64();
    Ok((rate, is_right(&out, items)?))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    // It is made by the agent when it begins.
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn bytes(dir: &Path) -> u64 {
    files(dir).iter().filter_map(|path| path.metadata().ok()).map(|about| about.len()).sum()
}

/// Whether the files hold each line once.
fn is_right(dir: &Path, items: u64) -> Result<bool> {
    let mut seen = vec![false; usize::try_from(items)?];
    for path in files(dir) {
        for line in fs::read_to_string(path)?.lines() {
            let number: usize = line.parse()?;
            if line.len() != LINE || seen.get(number).is_none_or(|seen| *seen) {
                return Ok(false);
            }
            seen[number] = true;
        }
    }
    Ok(seen.iter().all(|seen| *seen))
}
