//! `tidemill replay`: a recording, or a stored history, served as a live stream.
//!
//! Invariant: what is played is read as it is sent, so its size does not matter.
//! Where lines come from is in `recordings.rs`.

use super::{
    data::DataArg,
    out::outln,
    recordings::{self, Wanted},
    serving::Signals,
    values,
};
use clap::Args;
use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tidemill::{
    Error, Result, Timestamp,
    connectors::replay::{Pace, Recording, Replay, ReplayServer, Sent, Share},
};

/// How often a terminal is told how far the replay is.
const TOLD: Duration = Duration::from_secs(2);

/// Serve a recorded stream as a live one.
///
/// Whoever connects gets the lines of a file, the records of a topic, the rows
/// of Parquet files or the documents of a MongoDB collection, from the first
/// one on, at the given pace.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill replay posts.jsonl --listen 127.0.0.1:9999 --rate 1000/s --loop
  tidemill replay posts.jsonl --listen 127.0.0.1:9999 --speed 10x --time created_at
  tidemill replay words --data DIR --from 2026-01-31T15:00:00Z --to 2026-01-31T16:00:00Z --speed 60x
  tidemill replay out/posts --time created_at --speed 10x       a directory of Parquet files
  tidemill replay mongodb://localhost/social.posts --from 7d --speed 100x
A program receives it with: CREATE STREAM … WITH (connector = 'tcp', address = '127.0.0.1:9999')

Posts that their network deleted since are not played. A collection is read by the index on its times \
(--time, `created_at` unless given). The password of \
mongodb://user@host/… is in the environment's variable TIDEMILL_MONGODB_PASSWORD.")]
pub(crate) struct ReplayCommand {
    /// A file of lines, a Parquet file or a directory of them, the name of a topic of raw records, or
    /// mongodb://HOST/DATABASE.COLLECTION.
    #[arg(value_name = "FILE|TOPIC|mongodb://…")]
    recording: String,

    /// Address to listen at; port 0 takes any free port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9999", value_parser = values::address)]
    listen: SocketAddr,

    /// So many lines a second; without it as fast as the client takes them.
    #[arg(long, value_name = "N", value_parser = values::rate, conflicts_with = "speed")]
    rate: Option<f64>,

    /// With the spacing that the records had, so many times faster: 1x, 10x.
    #[arg(long, value_name = "X", value_parser = values::speed)]
    speed: Option<f64>,

    /// Where a line, a row or a document has its time (`created_at`, `commit.time`). A topic's records have also the
    /// time at which they were received.
    #[arg(long, value_name = "FIELD")]
    time: Option<String>,

    /// Only what is of this time or later: 2026-01-31T15:00:00Z, or so long ago: 7d.
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    from: Option<Timestamp>,

    /// Only what is before this time.
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    to: Option<Timestamp>,

    /// Of a document only the text in this member, such as a message as it was received.
    #[arg(long, value_name = "FIELD")]
    field: Option<String>,

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
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from >= to
        {
            return Err(Error::user(format!("--from {from} is not before --to {to}")));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| Error::external("can't start threads").because(e))?;
        let wanted = Wanted { time: self.time, from: self.from, to: self.to, field: self.field };
        let opened = runtime.block_on(recordings::open(&self.recording, &wanted, &self.data))?;
        let pace = match (self.rate, self.speed) {
            (Some(rate), _) => Pace::Rate(rate),
            (None, Some(speed)) => {
                if wanted.time.is_none() && !opened.is_timed {
                    return Err(Error::user("--speed needs --time FIELD: where each line has its time"));
                }
                Pace::Speed(speed, recordings::time_of(wanted.time.as_deref()))
            }
            _ => Pace::Unbounded,
        };
        let share = self.split.map_or(Share::Each, |clients| Share::Split { wait_for: clients });
        let replay = Replay { pace, share, repeat: self.repeat };
        let listen = self.listen.to_string();
        // What it is read from stays open while it is served.
        runtime.block_on(serve(&self.recording, &listen, Arc::clone(&opened.recording), replay))
    }
}

async fn serve(name: &str, listen: &str, recording: Recording, replay: Replay) -> Result<()> {
    let signals = Signals::listen()?;
    let server = ReplayServer::bind(listen, recording, replay).await?;
    outln!("serving {name} at {}; Ctrl-C ends it", server.address()?);
    let sent = server.sent();
    let telling = tokio::spawn(tell(Arc::clone(&sent)));
    let ended = signals.end(|stop| server.run(stop)).await;
    telling.abort();
    if ended? {
        outln!("sent {} lines", sent.lines.load(Ordering::Relaxed));
    }
    Ok(())
}

/// Tells a terminal how far the replay is, where something was sent since.
async fn tell(sent: Arc<Sent>) {
    if !io::stderr().is_terminal() {
        return;
    }
    let mut before = 0;
    let mut due = tokio::time::interval(TOLD);
    loop {
        due.tick().await;
        let lines = sent.lines.load(Ordering::Relaxed);
        if lines != before {
            let rate = (lines - before) / TOLD.as_secs();
            let at = Timestamp(sent.at.load(Ordering::Relaxed));
            let at = if at == Timestamp(0) { String::new() } else { format!(", at {at}") };
            // A terminal that is gone ends nothing.
            let _told = writeln!(io::stderr(), "sent {lines} lines{at}, {rate} a second now");
            before = lines;
        }
    }
}
