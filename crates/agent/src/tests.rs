//! Whole agents of random shapes, with sinks that fail: nothing is lost, and nothing comes twice.

use crate::{
    Agent, Plan, Setting,
    backoff::splitmix64,
    channel::file::FileConfig,
    config::{ChannelPlan, Deal, GroupPlan, SinkKind, SinkPlan, SourcePlan},
    event::Event,
    interceptor::{Interceptor, RouteFrom},
    reach::Reach,
    selector::Selector,
    sink::Outlet,
    source::seq::Seq,
    status::Status,
};
use async_trait::async_trait;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tidemill_core::{Clock, Duration, Error, Guarantee, Result, StopHandle, Timestamp};
use tidemill_store::{
    Log, SimDisk,
    disk::Disk,
    log::{Retention, Sync},
};

/// The runtime's clock, which a paused runtime moves when all wait.
#[derive(Debug)]
pub(crate) struct RuntimeClock(pub(crate) tokio::time::Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        Timestamp(0).plus(self.0.elapsed())
    }

    fn sleep_until(&self, deadline: Timestamp) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(deadline.since(self.now())))
    }
}

/// What sinks have: names of sources and numbers, by channel.
type Seen = Arc<Mutex<Vec<Vec<(String, u64)>>>>;

/// A sink that keeps what it is given, and fails now and then, with a part of it written or none.
struct Flaky {
    seen: Seen,
    channel: usize,
    /// Of a hundred deliveries.
    fails: u64,
    dice: u64,
    /// How often any of them did.
    failures: Arc<AtomicU64>,
    own: Vec<(String, u64)>,
    /// How many of them others have seen.
    shown: usize,
}

impl Flaky {
    fn show(&mut self) {
        self.seen.lock()[self.channel].extend_from_slice(&self.own[self.shown..]);
        self.shown = self.own.len();
    }

    fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(1);
        splitmix64(self.dice) % 100
    }

    /// Whether what comes next fails, so many times of a hundred.
    fn breaks(&mut self, of_hundred: u64) -> bool {
        let breaks = self.roll() < of_hundred;
        self.failures.fetch_add(u64::from(breaks), Ordering::Relaxed);
        breaks
    }
}

fn pair(event: &Event) -> (String, u64) {
    (event.headers["from"].clone(), String::from_utf8_lossy(&event.body).parse().unwrap())
}

#[async_trait]
impl Outlet for Flaky {
    fn describe(&self) -> String {
        "flaky".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&mut self, left: Option<String>, _durable: bool) -> Result<Option<String>> {
        if self.breaks(self.fails / 6) {
            return Err(Error::external("not there yet"));
        }
        let committed = left.map_or(0, |left| left.parse().unwrap());
        assert!(self.shown <= committed && committed <= self.own.len(), "of what is shown nothing is taken back");
        self.own.truncate(committed);
        self.show();
        Ok(None)
    }

    async fn deliver(&mut self, events: &[Event]) -> Result<Option<String>> {
        if self.breaks(self.fails) {
            // A beginning of them is written.
            let part = usize::try_from(self.roll()).unwrap() % (events.len() + 1);
            self.own.extend(events[..part].iter().map(pair));
            return Err(Error::external("the line broke"));
        }
        self.own.extend(events.iter().map(pair));
        Ok(Some(self.own.len().to_string()))
    }

    async fn settle(&mut self) -> Result<()> {
        if self.breaks(self.fails / 4) {
            return Err(Error::external("could not show it"));
        }
        self.show();
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Shape {
    sources: Vec<(u64, u64)>,
    /// Whether it is durable, its capacity, and its groups' sinks.
    channels: Vec<(bool, u64, Vec<usize>)>,
    deal: u8,
    multiplexing: bool,
    optional: bool,
    fails: u64,
    batch: u64,
    seed: u64,
}

fn shape() -> impl Strategy<Value = Shape> {
    let channel = (any::<bool>(), 5..60_u64, prop::collection::vec(1..4_usize, 1..3));
    (
        prop::collection::vec((0..120_u64, 1..20_u64), 1..3),
        prop::collection::vec(channel, 1..4),
        (0..3_u8, any::<bool>(), any::<bool>()),
        (0..60_u64, 1..30_u64, any::<u64>()),
    )
        .prop_map(|(sources, channels, (deal, multiplexing, optional), (fails, batch, seed))| Shape {
            sources,
            channels,
            deal,
            multiplexing,
            optional,
            fails,
            batch,
            seed,
        })
}

fn plan(shape: &Shape, seen: &Seen, failures: &Arc<AtomicU64>) -> Plan {
    let names: Vec<String> = (0..shape.channels.len()).map(|n| format!("c{n}")).collect();
    let keep = Retention { max_age: None, max_bytes: Some(1 << 20) };
    let channel = |(durable, capacity, _): &(bool, u64, Vec<usize>)| match durable {
        true => ChannelPlan::File(FileConfig { capacity: *capacity, sync: Sync::Always, keep }),
        false => ChannelPlan::Memory { capacity: *capacity, bytes: 1 << 20 },
    };
    let channels = names.iter().cloned().zip(shape.channels.iter().map(channel)).collect();
    let all: Vec<usize> = (0..names.len()).collect();
    let selector = if shape.multiplexing {
        let mapping = all.iter().map(|n| (n.to_string(), vec![*n])).collect();
        Selector::Multiplexing { header: "route".to_owned(), mapping, default: vec![], optional: BTreeMap::new() }
    } else {
        // The first one must have all.
        Selector::Replicating { optional: if shape.optional { all[1..].to_vec() } else { vec![] } }
    };
    let sources = shape.sources.iter().enumerate().map(|(n, (total, batch_size))| SourcePlan {
        name: format!("r{n}"),
        origin: Box::new(Seq { total: Some(*total), batch_size: *batch_size }),
        interceptors: vec![
            Interceptor::Static { header: "from".to_owned(), value: format!("r{n}"), preserve: false },
            Interceptor::RouteKey {
                from: RouteFrom::Body(regex::bytes::Regex::new(".+").unwrap()),
                header: "route".to_owned(),
                buckets: names.len() as u64,
            },
        ],
        selector: selector.clone(),
        channels: names.clone(),
        reach: Reach::default(),
    });
    let mut groups = Vec::new();
    let mut dice = shape.seed;
    for (place, (_, _, members)) in shape.channels.iter().enumerate() {
        for count in members {
            let sinks = (0..*count).map(|n| {
                dice = splitmix64(dice);
                let outlet = Flaky {
                    seen: Arc::clone(seen),
                    channel: place,
                    fails: shape.fails,
                    dice,
                    failures: Arc::clone(failures),
                    own: vec![],
                    shown: 0,
                };
                SinkPlan {
                    name: format!("k{place}-{}-{n}", groups.len()),
                    kind: SinkKind::Given(Box::new(outlet)),
                    max_backoff: Duration::from_secs(2),
                    batch_size: shape.batch,
                }
            });
            let sinks = sinks.collect();
            let deal = [Deal::Failover, Deal::RoundRobin, Deal::Random(Some(shape.seed))][usize::from(shape.deal)];
            groups.push(GroupPlan { channel: names[place].clone(), deal, sinks });
        }
    }
    Plan { name: "a1".to_owned(), data: None, channels, sources: sources.collect(), groups }
}

async fn run(plan: Plan) -> Status {
    let clock: Arc<dyn Clock> = Arc::new(RuntimeClock(tokio::time::Instant::now()));
    let disk = Arc::new(SimDisk::new()) as Arc<dyn Disk>;
    let log = Arc::new(Log::open(Arc::clone(&disk), Path::new("/d/log"), Arc::clone(&clock)).unwrap());
    let setting =
        Setting { clock, disk, data: Some((log, "/d".into())), out: Arc::new(std::sync::Mutex::new(Vec::new())) };
    let (_handle, stop) = StopHandle::new();
    let agent = Agent::start(plan, setting).await.unwrap();
    // Time goes by itself, so one that never ends is told with its shape.
    let ends = agent.run(stop, Duration::from_secs(10), |_| ());
    tokio::time::timeout(std::time::Duration::from_secs(24 * 3600), ends).await.expect("it ends within a day").unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_comes_twice_whatever_the_shape(shape in shape()) {
        let seen: Seen = Arc::new(Mutex::new(vec![Vec::new(); shape.channels.len()]));
        let failures = Arc::new(AtomicU64::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let status = runtime.block_on(run(plan(&shape, &seen, &failures)));
        drop(runtime);
        let missed: u64 = status.sources.iter().map(|(_, counts)| counts.missed).sum();
        let mut short = 0;
        let route = Interceptor::RouteKey {
            from: RouteFrom::Body(regex::bytes::Regex::new(".+").unwrap()),
            header: "route".to_owned(),
            buckets: shape.channels.len() as u64,
        };
        for (place, (_, _, groups)) in shape.channels.iter().enumerate() {
            let mut got = std::mem::take(&mut seen.lock()[place]);
            if groups == &[1] {
                for source in 0..shape.sources.len() {
                    let of = |(from, _): &&(String, u64)| *from == format!("r{source}");
                    prop_assert!(got.iter().filter(of).is_sorted_by_key(|(_, n)| n), "a lone sink keeps the order");
                }
            }
            got.sort();
            let every = |(source, (total, _)): (usize, &(u64, u64))| {
                let event = |n| {
                    let mut event = Event::new(format!("{n}"), Timestamp(0));
                    assert!(route.pass(&mut event));
                    (event.headers["route"] == place.to_string(), (format!("r{source}"), n))
                };
                (0..*total).map(event).filter(|(here, _)| !shape.multiplexing || *here).map(|(_, pair)| pair).collect::<Vec<_>>()
            };
            let mut want: Vec<(String, u64)> = shape.sources.iter().enumerate().flat_map(every).collect();
            want.sort();
            if shape.optional && !shape.multiplexing && place > 0 {
                prop_assert!(got.windows(2).all(|two| two[0] != two[1]), "nothing twice");
                prop_assert!(got.iter().all(|one| want.binary_search(one).is_ok()));
                short += (want.len() - got.len()) as u64;
            } else {
                prop_assert_eq!(got, want, "channel {}", place);
            }
        }
        prop_assert_eq!(short, missed, "what optional channels missed is counted");
        prop_assert!(status.channels.iter().all(|(_, held)| held.events == 0));
        let counted: u64 = status.sinks.iter().map(|(_, counts)| counts.failures).sum();
        prop_assert_eq!(counted, failures.load(Ordering::Relaxed), "every failure of a sink is counted");
    }
}
