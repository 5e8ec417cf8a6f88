//! `tidemill simulate`: a social network on this machine, from recorded posts.
//!
//! Invariant: the protocols are those of [`tidemill::connectors::social::simulate`],
//! which the tests of the collectors connect to; this only reads files and options.

use super::{demo::sample_texts, out::outln, serving::Signals, values};
use clap::{Args, ValueEnum};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tidemill::{
    Error, Result,
    connectors::{
        lines::MAX_LINE,
        social::{
            oauth::Keys,
            post::Network,
            secret::Place,
            simulate::{Fault, Plan, Posted, Simulator},
        },
    },
};

/// Serve a social network's protocol on this machine, from recorded posts.
///
/// For programs that are written without a network or credentials, and for
/// tests: streams, pages and searches as the network has them, and its errors.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill simulate mastodon --listen 127.0.0.1:8080
  tidemill simulate wikimedia --posts changes.jsonl --rate 40/s
  tidemill simulate x --fault 429:30 --fault stall:100 --fault disconnect:50
A program connects to it with: CREATE STREAM … WITH (connector = 'mastodon', url = 'http://127.0.0.1:8080', format = 'post')
Of `bluesky` the url is ws://ADDR/subscribe, of all others http://ADDR.

Each connection to a stream (of weibo, each question) meets the next fault:
  401, 420, 429, 503 …    is answered instead; 429:30 says to come back in 30 seconds
  stall:N                 silence after N records
  half:N                  the connection breaks in the middle of a record, after N
  hangup:N                an orderly end after N records
  disconnect:N            a message that says that the stream ends, after N records
  garbage:N               a message that is none, after N records
  pass                    nothing")]
pub(crate) struct Simulate {
    /// The network.
    network: Name,

    /// Address to listen at; port 0 takes any free port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = values::address)]
    listen: SocketAddr,

    /// A file of posts, one a line: records of the network (such as `tidemill consume` writes), other JSON with a
    /// member `text`, or plain text. Without one, a sample of real posts.
    #[arg(long, value_name = "FILE")]
    posts: Vec<PathBuf>,

    /// So many posts a second, from the first connection on.
    #[arg(long, value_name = "N", default_value = "10", value_parser = values::rate)]
    rate: f64,

    /// What connections meet, one after another.
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,

    /// A file of the tokens that are taken, one a line (of x-v1 the four keys); without it all are.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,

    /// Questions that a token of weibo may ask an hour.
    #[arg(long, value_name = "N", default_value_t = 150)]
    limit: u64,
}

/// The networks, as they are written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    Bluesky,
    Mastodon,
    Wikimedia,
    X,
    #[value(name = "x-v1")]
    XV1,
    Weibo,
}

impl Name {
    fn network(self) -> Network {
        match self {
            Self::Bluesky => Network::Bluesky,
            Self::Mastodon => Network::Mastodon,
            Self::Wikimedia => Network::Wikimedia,
            Self::X => Network::X,
            Self::XV1 => Network::XV1,
            Self::Weibo => Network::Weibo,
        }
    }
}

impl Simulate {
    pub(crate) fn run(self) -> Result<()> {
        let network = self.network.network();
        let posts = if self.posts.is_empty() {
            sample_texts().enumerate().map(|(n, text)| Posted::of_text(network, &text, n)).collect()
        } else {
            let mut posts = Vec::new();
            for path in &self.posts {
                read(path, network, &mut posts)?;
            }
            posts
        };
        if posts.is_empty() {
            return Err(Error::user("there is no post to serve: each file is empty"));
        }
        let mut plan = Plan::new(network, posts);
        (plan.rate, plan.faults, plan.limit) = (Some(self.rate), self.fault, self.limit);
        if let Some(path) = self.tokens {
            let secrets = Place::File(path).read()?;
            if network == Network::XV1 {
                plan.keys = Some(Keys::from_secrets(secrets)?);
            } else {
                plan.tokens = secrets;
            }
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| Error::external("can't start threads").because(e))?;
        runtime.block_on(serve(network, &self.listen.to_string(), plan))
    }
}

async fn serve(network: Network, listen: &str, plan: Plan) -> Result<()> {
    let signals = Signals::listen()?;
    let simulator = Simulator::bind(listen, plan).await?;
    let stage = simulator.stage();
    let address = simulator.address()?;
    let url =
        if network == Network::Bluesky { format!("ws://{address}/subscribe") } else { format!("http://{address}") };
    outln!("simulating {} at {url}; Ctrl-C ends it", network.name());
    if signals.end(|stop| simulator.run(stop)).await? {
        outln!("published {} posts", stage.published());
    }
    Ok(())
}

/// The posts of a file.
fn read(path: &Path, network: Network, posts: &mut Vec<Posted>) -> Result<()> {
    let named = |e| Error::user(format!("can't read {}", path.display())).because(e);
    for (number, line) in BufReader::new(File::open(path).map_err(named)?).lines().enumerate() {
        let line = line.map_err(named)?;
        if line.len() > MAX_LINE {
            let place = format!("{}, line {}", path.display(), number + 1);
            return Err(Error::user(format!("{place}: {} bytes, over the bound of {MAX_LINE}", line.len())));
        }
        if !line.trim().is_empty() {
            posts.push(Posted::from_line(network, line.trim(), posts.len()));
        }
    }
    Ok(())
}
