//! From a source to its channels: interceptors, selector, puts.
//!
//! ```text
//! events ─► interceptors ─► selector ─► required channels, waiting for room ─► acks, all of them
//!                                    └► optional channels, as far as there is room now
//! ```
//!
//! A source that can go on where it stopped hands a token in with its events. It goes into every durable channel that
//! the source must fill, also where the batch has nothing for it: so the lowest number among them says up to where all
//! of them have all. After a crash the source goes on there; channels that were ahead get some events again. Before
//! the first of them, their tokens are put back to the lowest, so that from then on the same number is the same place
//! in all channels. A source that is begun anew without a crash goes on behind its last put.
//!
//! Invariant: a put is acked only when all required channels have it; without a crash each has each event once,
//! whatever fails meanwhile, for a channel that has taken its part is not asked again. Called by sources.

use crate::{
    channel::{Channel, file::Token},
    event::{Event, events_of},
    interceptor::Interceptor,
    selector::Selector,
    status::Counters,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use tidemill_core::{Ack, Block, Clock, DeadLetter, Duration, Intake, Result, Stop};
use tokio::sync::Mutex;

/// Pause between tries while the disk is full.
const RETRY: Duration = Duration::from_millis(200);

/// The acks of all channels that must have a put.
#[derive(Debug)]
pub(crate) struct Acks(Vec<Ack>);

impl Acks {
    /// Completes when all of them have it.
    ///
    /// # Errors
    /// When one never will.
    pub(crate) async fn all(self) -> Result<()> {
        for ack in self.0 {
            ack.await?;
        }
        Ok(())
    }
}

/// Where a source hands its events.
#[derive(Debug)]
pub(crate) struct Inlet {
    source: String,
    interceptors: Vec<Interceptor>,
    selector: Selector,
    channels: Vec<Arc<Channel>>,
    /// Places of the durable channels that keep tokens.
    keepers: Vec<usize>,
    counters: Arc<Counters>,
    clock: Arc<dyn Clock>,
    /// Ends waits for room: told when the agent is to quit at once.
    quit: Stop,
    /// What came with the last put that had a token, in this life or an earlier one.
    resume: parking_lot::Mutex<Option<String>>,
    /// The number of the last token; held through a put, so that events and tokens keep their order.
    order: Mutex<u64>,
}

impl Inlet {
    /// The inlet of a source; makes sure that all channels that keep its tokens have the same.
    ///
    /// # Errors
    /// When the log refuses.
    pub(crate) async fn open(parts: Parts) -> Result<Self> {
        let Parts { source, interceptors, selector, channels, counters, clock, quit } = parts;
        let required = selector.required(channels.len());
        let keepers: Vec<usize> = required.into_iter().filter(|channel| channels[*channel].is_durable()).collect();
        let tokens: Vec<Option<Token>> = keepers.iter().map(|channel| channels[*channel].token(&source)).collect();
        let first = tokens.iter().flatten().min_by_key(|token| token.number).cloned();
        let first = first.unwrap_or(Token { number: 0, resume: None });
        for (channel, token) in keepers.iter().zip(&tokens) {
            if token.as_ref() != Some(&first) {
                // One without a token has had nothing; from now on that counts. One that is ahead gets again what it
                // has: counted on from its own number, a later crash could take the wrong channel for the one behind.
                if let Some(ack) = channels[*channel].try_put(&mut Vec::new(), &source, Some(&first))? {
                    ack.await?;
                }
            }
        }
        Ok(Self {
            source,
            interceptors,
            selector,
            channels,
            keepers,
            counters,
            clock,
            quit,
            resume: parking_lot::Mutex::new(first.resume),
            order: Mutex::new(first.number),
        })
    }

    /// Takes events in, in the order of the calls; waits while a required channel is full.
    ///
    /// # Errors
    /// When a required channel can't take them for good: the source must stop.
    pub(crate) async fn put(&self, mut events: Vec<Event>, resume: Option<String>) -> Result<Acks> {
        let came = events.len();
        let bytes = bytes_of(&events);
        if !self.interceptors.is_empty() {
            events.retain_mut(|event| self.interceptors.iter().all(|interceptor| interceptor.pass(event)));
            self.counters.filtered((came - events.len()) as u64);
        }
        let mut number = self.order.lock().await;
        self.counters.delivered(&events);
        let mut dealt = self.selector.deal(events, self.channels.len());
        self.counters.unrouted(dealt.unrouted);
        for (place, _) in self.channels.iter().enumerate().filter(|(_, channel)| !channel.is_durable()) {
            let_go(&mut dealt.required[place], bytes);
            let_go(&mut dealt.optional[place], bytes);
        }
        let token = resume.as_ref().filter(|_| !self.keepers.is_empty()).map(|resume| {
            *number += 1;
            Token { number: *number, resume: Some(resume.clone()) }
        });
        let mut acks = Vec::new();
        for (place, (channel, events)) in self.channels.iter().zip(&mut dealt.required).enumerate() {
            let token = token.as_ref().filter(|_| self.keepers.contains(&place));
            if !events.is_empty() || token.is_some() {
                acks.push(self.put_one(channel, events, token).await?);
            }
        }
        if resume.is_some() {
            *self.resume.lock() = resume;
        }
        for (channel, mut events) in self.channels.iter().zip(dealt.optional) {
            if events.is_empty() {
                continue;
            }
            let count = events.len() as u64;
            match channel.try_put(&mut events, &self.source, None) {
                Ok(Some(_)) => {}
                Ok(None) => self.counters.missed(count),
                Err(error) => {
                    tracing::warn!(channel = channel.name, error = error.chain(), "an optional channel missed events");
                    self.counters.missed(count);
                }
            }
        }
        Ok(Acks(acks))
    }

    async fn put_one(&self, channel: &Arc<Channel>, events: &mut Vec<Event>, token: Option<&Token>) -> Result<Ack> {
        loop {
            match channel.put(events, &self.source, token, &self.quit).await {
                Err(error) if error.is_retryable() && !self.quit.is_stopped() => {
                    self.counters.failed(&error);
                    self.counters.says(&format!("waiting: {}", error.chain()));
                    self.clock.sleep_until(self.clock.now().plus(RETRY)).await;
                }
                put => return put,
            }
        }
    }

    /// Counts a record that can't become an event.
    pub(crate) fn refused(&self, reason: &str) {
        tracing::warn!(source = self.source, reason, "a record was refused");
        self.counters.refused();
        self.counters.says(&format!("refused a record: {reason}"));
    }

    /// Says how the source fares.
    pub(crate) fn says(&self, state: &str) {
        self.counters.says(state);
    }

    /// What the source has taken in.
    #[cfg(test)]
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Now.
    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// What the source left with its last put: of this life or, over durable channels, of an earlier one.
    pub(crate) fn resumes(&self) -> Option<String> {
        self.resume.lock().clone()
    }
}

fn bytes_of(events: &[Event]) -> u64 {
    events.iter().map(|event| event.body.len() as u64).sum()
}

/// Copies bodies when they are less than half of the `bytes` that came with them. They share one buffer: few of them
/// would hold all of it in memory, and a channel's bound in bytes would not hold.
fn let_go(events: &mut [Event], bytes: u64) {
    if 2 * bytes_of(events) < bytes {
        for event in events {
            event.body = Bytes::copy_from_slice(&event.body);
        }
    }
}

/// What an inlet is made of.
pub(crate) struct Parts {
    pub(crate) source: String,
    pub(crate) interceptors: Vec<Interceptor>,
    pub(crate) selector: Selector,
    pub(crate) channels: Vec<Arc<Channel>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) quit: Stop,
}

/// So that every receiver of the registry is a source.
#[async_trait]
impl Intake for Inlet {
    async fn append(&self, block: Block, resume: Option<String>) -> Result<Ack> {
        let acks = self.put(events_of(block, self.clock.now()), resume).await?.0;
        let mut acks = acks.into_iter();
        match (acks.next(), acks.len()) {
            (Some(ack), 0) => Ok(ack),
            (first, _) => {
                let (done, ack) = Ack::pair();
                let all = Acks(first.into_iter().chain(acks).collect());
                tokio::spawn(async move { drop(done.send(all.all().await)) });
                Ok(ack)
            }
        }
    }

    async fn refuse(&self, letter: DeadLetter) -> Result<()> {
        self.refused(&letter.reason);
        Ok(())
    }

    fn resume(&self) -> Option<String> {
        self.resumes()
    }

    fn report(&self, state: &str) {
        self.counters.says(state);
    }
}

#[cfg(test)]
pub(crate) mod tests;
