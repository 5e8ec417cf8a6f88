//! The shards of a stream: where each stands, which comes next, and what may be gone.
//!
//! ```text
//! shardId-0 ──────► read out ─┬─► shardId-2 (split)          children wait for their parents,
//! shardId-1 ──────► …         └─► shardId-3                  so a key's records keep their order
//! ```
//!
//! A shard also has the time up to which it is known to be read: that of the
//! newest answer, less what it was behind. What arrives later is kept by the
//! service for the stream's retention; so if that time is older than the
//! retention, and the last record that was read is there no more, records may
//! have gone unread.
//!
//! Invariant: no child before its parents; a place only moves on; the token holds
//! all that a restart needs. Called by [`super::session`], which asks the service.

use super::{
    Start,
    answer::{Listed, Page, Record, Summary},
    client::From,
};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};
use tidemill_core::{Error, Result, Timestamp};

/// Where a shard stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// At its oldest record.
    Oldest,
    /// At the first record that arrived at this time or later.
    Time(Timestamp),
    /// Behind the record with this number, which arrived then.
    Behind(String, Option<Timestamp>),
    /// It is closed, and read out.
    Done,
}

/// A shard.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) place: Place,
    /// Up to when it is known to be read; `None` when nothing is known.
    pub(super) until: Option<Timestamp>,
    parents: Vec<String>,
    /// Where its next page is, and the record that this page must begin with: the last one that was read.
    iterator: Option<String>,
    expects: Option<String>,
    /// Up to when it is read with the last record of the page that was taken.
    page_until: Option<Timestamp>,
    /// When it may be asked next, and whether it is being asked.
    pub(super) due: Timestamp,
    busy: bool,
    /// Refusals in a row because of too many requests.
    pub(super) throttled: u32,
}

impl Shard {
    fn new(place: Place, until: Option<Timestamp>, parents: Vec<String>) -> Self {
        let due = Timestamp(i64::MIN);
        Self { place, until, parents, iterator: None, expects: None, page_until: None, due, busy: false, throttled: 0 }
    }
}

/// What is asked of a shard: its iterator, or from where one is to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    Page(String),
    Begin(From),
}

/// What may be gone of a shard, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap(pub(super) String);

/// All shards.
#[derive(Debug, Default)]
pub(super) struct Shards {
    all: BTreeMap<String, Shard>,
    /// What is known of the stream.
    summary: Option<Summary>,
    /// When it was made, as an earlier life saw it.
    created: Option<Timestamp>,
}

impl Shards {
    /// Those of a token.
    pub(super) fn parse(token: &str) -> Result<Self> {
        let bad = || Error::user("kinesis: the place that was kept of an earlier run is none of this connector");
        let value: Value = serde_json::from_str(token).map_err(|e| bad().because(e))?;
        let time = |value: &Value| value.as_i64().map(Timestamp::from_millis);
        let shard = |(id, kept): (&String, &Value)| {
            let place = match (&kept["behind"], &kept["time"], kept["done"].as_bool()) {
                (Value::String(sequence), _, _) => Place::Behind(sequence.clone(), time(&kept["arrived"])),
                (_, Value::Number(_), _) => Place::Time(time(&kept["time"]).ok_or_else(bad)?),
                (_, _, Some(true)) => Place::Done,
                _ => Place::Oldest,
            };
            Ok((id.clone(), Shard::new(place, time(&kept["until"]), Vec::new())))
        };
        let all = value["shards"].as_object().ok_or_else(bad)?.iter().map(shard).collect::<Result<_>>()?;
        Ok(Self { all, summary: None, created: time(&value["created"]) })
    }

    /// What a restart goes on from.
    pub(super) fn token(&self) -> String {
        let mut shards = Map::new();
        for (id, shard) in &self.all {
            let mut kept = match &shard.place {
                Place::Oldest => json!({}),
                Place::Time(time) => json!({ "time": time.millis() }),
                Place::Behind(sequence, None) => json!({ "behind": sequence }),
                Place::Behind(sequence, Some(arrived)) => json!({ "behind": sequence, "arrived": arrived.millis() }),
                Place::Done => json!({ "done": true }),
            };
            if let Some(until) = shard.until
                && shard.place != Place::Done
            {
                kept["until"] = json!(until.millis());
            }
            shards.insert(id.clone(), kept);
        }
        json!({ "created": self.created.map(Timestamp::millis), "shards": shards }).to_string()
    }

    /// Those that are not read out.
    pub(super) fn unread(&self) -> usize {
        self.all.values().filter(|shard| shard.place != Place::Done).count()
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Shard> {
        self.all.get_mut(id)
    }

    /// Takes the list of shards, and what is asked beside it. Those that are gone from it are forgotten;
    /// which of them were not read out comes back.
    ///
    /// # Errors
    /// When it is another stream than the one that was read before.
    pub(super) fn listed(
        &mut self,
        listed: Vec<Listed>,
        summary: Summary,
        at: Timestamp,
        start: Start,
    ) -> Result<Vec<Gap>> {
        let created = Timestamp::from_millis(summary.created.millis());
        if let Some(known) = self.created.replace(created)
            && known != created
        {
            self.created = Some(known);
            return Err(Error::user(format!(
                "kinesis: the stream that was read before was made at {known}, and this one at {created}: it was \
                 deleted and made anew, or option `stream` names another; a stream of the program with another name \
                 begins anew"
            )));
        }
        let is_first = self.all.is_empty();
        self.summary = Some(summary);
        let mut gaps = Vec::new();
        let there: HashSet<&str> = listed.iter().map(|one| one.id.as_str()).collect();
        self.all.retain(|id, shard| {
            let is_there = there.contains(id.as_str());
            if !is_there && shard.place != Place::Done {
                let since = shard.until.map(|until| format!(" since {until}")).unwrap_or_default();
                gaps.push(Gap(format!("shard {id} is gone, and what came to it{since} was not read")));
            }
            is_there
        });
        for one in listed {
            if let Some(known) = self.all.get_mut(&one.id) {
                known.parents = one.parents;
                continue;
            }
            let (place, until) = match start {
                // What appeared later is the child of one that was read.
                _ if !is_first => (Place::Oldest, Some(at)),
                Start::Earliest => (Place::Oldest, None),
                // The service's place for it would be found later, and what came until then not be read.
                Start::Latest if one.is_open => (Place::Time(at), Some(at)),
                Start::Latest => (Place::Done, None),
                Start::Time(time) => (Place::Time(time), None),
            };
            self.all.insert(one.id, Shard::new(place, until, one.parents));
        }
        Ok(gaps)
    }

    /// Nothing is being asked: what was is forgotten.
    pub(super) fn rest(&mut self) {
        self.all.values_mut().for_each(|shard| shard.busy = false);
    }

    /// Whether a shard has something to be asked for.
    fn is_waiting(&self, shard: &Shard) -> bool {
        let is_done = |id: &String| self.all.get(id).is_none_or(|parent| parent.place == Place::Done);
        !shard.busy && shard.place != Place::Done && shard.parents.iter().all(is_done)
    }

    /// When the next shard is to be asked.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.all.values().filter(|shard| self.is_waiting(shard)).map(|shard| shard.due).min()
    }

    /// A shard that is to be asked at `now`, and what; it is busy from here on.
    pub(super) fn ask(&mut self, now: Timestamp) -> Option<(String, Ask)> {
        let waiting = self.all.iter().filter(|(_, shard)| shard.due <= now && self.is_waiting(shard));
        let (id, _) = waiting.min_by_key(|(_, shard)| shard.due)?;
        let (id, retention) = (id.clone(), self.retention());
        let shard = self.all.get_mut(&id)?;
        shard.busy = true;
        // So far behind that what comes next may be gone: the next page has to show that it is not.
        let in_doubt = shard.until.is_some_and(|until| until < now.minus(retention)) && shard.expects.is_none();
        if in_doubt && matches!(shard.place, Place::Behind(..)) {
            shard.iterator = None;
        }
        if let Some(iterator) = &shard.iterator {
            return Some((id, Ask::Page(iterator.clone())));
        }
        shard.expects = None;
        let from = match &shard.place {
            Place::Oldest | Place::Done => From::Oldest,
            Place::Time(time) => From::Time(*time),
            Place::Behind(sequence, _) => {
                shard.expects = Some(sequence.clone());
                From::At(sequence.clone())
            }
        };
        Some((id, Ask::Begin(from)))
    }

    fn retention(&self) -> Duration {
        self.summary.map_or(Duration::MAX, |summary| summary.retention)
    }

    /// A shard was asked; it may be asked again from `due` on.
    pub(super) fn asked(&mut self, id: &str, due: Timestamp) {
        if let Some(shard) = self.all.get_mut(id) {
            (shard.busy, shard.due) = (false, due);
        }
    }

    /// A shard has an iterator now.
    pub(super) fn begun(&mut self, id: &str, iterator: String) {
        if let Some(shard) = self.all.get_mut(id) {
            shard.iterator = Some(iterator);
        }
    }

    /// Whether its next page has to begin with the last record that was read.
    pub(super) fn is_expecting(&self, id: &str) -> bool {
        self.all.get(id).is_some_and(|shard| shard.expects.is_some())
    }

    /// Its iterator has expired: the next begins behind the last record.
    pub(super) fn expired(&mut self, id: &str) {
        if let Some(shard) = self.all.get_mut(id) {
            shard.iterator = None;
        }
    }

    /// The service does not know the last record that was read: what may be gone then. It goes on at the oldest.
    pub(super) fn unknown(&mut self, id: &str, at: Timestamp) -> Option<Gap> {
        let horizon = at.minus(self.retention());
        let gap = self.missing(id, horizon);
        let shard = self.all.get_mut(id)?;
        (shard.place, shard.iterator, shard.expects) = (Place::Oldest, None, None);
        if gap.is_some() {
            // It is told once.
            shard.until = None;
        }
        gap
    }

    /// What may be gone of a shard whose last record is no longer there.
    fn missing(&self, id: &str, horizon: Timestamp) -> Option<Gap> {
        let shard = self.all.get(id)?;
        let Place::Behind(sequence, arrived) = &shard.place else { return None };
        if arrived.is_some_and(|arrived| arrived >= horizon) {
            return Some(Gap(format!(
                "shard {id} has no record {sequence} any more, which is younger than the stream's retention: what came \
                 behind it may be gone with it"
            )));
        }
        // Its time was over; all that came since is there still.
        shard.until.is_none_or(|until| until < horizon).then(|| {
            let since = shard.until.or(*arrived).map(|since| format!(" since {since}")).unwrap_or_default();
            Gap(format!(
                "shard {id} has no record {sequence} any more: what came behind it{since} and before {horizon} is \
                 gone, by the stream's retention"
            ))
        })
    }

    /// Takes a page that was read at `at`: the records of it that are new, and what may be gone before them.
    /// The place is moved by [`Shards::read`].
    pub(super) fn page(&mut self, id: &str, page: Page, at: Timestamp) -> (Vec<Record>, Option<Gap>) {
        let horizon = at.minus(self.retention());
        let Some(shard) = self.all.get(id) else { return (Vec::new(), None) };
        let mut records = page.records;
        let is_at_end = page.behind.is_zero() || page.next.is_none();
        let (mut gap, mut is_settled) = (None, true);
        match (&shard.expects, records.first()) {
            (Some(expected), Some(first)) if first.sequence == *expected => drop(records.remove(0)),
            // Pages may be empty before the end.
            (Some(_), None) if !is_at_end => is_settled = false,
            (Some(_), _) => gap = self.missing(id, horizon),
            (None, _) if !matches!(shard.place, Place::Behind(..)) && shard.until.is_some_and(|at| at < horizon) => {
                let since = shard.until.unwrap_or_default();
                gap = Some(Gap(format!(
                    "shard {id} was not read since {since}: what came to it before {horizon} is gone, by the stream's \
                     retention"
                )));
            }
            (None, _) => {}
        }
        let Some(shard) = self.all.get_mut(id) else { return (Vec::new(), None) };
        if is_settled {
            shard.expects = None;
        }
        if gap.is_some() {
            // It is told once.
            shard.until = None;
        }
        shard.iterator = page.next;
        if shard.iterator.is_none() && records.is_empty() {
            shard.place = Place::Done;
        }
        let until = at.minus(page.behind);
        shard.page_until = (is_settled && !records.is_empty()).then_some(until);
        if is_settled && records.is_empty() && is_at_end {
            shard.until = Some(until);
        }
        (records, gap)
    }

    /// A record was read; with the last of a closed shard's last page this is read out.
    pub(super) fn read(&mut self, id: &str, record: &Record, is_last: bool) {
        if let Some(shard) = self.all.get_mut(id) {
            if is_last {
                shard.until = shard.page_until.take().or(shard.until);
            }
            let is_done = is_last && shard.iterator.is_none();
            shard.place = if is_done { Place::Done } else { Place::Behind(record.sequence.clone(), record.arrived) };
        }
    }
}
