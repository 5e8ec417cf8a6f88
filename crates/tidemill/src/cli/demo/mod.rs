//! `tidemill demo`: real posts as a live stream, and their trends as bars.
//!
//! ```text
//! sample ─► replay server ═ sockets ═► receivers ─► log ─► batches ─► views ─► screen, page
//! ```
//!
//! Invariant: everything on the way is what a user's own program would have,
//! and the program is plain SQL (`data/*.sql`); only the sample's server is the
//! demo's own.

mod sample;

pub(super) use sample::texts as sample_texts;

use super::{out::outln, page::PageArgs, program, traces::TracesArgs, values};
use clap::{Args, ValueEnum};
use parking_lot::Mutex;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use tidemill::{
    Board, Duration, Error, Result,
    assemble::{Assembly, Show},
    connectors::replay::{Pace, Replay, ReplayServer, Share},
    core::StopHandle,
};
use tokio::runtime::{Builder, Runtime};

/// The stream of the sample; `{address}` and `{receivers}` are put in.
const POSTS: &str = include_str!("../../../data/posts.sql");
/// The stream of Bluesky; `{url}` is put in.
const BLUESKY: &str = include_str!("../../../data/bluesky.sql");
/// The views.
const TRENDING: &str = include_str!("../../../data/demo.sql");
/// Time between two batches: half of the views' slide, so that a slide is shown soon after its end.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a live source may be out of reach before anything came.
const PATIENCE: Duration = Duration::from_secs(30);

/// A live chart of trending hashtags and words from real posts.
///
/// Replays a sample of real posts as a live stream over TCP, receives it with
/// several connections, and shows the top hashtags and words of the last 60
/// seconds, here and on a page.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill demo                        a screen here, a page at http://127.0.0.1:4040
  tidemill demo --for 20s --headless   plain lines, ends by itself
  tidemill demo --live bluesky         the public stream of Bluesky instead of the sample
  tidemill demo --program mine.sql     your own views on the same stream `posts`

The sample's stream has the columns id, text and created_at; that of Bluesky did, text, langs and \
created_at. A program for --program creates views on `posts`, such as
  CREATE VIEW longest AS SELECT text, char_length(text) AS n FROM posts ORDER BY n DESC LIMIT 3;

Ctrl-C finishes the batch and keeps everything; the same command continues there.")]
pub(crate) struct Demo {
    /// End by itself after this time, such as 20s.
    #[arg(long = "for", value_name = "TIME", value_parser = values::duration)]
    run_for: Option<Duration>,

    /// Print plain lines, also on a terminal.
    #[arg(long)]
    headless: bool,

    /// Take posts from a public service instead of the sample.
    #[arg(long, value_name = "SERVICE")]
    live: Option<Live>,

    /// A server that speaks the service's protocol, instead of the public ones.
    #[arg(long, value_name = "URL", hide = true, requires = "live")]
    live_endpoint: Option<String>,

    /// Run the views of this SQL program on the stream `posts`.
    #[arg(long, value_name = "FILE.sql")]
    program: Option<PathBuf>,

    /// Data directory; what an earlier run left there is continued [default: tidemill-data/demo].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    #[command(flatten)]
    page: PageArgs,

    #[command(flatten)]
    traces: TracesArgs,

    /// Posts of the sample per second.
    #[arg(long, value_name = "N", default_value = "2000", value_parser = values::rate, conflicts_with = "live")]
    rate: f64,

    /// Connections that receive the sample.
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with = "live",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    receivers: u16,
}

/// A public service with posts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Live {
    /// The public Jetstream; no credentials are needed.
    Bluesky,
}

impl Demo {
    /// What is wrong with the command line beyond its single words.
    pub(crate) fn check(&self) -> Result<()> {
        self.traces.traces()?;
        self.page.access().map(drop)
    }

    pub(crate) fn run(self) -> Result<()> {
        let (access, traces) = (self.page.access()?, self.traces.traces()?);
        let views = match &self.program {
            Some(path) => program::read(path)?,
            None => TRENDING.to_string(),
        };
        let name = self.name()?;
        let data = self.data.clone().unwrap_or_else(|| Path::new("tidemill-data").join(&name));
        // Kept until the program has ended.
        let mut stream = None;
        let posts = match self.live {
            Some(Live::Bluesky) => {
                let url = self.live_endpoint.as_deref().map(|url| format!("url = '{}',", url.replace('\'', "''")));
                BLUESKY.replace("{url}", &url.unwrap_or_default())
            }
            None => {
                let serving = Stream::begin(self.rate, self.receivers)?;
                let address = serving.address.to_string();
                stream = Some(serving);
                POSTS.replace("{address}", &address).replace("{receivers}", &self.receivers.to_string())
            }
        };
        let context = tidemill::context(&name).interval(INTERVAL).data_dir(&data).build();
        context.declare_sql(&posts)?;
        program::declare(&context, self.program.as_deref(), &views)?;
        let show = if self.headless { Show::Lines } else { Show::Auto };
        let mut assembly =
            Assembly::new(context).page(Some(self.page.web)).access(access).show(show).run_for(self.run_for);
        assembly = assembly.traces(traces);
        let reach = Arc::new(Reach::default());
        if self.live.is_some() {
            let (reach, since) = (Arc::clone(&reach), Instant::now());
            assembly = assembly.fail_when(move |board| reach.lost(board).filter(|_| since.elapsed() >= PATIENCE));
        }
        let ended = assembly.run()?;
        drop(stream);
        if let (0, false, Some(error)) = (ended.records, ended.interrupted, reach.error()) {
            return Err(error);
        }
        super::print_summary(&ended)?;
        outln!("Kept in {}: posts, batches and state.", data.display());
        outln!("The same command continues there; to begin anew, delete that directory.");
        Ok(())
    }

    /// The program's name, and of its directory: other streams and views are other programs.
    fn name(&self) -> Result<String> {
        let mut name = "demo".to_string();
        if self.live == Some(Live::Bluesky) {
            name.push_str("-bluesky");
        }
        if let Some(path) = &self.program {
            name.push('-');
            name.push_str(&program::name_of(path)?);
        }
        Ok(name)
    }
}

/// Whether a live source was ever reached.
#[derive(Debug, Default)]
struct Reach {
    /// Who could not be reached and why, while nothing has come.
    why: Mutex<Option<String>>,
}

impl Reach {
    /// Looks at the board: the error when nothing has come from a source that can't be reached.
    fn lost(&self, board: &Board) -> Option<Error> {
        let inputs = board.inputs();
        let lost = inputs.iter().find(|input| input.state.starts_with("reconnecting"));
        if inputs.iter().any(|input| input.records > 0) {
            *self.why.lock() = None;
        } else if let Some(lost) = lost {
            *self.why.lock() = Some(format!("{} can't be reached, {}", lost.describe, lost.state));
        }
        self.error()
    }

    /// What was seen last.
    fn error(&self) -> Option<Error> {
        let why = self.why.lock().clone()?;
        Some(Error::external(format!("{why}: is this machine on the network? Without --live the demo needs none")))
    }
}

/// The sample's server on threads of its own, until it is dropped.
#[derive(Debug)]
struct Stream {
    address: SocketAddr,
    stop: StopHandle,
    runtime: Option<Runtime>,
}

impl Stream {
    fn begin(rate: f64, receivers: u16) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tidemill-sample")
            .enable_all()
            .build()
            .map_err(|e| Error::external("can't start threads").because(e))?;
        let replay =
            Replay { pace: Pace::Rate(rate), share: Share::Split { wait_for: receivers.into() }, repeat: true };
        let server = runtime.block_on(ReplayServer::bind("127.0.0.1:0", sample::recording(), replay))?;
        let address = server.address()?;
        let (stop, stopping) = StopHandle::new();
        runtime.spawn(async move {
            if let Err(error) = server.run(stopping).await {
                tracing::error!(error = error.chain(), "the sample's server ended");
            }
        });
        Ok(Self { address, stop, runtime: Some(runtime) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill::core::InputReport;

    #[test]
    fn a_live_source_is_given_up_only_when_nothing_ever_came() {
        let (board, reach) = (Board::default(), Reach::default());
        assert!(reach.lost(&board).is_none());
        board.update_input("posts", 0, |input| {
            *input = InputReport { state: "reconnecting in 2.0 s: no route".into(), ..input.clone() };
        });
        let error = reach.lost(&board).unwrap();
        assert!(error.to_string().contains("no route"), "{error}");
        // The input's last word when the program stops hides nothing.
        board.update_input("posts", 0, |input| input.state = "ended".into());
        assert!(reach.lost(&board).is_some());
        board.update_input("posts", 0, |input| input.records = 1);
        assert!(reach.lost(&board).is_none());
        assert!(reach.error().is_none());
    }

    #[test]
    fn the_shipped_programs_are_right() {
        let posts = POSTS.replace("{address}", "127.0.0.1:1").replace("{receivers}", "3");
        for stream in [posts, BLUESKY.replace("{url}", "")] {
            let dir = tempfile::tempdir().unwrap();
            let context = tidemill::context("demo").data_dir(dir.path()).build();
            context.declare_sql(&stream).unwrap();
            context.declare_sql(TRENDING).unwrap();
        }
    }
}
