//! `tidemill replay`: a recording served as a live stream.
//!
//! Invariant: the recording is read as it is sent, a line at a time, so its
//! size does not matter; a line over the bound is left out and told in the log.

use super::{
    data::{DataArg, is_raw},
    out::outln,
    values,
};
use arrow_array::cast::AsArray;
use bytes::Bytes;
use clap::Args;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill::{
    Error, Result, Timestamp,
    connectors::{
        format::{
            json::{Paths, Raw, scan_bytes},
            time::instant,
        },
        lines::MAX_LINE,
        replay::{Pace, Recording, Replay, ReplayServer, Share, TimeOf},
    },
    core::StopHandle,
    store::Topic,
};
use tokio::signal::unix::{SignalKind, signal};

/// Serve a recorded stream as a live one.
///
/// Whoever connects gets the lines of a file or the records of a topic, from
/// the first one on, at the given pace.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill replay posts.jsonl --listen 127.0.0.1:9999 --rate 1000/s --loop
  tidemill replay posts.jsonl --listen 127.0.0.1:9999 --speed 10 --time created_at
  tidemill replay words --data DIR --listen 127.0.0.1:9999
A program receives it with: CREATE STREAM … WITH (connector = 'tcp', address = '127.0.0.1:9999')")]
pub(crate) struct ReplayCommand {
    /// A file of lines, or the name of a topic of raw records.
    #[arg(value_name = "FILE|TOPIC")]
    recording: String,

    /// Address to listen at; port 0 takes any free port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9999", value_parser = values::address)]
    listen: SocketAddr,

    /// So many lines a second; without it as fast as the client takes them.
    #[arg(long, value_name = "N", value_parser = values::rate, conflicts_with = "speed")]
    rate: Option<f64>,

    /// By the times in the lines, so many times faster.
    #[arg(long, value_name = "X", value_parser = values::rate, requires = "time")]
    speed: Option<f64>,

    /// Where a line, a JSON object, has its time (`created_at`, `commit.time`).
    #[arg(long, value_name = "FIELD")]
    time: Option<String>,

    /// Begin again at the end.
    #[arg(long = "loop")]
    repeat: bool,

    /// Share one stream among this many clients, each line to one of them, instead of all lines to each.
    #[arg(long, value_name = "CLIENTS")]
    split: Option<usize>,

    #[command(flatten)]
    data: DataArg,
}

impl ReplayCommand {
    pub(crate) fn run(self) -> Result<()> {
        let path = PathBuf::from(&self.recording);
        // Kept open while its topic is served.
        let mut open = None;
        let recording = if path.exists() {
            of_file(&path)?
        } else if self.data.path.join("log").is_dir() {
            let log = self.data.look()?;
            let topic = log.topic(&self.recording)?;
            open = Some(log);
            of_topic(&topic)?
        } else {
            return Err(Error::user(format!(
                "there is no file {}, and {} is no data directory with a topic of that name",
                path.display(),
                self.data.path.display()
            )));
        };
        let pace = match (self.rate, self.speed, &self.time) {
            (Some(rate), ..) => Pace::Rate(rate),
            (None, Some(speed), Some(field)) => Pace::Speed(speed, time_of(field)),
            _ => Pace::Unbounded,
        };
        let share = self.split.map_or(Share::Each, |clients| Share::Split { wait_for: clients });
        let replay = Replay { pace, share, repeat: self.repeat };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| Error::external("can't start threads").because(e))?;
        runtime.block_on(serve(&self.recording, &self.listen.to_string(), recording, replay))?;
        drop(open);
        Ok(())
    }
}

async fn serve(name: &str, listen: &str, recording: Recording, replay: Replay) -> Result<()> {
    let listening = |kind| signal(kind).map_err(|e| Error::external("can't listen for signals").because(e));
    let (mut interrupt, mut terminate) = (listening(SignalKind::interrupt())?, listening(SignalKind::terminate())?);
    let server = ReplayServer::bind(listen, recording, replay).await?;
    outln!("serving {name} at {}; Ctrl-C ends it", server.address()?);
    let sent = server.sent();
    let (handle, stop) = StopHandle::new();
    let running = server.run(stop);
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return ended,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    handle.stop();
    running.await?;
    outln!("sent {} lines", sent.lines.load(std::sync::atomic::Ordering::Relaxed));
    Ok(())
}

/// The lines of a file, opened anew for each round.
fn of_file(path: &Path) -> Result<Recording> {
    let named = |e: io::Error| Error::user(format!("can't read {}", path.display())).because(e);
    if path.is_dir() {
        return Err(Error::user(format!("{} is a directory; replay serves one file", path.display())));
    }
    // Opened once here, so that a file that can't be read is an error at the start.
    drop(File::open(path).map_err(named)?);
    let path = path.to_path_buf();
    Ok(Arc::new(move || match File::open(&path) {
        Ok(file) => Box::new(Lines { input: BufReader::with_capacity(256 << 10, file), number: 0, path: path.clone() }),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the recording can't be opened any more");
            Box::new(std::iter::empty())
        }
    }))
}

struct Lines {
    input: BufReader<File>,
    number: u64,
    path: PathBuf,
}

impl Lines {
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let mut line = Vec::new();
            self.number += 1;
            if (&mut self.input).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)? == 0 {
                return Ok(None);
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            } else if line.len() > MAX_LINE {
                tracing::warn!(path = %self.path.display(), line = self.number, "left out a line of over {MAX_LINE} bytes");
                self.input.skip_until(b'\n')?;
                continue;
            }
            return Ok(Some(Bytes::from(line)));
        }
    }
}

impl Iterator for Lines {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.read().unwrap_or_else(|error| {
            tracing::error!(path = %self.path.display(), line = self.number, %error, "the recording can't be read on");
            None
        })
    }
}

/// The records of a topic, partition after partition.
fn of_topic(topic: &Arc<Topic>) -> Result<Recording> {
    if !is_raw(topic) {
        return Err(Error::user(format!("topic `{}` has columns of its own; replay serves raw records", topic.name())));
    }
    let topic = Arc::clone(topic);
    Ok(Arc::new(move || {
        let topic = Arc::clone(&topic);
        let rows = (0..topic.config().partitions).flat_map(move |p| topic.read(p, topic.start(p), topic.end(p)));
        Box::new(
            rows.map_while(|rows| {
                rows.map_err(|error| tracing::error!(error = error.chain(), "the topic can't be read on")).ok()
            })
            .flat_map(|rows| {
                let values = rows.rows.column(0).as_binary::<i32>().clone();
                (0..rows.rows.num_rows()).map(move |row| Bytes::copy_from_slice(values.value(row)))
            }),
        )
    }))
}

/// Reads a line's time from a member of its JSON object: ISO 8601, or a number of milliseconds.
fn time_of(field: &str) -> TimeOf {
    let path: Vec<String> = field.split('.').map(str::to_string).collect();
    Arc::new(move |line| {
        let mut found = None;
        scan_bytes(line, &Paths::new([&path]), |_, raw| {
            found = match raw {
                Raw::Text { text, .. } => instant(text).map(Timestamp),
                Raw::Number(text) => text.parse().ok().map(Timestamp::from_millis),
                _ => None,
            };
        })
        .ok()?;
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_the_bound_are_left_out_and_the_next_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let long = "x".repeat(MAX_LINE + 1);
        let most = "y".repeat(MAX_LINE);
        std::fs::write(file.path(), format!("a\n{long}\n{most}\n\nb")).unwrap();
        let lines: Vec<Bytes> = of_file(file.path()).unwrap()().collect();
        assert_eq!(lines, [Bytes::from("a"), most.into(), "".into(), "b".into()]);
    }

    #[test]
    fn a_line_says_its_time() {
        let at = time_of("a.at");
        assert_eq!(at(br#"{"a": {"at": "1970-01-01T00:00:01Z"}}"#), Some(Timestamp(1_000_000)));
        assert_eq!(at(br#"{"a": {"at": 1500}}"#), Some(Timestamp(1_500_000)));
        assert_eq!(at(br#"{"a": 1}"#), None);
        assert_eq!(at(b"no json"), None);
    }
}
