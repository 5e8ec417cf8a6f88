//! Collectors against the simulated networks: each protocol with each fault, restarts, wrong credentials, limits.
//!
//! The clock is moved by the tests; sockets are real ones on the loopback.

mod faults;
mod limits;
mod once;
mod posts;
mod proxies;
mod restarts;
mod weibo;
mod x;

use super::{
    common::Common,
    post::Network,
    proxy::Proxy,
    secret::Place,
    simulate::{Fault, Plan, Posted, Simulator, Stage},
    *,
};
use crate::contract::{Heard, Recorder};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tidemill_core::{Clock, Error, Intake, ManualClock, Receiver, Result, StopHandle, Timestamp};
use tokio::task::JoinHandle;

/// An hour after the first simulated post.
const NOW: Timestamp = Timestamp(1_777_597_200_000_000);

/// Posts of a network, number `from` on; each has a tag and a name.
fn posts(network: Network, count: usize) -> Vec<Posted> {
    let text = |n| format!("tea & <cake> number {n} #tea #n{n} for @ada");
    (0..count).map(|n| Posted::of_text(network, &text(n), n)).collect()
}

fn plan(network: Network, count: usize) -> Plan {
    Plan::new(network, posts(network, count))
}

/// A simulated network that runs, and the clock of its clients.
struct Server {
    stage: Arc<Stage>,
    url: String,
    clock: Arc<ManualClock>,
    _stop: StopHandle,
}

/// With one clock for both sides.
async fn serve(mut plan: Plan) -> Server {
    let clock = Arc::new(ManualClock::at(NOW));
    plan.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    serve_with(plan, clock).await
}

/// With a clock for the client; the server has that of the plan.
async fn serve_with(plan: Plan, clock: Arc<ManualClock>) -> Server {
    let simulator = Simulator::bind("127.0.0.1:0", plan).await.unwrap();
    let (stage, url) = (simulator.stage(), format!("http://{}", simulator.address().unwrap()));
    let (handle, stop) = StopHandle::new();
    tokio::spawn(simulator.run(stop));
    Server { stage, url, clock, _stop: handle }
}

impl Server {
    fn common(&self, quiet: u64) -> Common {
        let mut common = Common::new(Duration::from_secs(quiet));
        common.link.clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        common.link.proxy = Proxy::Direct;
        common.gather = Some(Duration::ZERO);
        common
    }

    /// The collector of a network, as a test wants it.
    fn receiver(&self, network: Network) -> Arc<dyn Receiver> {
        let (url, common) = (self.url.clone(), self.common(30));
        match network {
            Network::Mastodon => Arc::new(Mastodon::new(url).token("sesame".into()).common(common)),
            Network::Wikimedia => Arc::new(Wikimedia::new(url).common(common)),
            Network::X => Arc::new(XStream::filtered(url, "sesame".into(), ["tea"]).common(common)),
            Network::XV1 => Arc::new(XV1::new(url, keys(), "tea").common(common)),
            Network::Weibo => Arc::new(Weibo::new(url, "sesame".into()).every(Duration::from_secs(10)).common(common)),
            Network::Bluesky => {
                let quick = crate::backoff::Backoff::between(Duration::from_millis(1), Duration::from_millis(5), 1);
                let url = format!("{}/subscribe", url.replace("http://", "ws://"));
                Arc::new(crate::jetstream::Jetstream::new([url], 1).backoff(quick))
            }
        }
    }

    fn start(&self, receiver: Arc<dyn Receiver>, token: Option<String>) -> Running {
        let intake = Recorder::resuming(token);
        let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
        let (stop, stopped) = StopHandle::new();
        let task = tokio::spawn(async move { receiver.run(given, stopped).await });
        Running { intake, stop, task, clock: Arc::clone(&self.clock), moved: AtomicUsize::new(0) }
    }
}

fn keys() -> Place {
    Place::Given(["ck", "cs", "at", "as"].map(secret::Secret::new).to_vec())
}

/// A collector that runs.
struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
    clock: Arc<ManualClock>,
    /// The state over whose wait the clock was moved last, by its number.
    moved: AtomicUsize,
}

/// The wait that a state tells of, and a little: `reconnecting in 5.0 s: …`.
fn wait_of(state: &str) -> Option<Duration> {
    let number = state.split_once(" in ")?.1.split_once(" s")?.0;
    number.parse().ok().map(|seconds: f64| Duration::from_secs_f64(seconds + 0.6))
}

impl Running {
    /// Until something holds of what was heard. The clock is moved over each wait that is reported, and on when
    /// nothing happens any more.
    async fn until(&self, holds: impl Fn(&Heard) -> bool) -> Heard {
        for _ in 0..400 {
            let now = self.intake.heard();
            if holds(&now) {
                return now;
            }
            assert!(!self.task.is_finished(), "it ended; heard {now:?}");
            let states = now.states.len();
            let wait = now.states.last().and_then(|state| wait_of(state));
            if let Some(wait) = wait
                && self.moved.swap(states, Ordering::Relaxed) != states
            {
                self.clock.advance(wait);
            }
            let news = |heard: &Heard| {
                (heard.states.len(), heard.records.len(), heard.refused.len())
                    != (states, now.records.len(), now.refused.len())
            };
            let news = tokio::time::timeout(Duration::from_millis(250), self.intake.until(news)).await;
            if news.is_err() {
                self.clock.advance(Duration::from_secs(10));
            }
        }
        panic!("waited in vain; heard {:?}", self.intake.heard());
    }

    /// Until so many records were heard.
    async fn records(&self, count: usize) -> Heard {
        self.until(|heard| heard.records.len() >= count).await
    }

    /// Until a state was reported that has this in it, with the clock as it is.
    async fn says(&self, what: &str) -> String {
        let heard = self.intake.until(|heard| heard.states.iter().any(|state| state.contains(what))).await;
        heard.states.into_iter().find(|state| state.contains(what)).unwrap()
    }

    /// Stops it and gives what it heard.
    async fn end(self) -> Heard {
        self.stop.stop();
        self.task.await.unwrap().unwrap();
        self.intake.heard()
    }

    /// Why it ended by itself.
    async fn failed(self) -> Error {
        self.task.await.unwrap().unwrap_err()
    }
}

/// The ids of records, which must be each of them once.
fn ids(network: Network, heard: &Heard) -> Vec<String> {
    let ids: Vec<String> = heard.records.iter().map(|record| network.read(record).unwrap().id).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "each once");
    ids
}

/// The ids of what the simulation has, the first `count`.
fn wanted(network: Network, count: usize) -> Vec<String> {
    posts(network, count).into_iter().map(|post| post.id).collect()
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}
