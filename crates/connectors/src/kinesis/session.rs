//! Reading: several shards side by side, each within the service's limits.
//!
//! ```text
//! list shards ─► ask those that are due, a few at once ─► records ─► append, with all places ─► …
//!      ▲                                                      │
//!      └── when one is read out, and every minute ◄───────────┘
//! ```
//!
//! A shard may be asked five times in a second, by all readers together: it is
//! asked four times while there is more, else as option `every` says; refusals are
//! waited out longer each time.
//!
//! Invariant: what is handed on has a token with it behind which nothing is
//! skipped; a few answers at most are held beside the log. Called by the receiver.

use super::{
    Kinesis, OnGap, Shape,
    answer::{Page, Record},
    client::{Client, Fault},
    shards::{Ask, Gap, Shards},
};
use crate::{
    backoff::Backoff,
    http::failure::Failure,
    payload::beside,
    social::collect::{BLOCK, Collector, Ended, Out},
};
use async_trait::async_trait;
use futures::{StreamExt, stream::FuturesUnordered};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Timestamp};

/// Shards that are asked at once; so many answers are held at most.
const TOGETHER: usize = 4;
/// From one question of a shard to the next at least: four a second of the five that all readers may ask together.
const APART: Duration = Duration::from_millis(250);
/// How often the shards are listed, though none was read out.
const LIST: Duration = Duration::from_secs(60);
/// How often they are listed while a shard that was read out has no children yet.
const LIST_SOON: Duration = Duration::from_secs(2);
/// How often the places are kept when nothing comes.
const MARK: Duration = Duration::from_secs(600);

/// What a shard was asked, and its answer.
struct Answered {
    id: String,
    /// An iterator that was fetched for it.
    begun: Option<String>,
    page: Result<(Page, Timestamp), Fault>,
    asked: Timestamp,
}

/// Reading, as far as it is.
pub(super) struct Session {
    kinesis: Kinesis,
    client: Arc<Client>,
    shards: Shards,
    list_at: Timestamp,
    mark_at: Timestamp,
    /// The token that was handed on last.
    token: String,
    is_told: bool,
    throttled: Backoff,
}

impl Session {
    pub(super) fn new(kinesis: Kinesis, client: Client, shards: Shards, token: Option<String>) -> Self {
        let throttled = Backoff::between(Duration::from_millis(500), Duration::from_secs(10), kinesis.seed);
        Self {
            kinesis,
            client: Arc::new(client),
            shards,
            list_at: Timestamp(i64::MIN),
            mark_at: Timestamp(i64::MIN),
            token: token.unwrap_or_default(),
            is_told: false,
            throttled,
        }
    }

    /// Lists the shards.
    async fn list(&mut self, out: &Out) -> Result<(), Failure> {
        let failure = |fault: Fault| fault.failure(self.kinesis.stream.shown());
        let summary = self.client.summary().await.map_err(failure)?;
        let (listed, at) = self.client.list().await.map_err(failure)?;
        let gaps = self.shards.listed(listed, summary, at, self.kinesis.start)?;
        for gap in gaps {
            self.gap(&gap, out)?;
        }
        self.list_at = out.clock().now().plus(LIST);
        // Where it begins is kept before the first record: `latest` is not looked up again after a restart.
        self.mark(out).await?;
        self.connected(out);
        Ok(())
    }

    fn connected(&mut self, out: &Out) {
        if !self.is_told {
            let (stream, count) = (self.kinesis.stream.shown(), self.shards.unread());
            out.report(&format!("connected to {}: stream {stream}, {count} shards", self.client.endpoint));
            self.is_told = true;
        }
    }

    fn gap(&mut self, gap: &Gap, out: &Out) -> Result<(), Failure> {
        let Gap(what) = gap;
        match self.kinesis.on_gap {
            OnGap::Stop => Err(Failure::Fatal(Error::user(format!(
                "kinesis: {what}; option `on_gap = 'skip'` goes on with what is left"
            )))),
            OnGap::Skip => {
                out.report(&format!("waiting: going on behind a gap: {what}"));
                self.is_told = false;
                Ok(())
            }
        }
    }

    /// Keeps the places, if they have moved.
    async fn mark(&mut self, out: &Out) -> Result<(), Failure> {
        let token = self.shards.token();
        if token != self.token {
            out.keep(token.clone()).await?;
            self.token = token;
        }
        self.mark_at = out.clock().now().plus(MARK);
        Ok(())
    }

    /// Asks until all is read, or it fails.
    async fn read(&mut self, out: &Out) -> Result<Ended, Failure> {
        self.shards.rest();
        let mut asked = FuturesUnordered::new();
        loop {
            if out.is_stopped() {
                return Ok(Ended::Stopped);
            }
            let now = out.clock().now();
            if now >= self.list_at {
                match out.unless_stopped(self.list(out)).await {
                    None => return Ok(Ended::Stopped),
                    Some(listed) => listed?,
                }
            }
            if now >= self.mark_at {
                self.mark(out).await?;
            }
            while asked.len() < TOGETHER
                && let Some((id, ask)) = self.shards.ask(now)
            {
                asked.push(answered(Arc::clone(&self.client), id, ask, self.kinesis.limit, now));
            }
            let next = self.shards.next_due().filter(|_| asked.len() < TOGETHER);
            let wake = next.map_or(self.list_at, |next| next.min(self.list_at)).min(self.mark_at);
            if asked.is_empty() {
                return Ok(Ended::Again(wake));
            }
            tokio::select! {
                biased;
                () = out.stop().stopped() => return Ok(Ended::Stopped),
                Some(answered) = asked.next() => self.take(answered, out).await?,
                () = out.clock().sleep_until(wake) => {}
            }
        }
    }

    async fn take(&mut self, answered: Answered, out: &Out) -> Result<(), Failure> {
        let Answered { id, begun, page, asked } = answered;
        if let Some(iterator) = begun {
            self.shards.begun(&id, iterator);
        }
        let soon = asked.plus(APART);
        let fault = match page {
            Ok((page, at)) => return self.page(&id, page, at, asked, out).await,
            Err(fault) => fault,
        };
        match fault {
            Fault::Expired => {
                self.shards.expired(&id);
                self.shards.asked(&id, soon);
            }
            Fault::Throttled(why) => {
                let wait = self.wait(&id);
                out.report(&format!("waiting: shard {id} gives no more for {:.1} s: {why}", wait.as_secs_f64()));
                self.is_told = false;
                self.shards.asked(&id, out.clock().now().plus(wait));
            }
            Fault::Missing(_) => {
                // The list tells what is gone: the shard, or the stream.
                self.list_at = out.clock().now();
                self.shards.asked(&id, out.clock().now().plus(LIST_SOON));
            }
            Fault::Argument(why) if self.shards.is_expecting(&id) => {
                tracing::warn!(shard = id, why, "the service does not know the last record that was read");
                if let Some(gap) = self.shards.unknown(&id, out.clock().now()) {
                    self.gap(&gap, out)?;
                }
                self.shards.asked(&id, soon);
            }
            other => return Err(other.failure(self.kinesis.stream.shown())),
        }
        Ok(())
    }

    /// How long a shard waits that was asked too much.
    fn wait(&mut self, id: &str) -> Duration {
        let mut wait = self.throttled.clone();
        let times = self.shards.get_mut(id).map_or(0, |shard| {
            shard.throttled = shard.throttled.saturating_add(1);
            shard.throttled
        });
        (0..times.min(16)).map(|_| wait.next_wait()).last().unwrap_or(APART)
    }

    async fn page(&mut self, id: &str, page: Page, at: Timestamp, asked: Timestamp, out: &Out) -> Result<(), Failure> {
        let (is_last, is_more) = (page.next.is_none(), !page.behind.is_zero());
        let (records, gap) = self.shards.page(id, page, at);
        if let Some(gap) = gap {
            self.gap(&gap, out)?;
        }
        let is_new = !records.is_empty();
        self.put(id, &records, out).await?;
        let again = if is_new || is_more { APART } else { self.kinesis.every };
        self.shards.asked(id, asked.plus(again));
        if let Some(shard) = self.shards.get_mut(id) {
            shard.throttled = 0;
        }
        if is_last {
            // Its children come next.
            self.mark(out).await?;
            self.list_at = out.clock().now();
        }
        self.connected(out);
        Ok(())
    }

    /// Hands on records of a shard, block by block.
    async fn put(&mut self, id: &str, records: &[Record], out: &Out) -> Result<(), Failure> {
        let (mut block, mut bytes, mut is_refused) = (Vec::new(), 0, false);
        for (at, record) in records.iter().enumerate() {
            let text = of(self.kinesis.shape, id, record);
            if text.len() > self.kinesis.max_line {
                let (length, most) = (text.len(), self.kinesis.max_line);
                let why = format!(
                    "record {} of shard {id} has {length} bytes, over the bound of {most} (option `max_line`)",
                    record.sequence
                );
                out.refuse(why, &text).await?;
                is_refused = true;
            } else {
                bytes += text.len() + size_of::<Vec<u8>>();
                block.push(text);
            }
            let is_last = at + 1 == records.len();
            self.shards.read(id, record, is_last);
            if !block.is_empty() && (is_last || bytes >= BLOCK) {
                let token = self.shards.token();
                out.put(&block, token.clone()).await?;
                self.token = token;
                self.mark_at = out.clock().now().plus(MARK);
                (block, bytes, is_refused) = (Vec::new(), 0, false);
            }
        }
        if is_refused {
            self.mark(out).await?;
        }
        Ok(())
    }
}

/// A record as it is kept.
fn of(shape: Shape, shard: &str, record: &Record) -> Vec<u8> {
    match shape {
        Shape::Data => record.data.clone(),
        Shape::Message => {
            let head = json!({
                "shard": shard,
                "sequence_number": record.sequence,
                "partition_key": record.key,
                "arrived": record.arrived.map(|at| at.to_string()),
            });
            beside(&head, "data", &record.data)
        }
    }
}

async fn answered(client: Arc<Client>, id: String, ask: Ask, limit: usize, asked: Timestamp) -> Answered {
    let (begun, iterator) = match ask {
        Ask::Page(iterator) => (None, iterator),
        Ask::Begin(from) => match client.iterator(&id, &from).await {
            Ok(iterator) => (Some(iterator.clone()), iterator),
            Err(fault) => return Answered { id, begun: None, page: Err(fault), asked },
        },
    };
    let page = client.records(&iterator, limit).await;
    Answered { id, begun, page, asked }
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        let ended = self.read(out).await;
        if ended.is_err() {
            self.is_told = false;
        }
        ended
    }
}
