//! `tidemill demo`: real posts as a live stream, and their trends as bars.
//!
//! ```text
//! sample ─► replay server ═ sockets ═► receivers ─► log ─► batches ─► views ─► screen, page
//! ```
//!
//! Invariant: everything on the way is what a user's own program would have;
//! only the sample's server is the demo's own.

mod sample;
mod trending;

use super::values;
use clap::Args;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tidemill::{
    Duration, Error, Result,
    assemble::{Assembly, Ended, Show},
    connectors::replay::{Pace, Replay, ReplayServer, Share},
    core::StopHandle,
};
use tokio::runtime::{Builder, Runtime};

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

Ctrl-C finishes the batch and keeps everything; the same command continues there.")]
pub(crate) struct Demo {
    /// End by itself after this time, such as 20s.
    #[arg(long = "for", value_name = "TIME", value_parser = values::duration)]
    run_for: Option<Duration>,

    /// Print plain lines, also on a terminal.
    #[arg(long)]
    headless: bool,

    /// Data directory; what an earlier run left there is continued.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Address of the page on this machine; port 0 takes any free port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4040", value_parser = values::address)]
    web: SocketAddr,

    /// Posts per second.
    #[arg(long, value_name = "N", default_value = "2000", value_parser = values::rate)]
    rate: f64,

    /// Connections that receive the stream.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    receivers: u16,
}

/// Time between two batches.
const INTERVAL: Duration = Duration::from_millis(500);

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        let data = self.data.clone().unwrap_or_else(|| PathBuf::from("tidemill-data/demo"));
        let stream = Stream::begin(self.rate, self.receivers)?;
        let context = tidemill::context("demo").interval(INTERVAL).data_dir(&data).build();
        trending::declare(&context, &stream.address.to_string(), self.receivers)?;
        let show = if self.headless { Show::Lines } else { Show::Auto };
        let ended = Assembly::new(context).page(Some(self.web)).show(show).run_for(self.run_for).run()?;
        drop(stream);
        print_end(&ended, &data);
        Ok(())
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

fn print_end(ended: &Ended, data: &Path) {
    super::print_summary(ended);
    println!("Kept in {}: the posts, the ledger of batches and the state of the views.", data.display());
    println!("The same command continues there; to begin anew, delete that directory.");
}
