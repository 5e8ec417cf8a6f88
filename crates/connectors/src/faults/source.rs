//! What every source over a network must stand: each request and each answer of its work lost, in each way.
//!
//! ```text
//! publish ─► plan, until the ranges have what is new ─► the ledger has them ─► read, until a try comes to its end
//! ```
//!
//! A fault is put in place of the first request of a plan, then of its second, and so on until the plan ends before it
//! comes to it; so with answers, with reads of a range, and with the first plan of a life. Half of the tries that failed
//! are repeated by the same source, half by the next life of it. Connections that wait for the next batch are struck
//! as well, and the server is gone for half a minute.
//!
//! Asked of it: each record is in one range, and every try of a range gives the same records, a try that failed the first
//! of them; an error on the way is one to be tried again; nothing waits without an end.
//!
//! Invariant: the suite publishes past the proxy, and knows only the trait. Called by tests of sources.

use super::{Fault, FaultProxy, Hands, When, nonsense};
use async_trait::async_trait;
use futures::StreamExt;
use std::{collections::BTreeSet, net::SocketAddr, ops::Range, sync::Arc, time::Duration};
use tidemill_core::{Blame, Budget, Chunk, Error, OffsetRange, Position, Result, Source};

/// A source, and a server for it that is told what to publish.
#[async_trait]
pub trait Spring: Send + Sync {
    /// Where the server is.
    fn address(&self) -> SocketAddr;
    /// A way to it, with nothing on it yet; one at a place of its own where the server tells clients where to come.
    fn way(&self) -> FaultProxy {
        FaultProxy::to(self.address())
    }
    /// The source, of a server at this address; each call is another life of the same.
    fn source(&self, at: SocketAddr) -> Arc<dyn Source>;
    /// The server has more records, with these numbers; they count from 0.
    async fn publish(&self, numbers: Range<u64>);
    /// The number of a record, if it is one of those: `record 7`, unless they are published in another form.
    fn number(&self, record: &[u8]) -> Option<u64> {
        std::str::from_utf8(record).ok()?.strip_prefix("record ")?.parse().ok()
    }
    /// The hands on its clock.
    fn hands(&self) -> &Hands;
    /// Turns of a work at most that are tried; a source that fetches ahead has no last one.
    fn turns(&self) -> u64 {
        40
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// How far the clock is moved at a time when a fault has come: answers may be waited for for minutes.
const LONG: Duration = Duration::from_secs(30);
/// Tries of a work at most.
const TRIES: usize = 40;
/// Records of a batch.
const RECORDS: u64 = 5;
const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };

/// What a range gave: offsets and records.
type Given = Vec<(u64, Vec<u8>)>;

/// Where a trap is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// The first plan of a life.
    Start,
    Plan,
    Read,
}

struct Trial<'a> {
    spring: &'a dyn Spring,
    proxy: FaultProxy,
    source: Arc<dyn Source>,
    position: Position,
    published: u64,
    seen: BTreeSet<u64>,
    batch: u64,
    /// The last ranges with something in them, and what they gave.
    last: Vec<(OffsetRange, Given)>,
}

/// An error on the way is one that the engine tries again.
fn passes(what: &str, error: &Error) {
    let passes = error.is_retryable() && error.blame() == Blame::External;
    assert!(passes, "{what}: an error that passes is none for a human: {}", error.chain());
}

/// Reads a range as far as it goes.
async fn read(source: &dyn Source, range: &OffsetRange) -> (Given, Result<()>) {
    let (mut given, mut chunks) = (Given::new(), source.read(range));
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(Chunk::Raw(block)) => {
                given.extend(block.records().enumerate().map(|(row, record)| (block.offset(row).0, record.to_vec())));
            }
            Ok(other) => panic!("records are raw: {other:?}"),
            Err(error) => return (given, Err(error)),
        }
    }
    (given, Ok(()))
}

impl Trial<'_> {
    fn new_life(&mut self) {
        self.source = self.spring.source(self.proxy.address());
    }

    /// Waits for a work; the clock is moved far once a fault has come.
    async fn during<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let before = self.proxy.landed().faults;
        let step = || if self.proxy.landed().faults > before { LONG } else { SECOND };
        self.spring.hands().during(what, step, work).await
    }

    /// After a try that failed: every second batch goes on with another life.
    async fn again(&mut self, what: &str, error: &Error) {
        passes(what, error);
        // The engine's own wait between two tries.
        self.spring.hands().pass(SECOND).await;
        if self.batch % 2 == 1 {
            self.new_life();
        }
    }

    async fn publish(&mut self) {
        let numbers = self.published..self.published + RECORDS;
        self.spring.publish(numbers.clone()).await;
        self.published = numbers.end;
    }

    /// What is new, as ranges.
    async fn plan(&mut self, what: &str) -> Vec<OffsetRange> {
        for _ in 0..TRIES {
            let (source, position) = (Arc::clone(&self.source), self.position.clone());
            match self.during(what, source.plan(&position, ALL)).await {
                Ok(ranges) if ranges.iter().any(|range| !range.is_empty()) => return ranges,
                Ok(_) => self.spring.hands().pass(SECOND).await,
                Err(error) => self.again(what, &error).await,
            }
        }
        let lost: Vec<u64> = (0..self.published).filter(|number| !self.seen.contains(number)).collect();
        panic!("{what}: records {lost:?} are lost: no range has them");
    }

    /// What a range gives when a try comes to its end.
    async fn read(&mut self, what: &str, range: &OffsetRange) -> Given {
        let mut tried: Vec<Given> = Vec::new();
        for _ in 0..TRIES {
            let source = Arc::clone(&self.source);
            let (given, ended) = self.during(what, read(&*source, range)).await;
            let Err(error) = ended else {
                for less in tried {
                    assert!(
                        given.starts_with(&less),
                        "{what}: a try of {range} gave other records: {less:?}, {given:?}"
                    );
                }
                return given;
            };
            tried.push(given);
            self.again(what, &error).await;
        }
        panic!("{what}: {range} is not read");
    }

    /// Records, planned and read, with a trap at a place of a work of it. Whether it snapped.
    async fn batch(&mut self, work: Work, trap: Option<(When, Fault)>) -> bool {
        self.batch += 1;
        self.publish().await;
        let told = trap.as_ref().map(|(when, fault)| (*when, fault.told()));
        let what = format!("batch {}, {work:?} with {told:?}", self.batch);
        let before = self.proxy.landed().faults;
        if work == Work::Start {
            self.new_life();
        }
        if let Some((when, fault)) = trap.clone().filter(|_| work != Work::Read) {
            self.proxy.arm(when, fault);
        }
        // A plan may have a part of what is new, and the next the rest.
        while !(0..self.published).all(|number| self.seen.contains(&number)) {
            let ranges = self.plan(&what).await;
            if work != Work::Read {
                self.proxy.disarm();
            } else if let Some((when, fault)) = trap.clone() {
                self.proxy.arm(when, fault);
            }
            self.take(&what, ranges).await;
            self.proxy.disarm();
        }
        let snapped = self.proxy.landed().faults > before;
        // The engine may ask for a range of before at any time: the batch that it belongs to runs again.
        if self.batch.is_multiple_of(4) {
            for (range, given) in self.last.clone() {
                assert_eq!(self.read(&what, &range).await, given, "{what}: {range}, once more");
            }
        }
        snapped
    }

    /// Reads what was planned; the ledger stands behind it then.
    async fn take(&mut self, what: &str, ranges: Vec<OffsetRange>) {
        self.last.clear();
        for range in ranges {
            if let Some(at) = self.position.get(&range.partition) {
                assert_eq!(*at, range.start, "{what}: ranges of {} touch", range.partition);
            }
            let given = self.read(what, &range).await;
            for (offset, record) in &given {
                assert!((range.start.0..range.end.0).contains(offset), "{what}: {offset} lies outside of {range}");
                if let Some(number) = self.spring.number(record) {
                    assert!(self.seen.insert(number), "{what}: record {number} comes twice");
                }
            }
            self.position.insert(range.partition.clone(), range.end);
            self.last.push((range, given));
        }
    }

    /// A server that is gone for half a minute, and comes back to another life.
    async fn outage(&mut self) {
        let (hands, what) = (self.spring.hands(), "a plan without a server");
        self.proxy.go_away().await;
        self.publish().await;
        for life in 0..2 {
            if life == 1 {
                self.new_life();
            }
            for _ in 0..15 {
                hands.pass(SECOND).await;
            }
            let (source, position) = (Arc::clone(&self.source), self.position.clone());
            let error = self.during(what, source.plan(&position, ALL)).await.expect_err("nobody is there");
            passes(what, &error);
        }
        self.proxy.come_back();
        self.batch(Work::Plan, None).await;
    }
}

/// Checks a source over a network, against each fault on the way to its server.
///
/// # Panics
/// When records are lost, doubled or others than before, when an error that passes is told as one that does not, or
/// when nothing ends.
pub async fn check_source_faults(spring: &dyn Spring) {
    let proxy = spring.way();
    let source = spring.source(proxy.address());
    let (position, seen) = (Position::new(), BTreeSet::new());
    let mut trial = Trial { spring, proxy, source, position, published: 0, seen, batch: 0, last: Vec::new() };
    trial.batch(Work::Plan, None).await;
    let kinds = [
        (true, Fault::Close),
        (false, Fault::Close),
        (false, Fault::Reset),
        (true, Fault::Silence),
        (false, Fault::Silence),
        (false, Fault::Garbage(nonsense())),
    ];
    for work in [Work::Read, Work::Plan, Work::Start] {
        // What reads stand, the rest needs to stand of the answers alone.
        for (asked, fault) in kinds.iter().filter(|(asked, _)| work == Work::Read || !asked) {
            for turn in 0..spring.turns() {
                let when = if *asked { When::Asked(turn) } else { When::Answered(turn) };
                if !trial.batch(work, Some((when, fault.clone()))).await {
                    // A read may find that all is there already; a plan asks.
                    assert!(turn > 0 || work == Work::Read, "no {} came in {work:?}", fault.told());
                    break;
                }
            }
        }
        // In the middle of an answer.
        for bytes in [1, 5, 9, 50, 100] {
            trial.batch(work, Some((When::AnsweredBytes(bytes), Fault::Close))).await;
        }
    }
    // Connections that wait for the next batch.
    for fault in [Fault::Close, Fault::Reset, Fault::Silence, Fault::Mute, Fault::Deaf, Fault::Garbage(nonsense())] {
        trial.proxy.all(fault);
        trial.batch(Work::Plan, None).await;
    }
    trial.outage().await;
    // Bytes come one by one, on all that is open and on what asks next.
    trial.proxy.all(Fault::Crumbs(1));
    trial.batch(Work::Plan, Some((When::Asked(0), Fault::Crumbs(1)))).await;
}
