//! What every receiver that listens must stand of those who connect to it: lines that break, fall silent, or talk nonsense.
//!
//! Asked of it: whole records are in the log, once and in their order; what was torn off by a reset is a dead letter
//! and no record; a log that is behind slows a peer down; a peer that is silent holds nobody else up, and is let go
//! after the idle time; a stop is prompt.
//! There is no acknowledgement on such a line, so what a peer said into a line that was dead is lost.
//!
//! Invariant: the suite plays the peer, and knows only how a record is framed. Called by tests of receivers.

use super::{Fault, FaultProxy, Hands, When, nonsense};
use crate::contract::{Behind, Heard, Recorder};
use async_trait::async_trait;
use futures::FutureExt;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tidemill_core::{Intake, Receiver, StopHandle};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// A receiver that listens, and how one talks to it.
#[async_trait]
pub trait Caller: Send + Sync {
    /// The receiver, at a free port of the loopback, which its state tells. It lets go who is silent for a minute.
    fn receiver(&self) -> Arc<dyn Receiver>;
    /// A record with this number, framed: at least eight bytes, the number behind the fourth.
    fn frame(&self, number: u64) -> Vec<u8>;
    /// The number of a record, if it is one of those, and whole.
    fn number(&self, record: &[u8]) -> Option<u64>;
    /// The hands on its clock.
    fn hands(&self) -> &Hands;
}

struct Line<'a> {
    caller: &'a dyn Caller,
    proxy: &'a FaultProxy,
    intake: &'a Recorder,
    next: u64,
}

impl Line<'_> {
    async fn until(&self, step: Duration, what: &str, holds: impl Fn(&Heard) -> bool) {
        self.caller.hands().until(step, what, || holds(&self.intake.heard())).await;
    }

    fn numbers(&self) -> Vec<u64> {
        self.intake.heard().records.iter().filter_map(|record| self.caller.number(record)).collect()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.proxy.address()).await.expect("a line")
    }

    /// Says so many records; gives their numbers.
    async fn say(&mut self, line: &mut TcpStream, count: u64) -> Vec<u64> {
        let numbers: Vec<u64> = (self.next..self.next + count).collect();
        self.next += count;
        let frames: Vec<u8> = numbers.iter().flat_map(|number| self.caller.frame(*number)).collect();
        // A line that is dead takes it, or does not.
        let _written = line.write_all(&frames).await;
        numbers
    }

    /// Waits for these numbers, which are the last that came, once and in their order.
    async fn heard(&self, numbers: &[u64], what: &str) {
        self.until(Duration::ZERO, &format!("{numbers:?} are heard: {what}"), |_| {
            numbers.iter().all(|number| self.numbers().contains(number))
        })
        .await;
        let all = self.numbers();
        let of_these: Vec<u64> = all.iter().copied().filter(|number| numbers.contains(number)).collect();
        assert_eq!(of_these, numbers, "{what}: once, and in their order");
    }

    /// A line of its own on which all is well.
    async fn is_well(&mut self, what: &str) {
        let mut line = self.connect().await;
        let said = self.say(&mut line, 3).await;
        self.heard(&said, what).await;
    }

    /// Waits until nobody is connected.
    async fn is_left(&self, step: Duration, what: &str) {
        self.until(step, what, |heard| heard.states.last().is_some_and(|state| state.ends_with(", 0 connected"))).await;
    }
}

/// Where a receiver listens, as it tells.
async fn listens(hands: &Hands, intake: &Recorder) -> SocketAddr {
    let address = |heard: &Heard| -> Option<SocketAddr> {
        let state = heard.states.iter().find_map(|state| state.strip_prefix("listening on "))?;
        state.split(',').next()?.parse().ok()
    };
    hands.until(Duration::ZERO, "it listens", || address(&intake.heard()).is_some()).await;
    address(&intake.heard()).expect("an address")
}

/// A log that takes nothing: the peer is slowed down, and what it says is not gathered.
async fn slowed(caller: &dyn Caller) {
    let (log, hands) = (Behind::new(), caller.hands());
    let (stop, stopped) = StopHandle::new();
    let (receiver, given) = (caller.receiver(), Arc::<Behind>::clone(&log));
    let task = tokio::spawn(async move { receiver.run(given, stopped).await });
    let proxy = FaultProxy::to(listens(hands, &log.heard).await);
    let mut line = TcpStream::connect(proxy.address()).await.expect("a line");
    let block: Vec<u8> = (0..50_000).flat_map(|number| caller.frame(number)).collect();
    let blocks = (64 << 20) / block.len();
    let sending = tokio::spawn(async move {
        for _ in 0..blocks {
            line.write_all(&block).await?;
        }
        std::io::Result::Ok(())
    });
    // The system's buffers fill up, and then nothing moves for many beats.
    let (mut before, mut beats) = (0, 0);
    let still = || {
        let now = proxy.landed().asked;
        beats = if now > 0 && std::mem::replace(&mut before, now) == now { beats + 1 } else { 0 };
        beats > 20
    };
    hands.until(Duration::ZERO, "nothing moves", still).await;
    assert!(!sending.is_finished() && proxy.landed().asked < 48 << 20, "{:?}", proxy.landed());
    assert!(log.heard.heard().records.is_empty() && log.entered(2).now_or_never().is_none(), "one append at a time");
    sending.abort();
    log.let_through(1_000_000);
    hands.until(Duration::ZERO, "it goes on", || log.heard.heard().blocks > 0).await;
    stop.stop();
    hands.until(Duration::ZERO, "it stops", || task.is_finished()).await;
    task.await.expect("no panic").expect("stopped");
}

/// Checks a receiver that listens, against each fault of those who connect to it.
///
/// # Panics
/// When whole records are lost or doubled, when one peer holds up another, or when it does not stop.
pub async fn check_listener_faults(caller: &dyn Caller) {
    slowed(caller).await;
    let intake = Arc::new(Recorder::default());
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let (stop, stopped) = StopHandle::new();
    let receiver = caller.receiver();
    let task = tokio::spawn(async move { receiver.run(given, stopped).await });
    let hands = caller.hands();
    let proxy = FaultProxy::to(listens(hands, &intake).await);
    let mut at = Line { caller, proxy: &proxy, intake: &intake, next: 1_000 };
    at.is_well("the start").await;
    at.is_left(Duration::ZERO, "the first line is closed").await;

    // Torn in the fourth record, by a reset: three are whole, and the fourth is a letter.
    let length = caller.frame(at.next).len() as u64;
    let mut line = at.connect().await;
    let said = at.say(&mut line, 3).await;
    at.heard(&said, "before a reset").await;
    proxy.arm(When::AskedBytes(length - 3), Fault::Reset);
    let torn = at.say(&mut line, 1).await;
    at.is_left(Duration::ZERO, "a line that was reset is gone").await;
    assert!(!at.numbers().contains(&torn[0]), "what was torn off is no record");
    drop(line);
    at.is_well("a reset").await;

    // Half open in the middle of a record, beside another line.
    let mut silent = at.connect().await;
    let said = at.say(&mut silent, 2).await;
    at.heard(&said, "before silence").await;
    proxy.arm(When::AskedBytes(length - 3), Fault::Lost);
    let lost = at.say(&mut silent, 2).await;
    hands.until(Duration::ZERO, "the line is dead", || proxy.landed().faults == 2).await;
    at.is_well("a line that is half open").await;
    let letters = intake.heard().refused.len();
    hands.pass(Duration::from_secs(30)).await;
    at.is_well("half a minute of silence").await;
    at.is_left(Duration::from_secs(5), "the silent line is let go").await;
    assert!(!at.numbers().iter().any(|number| lost.contains(number)), "what did not arrive is no record");
    assert_eq!(intake.heard().refused.len(), letters + 1, "what had begun is a letter");

    // Nonsense, and whoever comes next.
    let mut line = at.connect().await;
    line.write_all(&nonsense()).await.expect("taken");
    drop(line);
    at.is_left(Duration::ZERO, "who talks nonsense is gone").await;
    at.is_well("nonsense").await;

    // Bytes come one by one.
    let mut line = at.connect().await;
    let said = at.say(&mut line, 1).await;
    at.heard(&said, "a line").await;
    proxy.all(Fault::Crumbs(1));
    let said = at.say(&mut line, 3).await;
    at.heard(&said, "a line that is slow").await;

    // A stop beside lines that are open, half open, and in the middle of a record.
    proxy.arm(When::AskedBytes(length - 3), Fault::Lost);
    at.say(&mut line, 1).await;
    hands.until(Duration::ZERO, "the line is dead", || proxy.landed().faults == 3).await;
    stop.stop();
    hands.until(Duration::ZERO, "it stops, though the clock stands still", || task.is_finished()).await;
    task.await.expect("no panic").expect("stopped");
}
