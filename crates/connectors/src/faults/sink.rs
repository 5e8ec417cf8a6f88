//! What every sink over a network must stand: each request and each answer of its work lost, in each way.
//!
//! A fault is put in place of the first request of a commit, then of its second, and so on until the commit ends
//! before it comes to it; so with answers, and so with opening, staging and recovering. Half of the tries that failed are
//! repeated by the same sink, half by the next life of it.
//!
//! Asked of it: rows of committed batches are there once, or at least once where it promises no more, and then none
//! twice but for a fault each; an error on the way is one to be tried again; nothing waits without an end.
//!
//! Invariant: the suite knows only the trait, and looks at rows past the proxy. Called by tests of sinks.

use super::{Fault, FaultProxy, Hands, When, nonsense};
use crate::contract::rows;
use async_trait::async_trait;
use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tidemill_core::{BatchId, Blame, Guarantee, Result, Sink, StagedPart};

/// A sink, and a look at what it wrote.
#[async_trait]
pub trait Shelf: Send + Sync {
    /// Where the server is.
    fn address(&self) -> SocketAddr;
    /// A way to it, with nothing on it yet; one at a place of its own where the server tells clients where to come.
    fn way(&self) -> FaultProxy {
        FaultProxy::to(self.address())
    }
    /// The sink, of a server at this address; each call is another life of the same.
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink>;
    /// Column `n` of all rows that readers see, in any order.
    async fn seen(&self) -> Vec<i64>;
    /// The hands on its clock.
    fn hands(&self) -> &Hands;
    /// Turns of the longest work at most, at which the suite gives up; more for one that asks more.
    fn turns(&self) -> u64 {
        40
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// How far the clock is moved at a time when a fault has come: answers may be waited for for minutes.
const LONG: Duration = Duration::from_secs(30);
/// Tries of a work at most.
const TRIES: usize = 40;

struct Trial<'a> {
    shelf: &'a dyn Shelf,
    proxy: FaultProxy,
    sink: RefCell<Arc<dyn Sink>>,
    batch: u64,
    last: Option<(BatchId, Vec<StagedPart>)>,
    written: Vec<i64>,
    /// Faults that may have made rows come twice.
    faults: u64,
}

/// A batch's work on a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Start,
    Stage,
    Commit,
}

impl Trial<'_> {
    fn sink(&self) -> Arc<dyn Sink> {
        Arc::clone(&self.sink.borrow())
    }

    fn new_life(&self) {
        *self.sink.borrow_mut() = self.shelf.sink(self.proxy.address());
    }

    /// Does a work as the engine does: again and again while that may help.
    async fn done<T>(&self, what: &str, act: impl AsyncFn() -> Result<T>) -> T {
        for _ in 0..TRIES {
            // Of tries after that with the fault each answer is a real one, which has its time.
            let before = self.proxy.landed().faults;
            let step = || if self.proxy.landed().faults > before { LONG } else { SECOND };
            match self.shelf.hands().during(what, step, act()).await {
                Ok(done) => return done,
                Err(error) => {
                    let passes = error.is_retryable() && error.blame() == Blame::External;
                    assert!(passes, "{what}: an error that passes is none for a human: {}", error.chain());
                    // The engine's own wait between two tries.
                    self.shelf.hands().pass(SECOND).await;
                }
            }
        }
        panic!("{what}: it does not heal");
    }

    /// Opens the sink and repeats its last commit, as a start does.
    async fn start(&self, what: &str) {
        let starting = async || {
            let sink = self.sink();
            sink.open(rows([]).schema()).await?;
            if let Some((batch, parts)) = &self.last {
                sink.commit(*batch, parts).await?;
            }
            sink.recover(self.last.as_ref().map(|(batch, _)| *batch)).await
        };
        self.done(what, starting).await;
    }

    async fn stage(&self, what: &str) -> Vec<StagedPart> {
        let base = i64::try_from(self.batch).expect("few batches") * 10;
        let part = async |part: usize, numbers: std::ops::Range<i64>| {
            let staging = async || {
                let all = futures::stream::iter([Ok(rows(numbers.clone()))]);
                let time = tidemill_core::Timestamp::from_millis(1000);
                self.sink().stage(BatchId(self.batch), time, part, Box::pin(all)).await
            };
            self.done(what, staging).await.expect("a part")
        };
        vec![part(0, base..base + 3).await, part(1, base + 3..base + 5).await]
    }

    /// One batch, with a trap at a place of a work of it. Whether it snapped.
    async fn batch(&mut self, work: Work, trap: Option<(When, Fault)>) -> bool {
        self.batch += 1;
        let told = trap.as_ref().map(|(when, fault)| (*when, fault.told()));
        let what = format!("batch {}, {work:?} with {told:?}", self.batch);
        let before = self.proxy.landed().faults;
        let arm = |at: Work| {
            if let Some((when, fault)) = trap.clone().filter(|_| at == work) {
                self.proxy.arm(when, fault);
            }
        };
        if work == Work::Start {
            self.new_life();
            arm(Work::Start);
            self.start(&what).await;
            self.proxy.disarm();
        }
        arm(Work::Stage);
        let parts = self.stage(&what).await;
        if work == Work::Stage {
            self.proxy.disarm();
        }
        arm(Work::Commit);
        let batch = BatchId(self.batch);
        let odd = self.batch % 2 == 1;
        let failed = RefCell::new(0);
        let committing = async || {
            if odd && *failed.borrow() > 0 {
                // Another life: what it repeats is this commit.
                self.new_life();
                self.sink().open(rows([]).schema()).await?;
            }
            *failed.borrow_mut() += 1;
            self.sink().commit(batch, &parts).await?;
            if odd && *failed.borrow() > 1 { self.sink().recover(Some(batch)).await } else { Ok(()) }
        };
        self.done(&what, committing).await;
        self.proxy.disarm();
        let snapped = self.proxy.landed().faults > before;
        self.faults += u64::from(snapped);
        let base = i64::try_from(self.batch).expect("few batches") * 10;
        self.written.extend(base..base + 5);
        self.last = Some((batch, parts));
        self.check(&what).await;
        snapped
    }

    async fn check(&self, what: &str) {
        let mut times = BTreeMap::new();
        for n in self.shelf.hands().during(what, || Duration::ZERO, self.shelf.seen()).await {
            *times.entry(n).or_insert(0_u64) += 1;
        }
        let missing: Vec<_> = self.written.iter().filter(|n| !times.contains_key(n)).collect();
        assert!(missing.is_empty(), "{what}: {missing:?} are lost");
        let strange: Vec<_> = times.keys().filter(|n| !self.written.contains(n)).collect();
        assert!(strange.is_empty(), "{what}: {strange:?} were not committed");
        let most = match self.sink().guarantee() {
            Guarantee::ExactlyOnce => 0,
            Guarantee::AtLeastOnce => self.faults * 5,
        };
        let twice: u64 = times.values().map(|times| times - 1).sum();
        assert!(twice <= most, "{what}: {twice} rows too many, {most} may be: {times:?}");
    }
}

/// Checks a sink over a network, against each fault on the way to its server.
///
/// # Panics
/// When rows are lost or doubled, when an error that passes is told as one that does not, or when nothing ends.
pub async fn check_sink_faults(shelf: &dyn Shelf) {
    let proxy = shelf.way();
    let sink = RefCell::new(shelf.sink(proxy.address()));
    let mut trial = Trial { shelf, proxy, sink, batch: 0, last: None, written: Vec::new(), faults: 0 };
    trial.start("the start").await;
    trial.batch(Work::Commit, None).await;
    let kinds = [
        (true, Fault::Close),
        (false, Fault::Close),
        (false, Fault::Reset),
        (true, Fault::Silence),
        (false, Fault::Silence),
        (false, Fault::Garbage(nonsense())),
    ];
    // The work by which rows go to the server: where no more than once at least is promised, staging may send them,
    // and a commit says nothing.
    let mut writes = Work::Commit;
    if trial.sink().guarantee() == Guarantee::AtLeastOnce
        && !trial.batch(Work::Commit, Some((When::Asked(0), Fault::Close))).await
    {
        writes = Work::Stage;
    }
    for work in [Work::Commit, Work::Stage, Work::Start] {
        // What that stands, the rest needs to stand of the answers alone.
        for (asked, fault) in kinds.iter().filter(|(asked, _)| work == writes || !asked) {
            let mut turn = 0;
            loop {
                let when = if *asked { When::Asked(turn) } else { When::Answered(turn) };
                if !trial.batch(work, Some((when, fault.clone()))).await {
                    break;
                }
                turn += 1;
                assert!(turn < shelf.turns(), "{work:?} has over {turn} turns");
            }
            assert!(turn > 0 || work != writes, "no {} came in {work:?}", fault.told());
        }
    }
    outage(&mut trial, writes).await;
    // Bytes come a few at a time, for all that is open.
    trial.proxy.all(Fault::Crumbs(7));
    trial.batch(Work::Commit, None).await;
}

/// A server that is gone for half a minute.
async fn outage(trial: &mut Trial<'_>, writes: Work) {
    trial.batch += 1;
    let (batch, hands) = (BatchId(trial.batch), trial.shelf.hands());
    let parts = trial.stage("before the outage").await;
    trial.proxy.go_away().await;
    let mut away = Duration::ZERO;
    while away < Duration::from_secs(30) {
        // The engine's own wait between two tries.
        hands.pass(SECOND).await;
        away += SECOND;
        let spent = RefCell::new(Duration::ZERO);
        let step = || {
            *spent.borrow_mut() += SECOND;
            SECOND
        };
        let (sink, parts) = (trial.sink(), parts.clone());
        let (base, time) =
            (i64::try_from(batch.0).expect("few batches") * 10, tidemill_core::Timestamp::from_millis(1000));
        let work = async move {
            if writes == Work::Commit {
                return sink.commit(batch, &parts).await;
            }
            let all = futures::stream::iter([Ok(rows(base..base + 3))]);
            sink.stage(batch, time, 0, Box::pin(all)).await.map(drop)
        };
        let error = hands.during("work without a server", step, work).await.expect_err("nobody is there");
        assert!(error.is_retryable() && error.blame() == Blame::External, "{}", error.chain());
        away += *spent.borrow();
    }
    // A life that begins meanwhile says so, or waits for its first commit.
    trial.new_life();
    let sink = trial.sink();
    let opened = hands.during("an opening without a server", || SECOND, async { sink.open(rows([]).schema()).await });
    if let Err(error) = opened.await {
        assert!(error.is_retryable() && error.blame() == Blame::External, "{}", error.chain());
    }
    trial.proxy.come_back();
    // The ledger knows of this batch by now, so a start repeats it.
    trial.last = Some((batch, parts));
    trial.faults += 1;
    trial.start("after the outage").await;
    let base = i64::try_from(trial.batch).expect("few batches") * 10;
    trial.written.extend(base..base + 5);
    trial.check("after the outage").await;
}
