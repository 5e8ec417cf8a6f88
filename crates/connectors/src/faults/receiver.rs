//! What every receiver that connects must stand: each fault on the way to its server, in one life and in the next.
//!
//! Asked of it: records that its promise covers are in the log, none twice but by its promise; each fault is told in a
//! state; it connects again by itself, and does not knock without a pause; a stop is prompt, whatever the
//! server does. Records are numbered; a fault befalls open connections, first answers, and the middle of a record.
//!
//! Invariant: the suite publishes and listens, and knows no protocol. Called by tests of receivers.

use super::{Fault, FaultProxy, Hands, When, nonsense};
use crate::contract::{Behind, Heard, Recorder};
use async_trait::async_trait;
use futures::FutureExt;
use std::{cell::Cell, collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tidemill_core::{Block, Intake, Receiver, Result, StopHandle};
use tokio::task::JoinHandle;

/// What a receiver promises of records that were published while it was not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Each comes, once.
    Once,
    /// Each comes, some twice.
    AtLeastOnce,
    /// They are lost, and none comes twice.
    Forgotten,
}

/// A receiver, and a server for it that is told what to publish.
#[async_trait]
pub trait Feed: Send + Sync {
    /// Where the server is.
    fn address(&self) -> SocketAddr;
    /// The receiver, of a server at this address; each call is another life of the same.
    fn receiver(&self, at: SocketAddr) -> Arc<dyn Receiver>;
    /// The server has one more record, with this number; they count from 0.
    async fn publish(&self, number: u64);
    /// The number of a record, if it is one of those.
    fn number(&self, record: &[u8]) -> Option<u64>;
    /// What is promised.
    fn promise(&self) -> Promise;
    /// The hands on its clock.
    fn hands(&self) -> &Hands;
    /// Whether it asks now and then, and does not listen between two questions: a fault then meets its next answer.
    fn asks(&self) -> bool {
        false
    }
    /// Whether its client mends what breaks for a moment, without a word; a server that is gone is told all the same.
    fn mends(&self) -> bool {
        false
    }
    /// Whether a state tells that all is well.
    fn is_well(&self, state: &str) -> bool {
        state.starts_with("connected")
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// How far the clock is moved at a time while a server is silent.
const LONG: Duration = Duration::from_secs(5);
/// How long a server is away.
const AWAY: u32 = 30;
/// How long a stop may take on the connector's clock.
const PROMPT: Duration = Duration::from_secs(20);

struct Life<'a> {
    feed: &'a dyn Feed,
    proxy: &'a FaultProxy,
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
    /// The number of the next record.
    next: u64,
    /// What lives before this one have heard.
    before: Vec<Vec<u8>>,
}

impl<'a> Life<'a> {
    fn start(
        feed: &'a dyn Feed,
        proxy: &'a FaultProxy,
        token: Option<String>,
        before: Vec<Vec<u8>>,
        next: u64,
    ) -> Self {
        let intake = Recorder::resuming(token);
        let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
        let (stop, stopped) = StopHandle::new();
        let receiver = feed.receiver(proxy.address());
        let task = tokio::spawn(async move { receiver.run(given, stopped).await });
        Self { feed, proxy, intake, stop, task, next, before }
    }

    /// How often each number was heard, in all lives.
    fn heard(&self) -> BTreeMap<u64, usize> {
        let mut heard = BTreeMap::new();
        for number in self.before.iter().chain(&self.intake.heard().records).filter_map(|r| self.feed.number(r)) {
            *heard.entry(number).or_default() += 1;
        }
        heard
    }

    async fn publish(&mut self, count: u64) {
        for _ in 0..count {
            self.feed.publish(self.next).await;
            self.next += 1;
        }
    }

    async fn until(&self, step: Duration, what: &str, holds: impl Fn(&Heard) -> bool) {
        let told = || format!("{what}; {:?}", self.intake.heard().states);
        let wait = self.feed.hands().until(step, what, || {
            assert!(!self.task.is_finished(), "it ended before {}", told());
            holds(&self.intake.heard())
        });
        wait.await;
    }

    /// Publishes records, and waits until they are heard.
    async fn flows(&mut self, after: &str) {
        if self.feed.promise() == Promise::Forgotten {
            // The first that is heard says that the connection stands; what came before it may be lost.
            let begun = self.next;
            for tries in 0.. {
                assert!(tries < 1000, "nothing is heard after {after}; {:?}", self.intake.heard().states);
                self.publish(1).await;
                self.feed.hands().pass(SECOND).await;
                if self.heard().range(begun..).next().is_some() {
                    break;
                }
            }
        }
        let wanted = self.next..self.next + 5;
        self.publish(5).await;
        let what = format!("records {wanted:?} are heard after {after}");
        self.until(SECOND, &what, |_| {
            let heard = self.heard();
            wanted.clone().all(|number| heard.contains_key(&number))
        })
        .await;
        self.check(after);
    }

    /// Nothing lost, nothing twice, as it is promised.
    fn check(&self, after: &str) {
        let (heard, promise) = (self.heard(), self.feed.promise());
        if promise != Promise::Forgotten {
            let lost: Vec<u64> = (0..self.next).filter(|number| !heard.contains_key(number)).collect();
            assert!(lost.is_empty(), "{lost:?} of {} are lost after {after}", self.next);
        }
        if promise != Promise::AtLeastOnce {
            let twice: Vec<_> = heard.iter().filter(|(_, times)| **times > 1).collect();
            assert!(twice.is_empty(), "{twice:?} (number, times) after {after}");
        }
    }

    /// Waits until it tells that the connection is gone.
    async fn tells(&self, step: Duration, after: &str, since: usize) {
        let what = format!("a state tells of {after}");
        self.until(step, &what, |heard| {
            heard.states[since..].iter().any(|s| s.starts_with("reconnecting in ") || s.starts_with("waiting: "))
        })
        .await;
    }

    fn states(&self) -> usize {
        self.intake.heard().states.len()
    }

    /// Now, or with the next answer.
    fn strike(&self, fault: Fault) {
        if self.feed.asks() {
            self.proxy.arm(When::Answered(0), fault);
        } else {
            self.proxy.all(fault);
        }
    }

    /// A fault on open connections, records during it, and what follows.
    async fn meets(&mut self, fault: Fault) {
        let (after, since) = (fault.told(), self.states());
        self.strike(fault);
        self.publish(2).await;
        if self.feed.mends() {
            return self.flows(&after).await;
        }
        self.tells(LONG, &after, since).await;
        self.flows(&after).await;
        let states = self.intake.heard().states;
        let again = states[since..].iter().any(|state| self.feed.is_well(state));
        assert!(again, "a state tells that it is connected after {after}: {:?}", &states[since..]);
    }

    /// A fault at a place in what passes.
    async fn meets_at(&mut self, traps: &[(When, Fault)]) {
        for (when, fault) in traps {
            self.proxy.arm(*when, fault.clone());
        }
        let told: Vec<String> = traps.iter().map(|(when, fault)| format!("{when:?} {}", fault.told())).collect();
        let (after, since) = (told.join(", "), self.states());
        if traps.len() > 1 {
            self.proxy.all(Fault::Close);
        }
        let snapped = self.proxy.landed().faults + traps.len() as u64;
        // A server that never speaks first is spoken to by each try.
        for tries in 0.. {
            assert!(tries < 500, "{after} does not come; {:?}", self.intake.heard().states);
            if self.proxy.landed().faults >= snapped {
                break;
            }
            if tries % 8 == 0 {
                self.publish(1).await;
            }
            self.feed.hands().pass(LONG).await;
            assert!(!self.task.is_finished(), "it ended after {after}: {:?}", self.intake.heard().states);
        }
        if !self.feed.mends() {
            self.tells(LONG, &after, since).await;
        }
        self.flows(&after).await;
    }

    /// Half a minute without a server.
    async fn outage(&mut self) {
        let since = self.states();
        self.proxy.go_away().await;
        self.tells(SECOND, "a server that is gone", since).await;
        self.publish(2).await;
        for _ in 0..AWAY {
            self.feed.hands().pass(SECOND).await;
        }
        let tries = self.states() - since;
        assert!(tries < 1000, "it knocks {tries} times in {AWAY} s");
        self.proxy.come_back();
        self.flows("a server that was away").await;
    }

    /// Stops it; what it heard, with that of lives before, and the token.
    async fn end(self, what: &str) -> (Vec<Vec<u8>>, Option<String>, u64) {
        self.stop.stop();
        let moved = Cell::new(Duration::ZERO);
        let step = || {
            let step = Duration::from_millis(100);
            moved.set(moved.get() + step);
            step
        };
        let ended = self.feed.hands().during(what, step, self.task).await.expect("no panic");
        assert!(ended.is_ok(), "{what}: {ended:?}");
        assert!(moved.get() <= PROMPT, "{what}: it took {:?}", moved.get());
        let heard = self.intake.heard();
        (self.before.into_iter().chain(heard.records).collect(), heard.resume, self.next)
    }
}

/// Checks a receiver that connects, against each fault on the way to its server.
///
/// # Panics
/// When it breaks its promise, does not come back, does not tell, or does not stop.
pub async fn check_receiver_faults(feed: &dyn Feed) {
    let proxy = FaultProxy::to(feed.address());
    let mut life = Life::start(feed, &proxy, None, Vec::new(), 0);
    // Many begin with what is published from then on.
    life.until(SECOND, "it tells that it is connected", |heard| heard.states.iter().any(|s| feed.is_well(s))).await;
    life.flows("the start").await;
    for fault in [Fault::Close, Fault::Reset, Fault::Silence, Fault::Mute, Fault::Garbage(nonsense())] {
        life.meets(fault).await;
    }
    // In the middle of a record, or of an answer.
    life.meets_at(&[(When::AnsweredBytes(5), Fault::Close)]).await;
    life.meets_at(&[(When::AnsweredBytes(9), Fault::Reset)]).await;
    // What is heard first of a server that was lost.
    life.meets_at(&[
        (When::Answered(0), Fault::Close),
        (When::Answered(0), Fault::Garbage(nonsense())),
        (When::Answered(0), Fault::Reset),
        (When::Answered(0), Fault::Silence),
        (When::AnsweredBytes(3), Fault::Close),
    ])
    .await;
    life.outage().await;
    // Bytes come one by one.
    life.strike(Fault::Crumbs(1));
    life.flows("a line that is slow").await;
    let (before, token, next) = life.end("a stop").await;

    // A stop while the server is away, and a start then.
    let mut life = Life::start(feed, &proxy, token, before, next);
    life.flows("a restart").await;
    let since = life.states();
    proxy.go_away().await;
    life.tells(SECOND, "a server that is gone", since).await;
    let (before, token, next) = life.end("a stop while the server is away").await;
    let mut life = Life::start(feed, &proxy, token, before, next);
    life.publish(2).await;
    life.tells(SECOND, "a start without a server", 0).await;
    proxy.come_back();
    life.flows("a start without a server").await;
    // A stop while the connection is half open.
    life.strike(Fault::Silence);
    life.publish(2).await;
    life.feed.hands().pass(SECOND).await;
    let (before, token, next) = life.end("a stop while the server is silent").await;
    proxy.disarm();
    let mut life = Life::start(feed, &proxy, token, before, next);
    life.flows("a stop while the server was silent").await;
    let (_, token, next) = life.end("the last stop").await;
    behind(feed, &proxy, token, next).await;
}

/// A log that takes nothing for a while: what comes meanwhile waits at the server, and is not gathered.
async fn behind(feed: &dyn Feed, proxy: &FaultProxy, token: Option<String>, mut next: u64) {
    let (log, hands) = (Behind::new(), feed.hands());
    // So that it goes on from there.
    let nothing: [&[u8]; 0] = [];
    drop(log.heard.append(Block::from_records(nothing), token).await.expect("a token"));
    let (stop, stopped) = StopHandle::new();
    let (receiver, given) = (feed.receiver(proxy.address()), Arc::<Behind>::clone(&log));
    let task = tokio::spawn(async move { receiver.run(given, stopped).await });
    for tries in 0.. {
        assert!(tries < 1000, "nothing is appended; {:?}", log.heard.heard().states);
        feed.publish(next).await;
        next += 1;
        hands.pass(SECOND).await;
        if log.entered(1).now_or_never().is_some() {
            break;
        }
    }
    let wanted = next..next + 50;
    for number in wanted.clone() {
        feed.publish(number).await;
    }
    for _ in 0..10 {
        hands.pass(SECOND).await;
    }
    assert!(log.entered(2).now_or_never().is_none(), "one append at a time");
    log.let_through(1000);
    let heard = || -> BTreeMap<u64, usize> {
        let mut heard = BTreeMap::new();
        log.heard.heard().records.iter().filter_map(|r| feed.number(r)).for_each(|n| *heard.entry(n).or_default() += 1);
        heard
    };
    hands
        .until(SECOND, "what waited is heard", || {
            let heard = heard();
            wanted.clone().all(|number| heard.contains_key(&number))
        })
        .await;
    if feed.promise() != Promise::AtLeastOnce {
        assert!(heard().values().all(|times| *times == 1), "each once: {:?}", heard());
    }
    stop.stop();
    let ended = hands.during("a stop", || Duration::from_millis(100), task).await;
    ended.expect("no panic").expect("stopped");
}
