//! One or several sinks that share what comes from a channel.
//!
//! ```text
//! take ─► deliver to one sink ─► commit (position and what the sink left) ─► settle
//!   ▲           │ fails: it rests, the same events go to another one
//!   └───────────┘
//! ```
//!
//! A lone sink is tried again and again; `failover` tries the sink of the highest priority that does not rest;
//! `load_balance` gives each batch to the next one, or to any.
//!
//! Invariant: events leave the channel only after one sink of the group has them; while all fail they stay there.
//! Called by the running agent, in a task of its own.

use super::Outlet;
use crate::{
    backoff::{Backoff, splitmix64},
    channel::{Channel, Taken},
    event::Event,
    status::Counters,
};
use std::sync::Arc;
use tidemill_core::{Clock, Duration, Error, Result, Stop, Timestamp};

/// Pause before a commit that failed is tried again: the disk is full, perhaps.
const AGAIN: Duration = Duration::from_millis(200);

/// Which sink of a group gets events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The first that does not rest; members come by priority.
    Failover,
    /// One after the other.
    RoundRobin,
    /// Any; seeded.
    Random(u64),
}

/// A sink of a group.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) outlet: Box<dyn Outlet>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) backoff: Backoff,
    /// Whether it was opened, and has not failed since.
    pub(crate) open: bool,
    /// Whether something that is committed is perhaps not shown yet; opening it shows it.
    owes: bool,
}

impl Member {
    pub(crate) fn new(name: &str, outlet: Box<dyn Outlet>, counters: Arc<Counters>, most: Duration) -> Self {
        Self { name: name.to_owned(), outlet, counters, backoff: Backoff::new(most), open: false, owes: false }
    }

    async fn be_open(&mut self, channel: &Channel) -> Result<()> {
        if !self.open {
            let left = channel.left_by(&self.name);
            if let Some(left) = self.outlet.open(left, channel.is_durable()).await? {
                channel.leave(&self.name, left).await?;
            }
            (self.open, self.owes) = (true, false);
        }
        Ok(())
    }

    async fn deliver(&mut self, channel: &Channel, events: &[Event]) -> Result<Option<String>> {
        self.be_open(channel).await?;
        self.outlet.deliver(events).await
    }

    fn failed(&mut self, error: &Error, clock: &dyn Clock) {
        // Opened anew, it undoes what it has of events that are not committed, and shows all that are.
        self.open = false;
        self.backoff.failed(clock.now());
        self.counters.failed(error);
        tracing::warn!(sink = self.name, error = error.chain(), "a sink failed and will be tried again");
    }
}

/// Sinks that share a channel's events.
pub(crate) struct Group {
    pub(crate) members: Vec<Member>,
    pub(crate) policy: Policy,
    pub(crate) channel: Arc<Channel>,
    /// Events of a transaction at most.
    pub(crate) batch_size: usize,
    pub(crate) clock: Arc<dyn Clock>,
    turn: u64,
}

impl Group {
    pub(crate) fn new(
        members: Vec<Member>,
        policy: Policy,
        channel: Arc<Channel>,
        batch_size: usize,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { members, policy, channel, batch_size, clock, turn: 0 }
    }

    /// Hands events on until `stop`; then what is in hand is finished, or given back. From a channel in memory it goes
    /// on after `stop` until that is empty, its sinks fail, or `quit`.
    ///
    /// # Errors
    /// When the channel can't be read, or a commit failed for good.
    pub(crate) async fn run(&mut self, stop: &Stop, quit: &Stop) -> Result<()> {
        let mut news = self.channel.news();
        for member in &mut self.members {
            // The last life may have ended between a commit and what is done behind it.
            member.owes = self.channel.left_by(&member.name).is_some();
        }
        loop {
            news.mark_unchanged();
            let owed = self.settle_owed().await;
            // What is durable waits for the next start; what is not goes now or never.
            let over = stop.is_stopped() && self.channel.is_durable();
            if quit.is_stopped() || (over && owed.is_none()) {
                return Ok(());
            }
            if !over && let Some(taken) = self.channel.try_take(self.batch_size).await? {
                let taken = Arc::new(taken);
                if !self.hand_on(&taken, stop, quit).await? {
                    self.channel.roll_back(&taken);
                    return Ok(());
                }
                continue;
            }
            let stopping = stop.is_stopped();
            if stopping && owed.is_none() {
                return Ok(());
            }
            tokio::select! {
                // The channel lives as long as this group.
                _alive = news.changed() => {}
                () = stop.stopped(), if !stopping => {}
                () = quit.stopped() => {}
                () = self.clock.sleep_until(owed.unwrap_or_default()), if owed.is_some() => {}
            }
        }
    }

    /// Opens sinks that may not show all that is committed; when to try the next one, if any is left.
    async fn settle_owed(&mut self) -> Option<Timestamp> {
        for member in self.members.iter_mut().filter(|member| member.owes) {
            if member.backoff.is_over(self.clock.now())
                && let Err(error) = member.be_open(&self.channel).await
            {
                member.failed(&error, &*self.clock);
            }
        }
        self.members.iter().filter(|member| member.owes).map(|member| member.backoff.until).min()
    }

    /// Tries sinks until one has the events; `false` when it was stopped before.
    async fn hand_on(&mut self, taken: &Arc<Taken>, stop: &Stop, quit: &Stop) -> Result<bool> {
        loop {
            for index in self.order() {
                let (channel, clock) = (Arc::clone(&self.channel), Arc::clone(&self.clock));
                let member = &mut self.members[index];
                if !member.backoff.is_over(clock.now()) {
                    continue;
                }
                match member.deliver(&channel, &taken.events).await {
                    Ok(left) => {
                        member.backoff.works();
                        commit(&channel, taken, member, left, &*clock, quit).await?;
                        member.counters.delivered(&taken.events);
                        return Ok(true);
                    }
                    Err(error) => member.failed(&error, &*clock),
                }
            }
            // One that is stopped tries each sink once more, so that what can be handed on is.
            if stop.is_stopped() || quit.is_stopped() {
                return Ok(false);
            }
            let Some(next) = self.members.iter().map(|member| member.backoff.until).min() else { return Ok(false) };
            tokio::select! {
                () = self.clock.sleep_until(next) => {}
                () = stop.stopped() => {}
            }
        }
    }

    /// In which order sinks are tried.
    fn order(&mut self) -> Vec<usize> {
        let count = self.members.len();
        let first = match self.policy {
            Policy::Failover => 0,
            Policy::RoundRobin => {
                let turn = self.turn;
                self.turn += 1;
                usize::try_from(turn % count as u64).unwrap_or(0)
            }
            Policy::Random(seed) => {
                let turn = self.turn;
                self.turn += 1;
                usize::try_from(splitmix64(seed.wrapping_add(turn)) % count as u64).unwrap_or(0)
            }
        };
        (first..count).chain(0..first).collect()
    }
}

/// Takes delivered events from the channel, and lets the sink show them.
async fn commit(
    channel: &Channel,
    taken: &Arc<Taken>,
    member: &mut Member,
    left: Option<String>,
    clock: &dyn Clock,
    quit: &Stop,
) -> Result<()> {
    loop {
        match channel.commit(taken, &member.name, left.clone()).await {
            Ok(()) => break,
            Err(error) if error.is_retryable() && !quit.is_stopped() => {
                member.counters.failed(&error);
                clock.sleep_until(clock.now().plus(AGAIN)).await;
            }
            Err(error) => {
                return Err(Error::external(format!("sink \"{}\" can't commit", member.name)).because(error).fatal());
            }
        }
    }
    if let Err(error) = member.outlet.settle().await {
        member.owes = true;
        member.failed(&error, clock);
    }
    Ok(())
}
