//! Stand-ins for social networks: each protocol, served on this machine from recorded posts.
//!
//! For tests, and for those who write a program without a network or
//! credentials. A [`Simulator`] publishes posts one after another, on a
//! [`Stage`] that a test moves or at a pace, and serves streams, pages and
//! searches as the network does; [`Fault`]s make it fail as networks do.
//!
//! Invariant: what it sends depends only on what was published, what was asked
//! and the faults that are due; a client that is slow holds up itself alone.
//! Called by the tests of collectors and by `tidemill simulate`.

mod bluesky;
mod dress;
mod feed;
mod frames;
mod mastodon;
mod serve;
mod weibo;
mod wikimedia;
mod x;
mod x_v1;

pub use dress::Posted;

use super::{clock::WallClock, oauth::Keys, post::Network, secret::Secret};
use parking::Queue;
use std::{net::SocketAddr, str::FromStr, sync::Arc, time::Duration};
use tidemill_core::{Clock, Error, Result, Stop};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

/// How a connection fails. Each connection to a stream (of Weibo, each question) takes the next one that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not at all.
    Pass,
    /// With this code instead of an answer; with a header that says when to come back, in so many seconds.
    Status(u16, Option<u64>),
    /// By silence after so many records, without keep-alives.
    Stall(usize),
    /// In the middle of a record, after so many.
    Half(usize),
    /// By an orderly end after so many records.
    HangUp(usize),
    /// With a message that says why, after so many records; where the protocol has one.
    Disconnect(usize),
    /// With a message that is none, after so many records, and goes on.
    Garbage(usize),
}

impl FromStr for Fault {
    type Err = String;

    /// `pass`, a code such as `401` or `429:30`, or `stall:10`, `half:10`, `hangup:10`, `disconnect:10`, `garbage:10`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (word, number) = text.split_once(':').unwrap_or((text, ""));
        let wrong = || {
            "write a code such as 401, 503 or 429:30 (come back in 30 s), or stall:N, half:N, hangup:N, disconnect:N, garbage:N (after N records), or pass".to_string()
        };
        let after = || number.parse::<usize>().map_err(|_| wrong());
        match word {
            "pass" if number.is_empty() => Ok(Self::Pass),
            "stall" => Ok(Self::Stall(after()?)),
            "half" => Ok(Self::Half(after()?)),
            "hangup" => Ok(Self::HangUp(after()?)),
            "disconnect" => Ok(Self::Disconnect(after()?)),
            "garbage" => Ok(Self::Garbage(after()?)),
            _ => {
                let code = word.parse().ok().filter(|code| (400..600).contains(code)).ok_or_else(wrong)?;
                let seconds = if number.is_empty() { None } else { Some(number.parse().map_err(|_| wrong())?) };
                Ok(Self::Status(code, seconds))
            }
        }
    }
}

/// What is simulated, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The network.
    pub network: Network,
    /// What is published, in this order.
    pub posts: Vec<Posted>,
    /// Posts a second, from the first connection on; `None` publishes what the [`Stage`] is told to.
    pub rate: Option<f64>,
    /// What connections meet, one after another; then nothing.
    pub faults: Vec<Fault>,
    /// Codes that questions beside the stream (pages, searches, rules) meet, one after another.
    pub refusals: Vec<u16>,
    /// The tokens that are taken; any, and none, when this is empty.
    pub tokens: Vec<Secret>,
    /// The keys that requests are signed with, where the network has that.
    pub keys: Option<Keys>,
    /// Questions that a token may ask an hour, where the network counts.
    pub limit: u64,
    /// Silence after which a stream is kept alive; the network's own unless said.
    pub keep_alive: Option<Duration>,
    /// The server's time.
    pub clock: Arc<dyn Clock>,
}

impl Plan {
    /// A network that publishes these posts and takes everybody.
    pub fn new(network: Network, posts: Vec<Posted>) -> Self {
        Self {
            network,
            posts,
            rate: None,
            faults: Vec::new(),
            refusals: Vec::new(),
            tokens: Vec::new(),
            keys: None,
            limit: 150,
            keep_alive: None,
            clock: Arc::new(WallClock),
        }
    }
}

/// What a simulated network has published, and what it was asked.
#[derive(Debug)]
pub struct Stage {
    plan: Plan,
    published: watch::Sender<usize>,
    /// Streams that were ever opened.
    opened: watch::Sender<usize>,
    faults: Queue<Fault>,
    refusals: Queue<u16>,
    asked: watch::Sender<Vec<String>>,
    rules: x::Rules,
    counts: weibo::Counts,
}

impl Stage {
    /// Publishes so many posts more.
    pub fn publish(&self, more: usize) {
        let all = self.plan.posts.len();
        self.published.send_modify(|n| *n = (*n + more).min(all));
    }

    /// Waits until so many streams were opened (of Weibo, questions asked), in all.
    pub async fn opened(&self, count: usize) {
        // The sender is ours, so it can't be gone.
        let mut opened = self.opened.subscribe();
        let _never = opened.wait_for(|n| *n >= count).await;
    }

    /// The requests so far, as `GET /path?query`, and `[last-event-id …]` where it was sent. The first thousand.
    pub fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }

    /// Waits until nothing was asked for so long.
    pub async fn rested(&self, span: Duration) {
        let mut asked = self.asked.subscribe();
        while tokio::time::timeout(span, asked.changed()).await.is_ok() {}
    }

    /// How many posts are published.
    pub fn published(&self) -> usize {
        *self.published.borrow()
    }

    /// Another fault, for the connection that comes after those that have theirs.
    pub fn fail(&self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Refuses the next questions beside the stream with this code; the first `skip` of them are answered.
    pub fn refuse(&self, code: u16, skip: usize) {
        (0..skip).for_each(|_| self.refusals.push(0));
        self.refusals.push(code);
    }

    /// With which code the next question beside the stream is refused.
    fn refusal(&self) -> Option<u16> {
        self.refusals.pop().filter(|code| *code != 0)
    }

    fn note(&self, request: String) {
        self.asked.send_modify(|asked| {
            if asked.len() < 1000 {
                asked.push(request);
            }
        });
    }

    fn fault(&self) -> Fault {
        let fault = self.faults.pop().unwrap_or(Fault::Pass);
        self.opened.send_modify(|n| *n += 1);
        fault
    }

    /// Posts that are published, with their numbers; without those that are deleted.
    fn standing(&self) -> impl Iterator<Item = (usize, &Posted)> {
        let posts = &self.plan.posts[..self.published()];
        let gone: std::collections::BTreeSet<&str> =
            posts.iter().filter(|p| p.is_delete()).map(|p| p.id.as_str()).collect();
        posts.iter().enumerate().filter(move |(_, post)| post.is_post() && !gone.contains(post.id.as_str()))
    }
}

/// A simulated network.
#[derive(Debug)]
pub struct Simulator {
    listener: TcpListener,
    stage: Arc<Stage>,
}

impl Simulator {
    /// Listens at `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// When it can't listen there, or the rate is no positive number.
    pub async fn bind(address: &str, plan: Plan) -> Result<Self> {
        if let Some(rate) = plan.rate
            && !(rate.is_finite() && rate > 0.0)
        {
            return Err(Error::user(format!("simulate: the rate must be a positive number, not {rate}")));
        }
        let listener = TcpListener::bind(address).await.map_err(|e| {
            Error::user(format!("simulate: can't listen at {address}; choose another address or port")).because(e)
        })?;
        let stage = Stage {
            published: watch::Sender::new(0),
            opened: watch::Sender::new(0),
            faults: Queue::of(plan.faults.clone()),
            refusals: Queue::of(plan.refusals.clone()),
            asked: watch::Sender::new(Vec::new()),
            rules: x::Rules::default(),
            counts: weibo::Counts::default(),
            plan,
        };
        Ok(Self { listener, stage: Arc::new(stage) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system doesn't say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|e| Error::external("simulate: the address is not known").because(e))
    }

    /// What it publishes and was asked; may be moved and looked at while it runs.
    pub fn stage(&self) -> Arc<Stage> {
        Arc::clone(&self.stage)
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// Never so far: a connection that can't be accepted is waited out.
    pub async fn run(self, stop: Stop) -> Result<()> {
        let mut clients: JoinSet<()> = JoinSet::new();
        let pace = pace(Arc::clone(&self.stage));
        tokio::pin!(pace);
        let mut paced = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.stopped() => break,
                () = &mut pace, if !paced => {
                    paced = true;
                    continue;
                }
                // Reaped here so that the set doesn't grow with every client that ever was.
                Some(_) = clients.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // A failure only costs delay.
                    let _delayed = stream.set_nodelay(true);
                    let stage = Arc::clone(&self.stage);
                    if stage.plan.network == Network::Bluesky {
                        clients.spawn(bluesky::serve(stream, stage));
                    } else {
                        clients.spawn(serve::serve(stream, stage));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "simulate: can't accept a client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        clients.shutdown().await;
        Ok(())
    }
}

/// Publishes at the plan's rate, from the first connection on, to the end.
async fn pace(stage: Arc<Stage>) {
    let Some(rate) = stage.plan.rate else { return };
    stage.opened(1).await;
    let started = tokio::time::Instant::now();
    let every = Duration::from_secs_f64((1.0 / rate).clamp(0.005, 3600.0));
    while stage.published() < stage.plan.posts.len() {
        tokio::time::sleep(every).await;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a number of posts, far below 2^53 and positive"
        )]
        let due = (started.elapsed().as_secs_f64() * rate) as usize;
        stage.publish(due.saturating_sub(stage.published()));
    }
}

/// A queue that is taken from one at a time.
mod parking {
    use std::{
        collections::VecDeque,
        sync::{Mutex, PoisonError},
    };

    #[derive(Debug)]
    pub(super) struct Queue<T>(Mutex<VecDeque<T>>);

    impl<T> Queue<T> {
        pub(super) fn of(items: Vec<T>) -> Self {
            Self(Mutex::new(items.into()))
        }

        pub(super) fn push(&self, item: T) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(item);
        }

        pub(super) fn pop(&self) -> Option<T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
        }
    }
}
