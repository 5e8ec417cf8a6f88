//! What of a topic still stands: its records without those that a later notice took back.
//!
//! A topic that keeps whose notices are in it ([`Topic::notices`]) is read twice
//! by who shows its history: once for the notices, from the first record that is
//! wanted to the topic's end, and then for the records. Where no notice was found
//! the second reading looks into no record.
//!
//! Invariant: a record is hidden if a notice about it came after it: behind it in
//! its partition, or no earlier in another. What came after the notice, such as
//! a post made anew under its old id, is shown. Notices themselves are shown, and
//! records that hold no id. Called by queries over topics, and by commands that
//! print or play a topic; programs read all records, notices in their turn.

use crate::ingest::is_raw;
use arrow_array::{BooleanArray, cast::AsArray};
use hashbrown::HashMap;
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};
use tidemill_core::{Error, Notices, Offset, Registry, Result, Timestamp};
use tidemill_store::log::{LogReader, LogRows, Topic};

/// Notices that are held at most, at some 64 bytes each.
const MOST: usize = 4 << 20;

/// The notices of a topic, as far as they have been read.
pub struct Standing {
    topic: Arc<Topic>,
    notices: Arc<dyn Notices>,
    /// Two of them make an id that nobody can choose to be another's.
    keys: [RandomState; 2],
    gone: HashMap<[u64; 2], Place>,
    most: usize,
    unread: Vec<(u32, LogReader)>,
}

/// Where the last notice about an id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    time: Timestamp,
    partition: u32,
    offset: Offset,
}

impl Place {
    /// Whether the notice here came after what is there.
    fn is_after(&self, there: &Self) -> bool {
        if self.partition == there.partition { self.offset > there.offset } else { self.time >= there.time }
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of topic {} were taken back, so far", self.gone.len(), self.topic.name())
    }
}

impl Standing {
    /// What it takes to leave out of `ranges` (offsets `[from, to)` of partitions) what was taken back; `None` for a
    /// topic without notices, which are still to be read ([`Self::read`]).
    ///
    /// # Errors
    /// When the registry has nobody who reads the topic's notices, or the log can't be read.
    pub fn of(topic: &Arc<Topic>, registry: &Registry, ranges: &[(u32, Offset, Offset)]) -> Result<Option<Self>> {
        let Some(name) = topic.notices().filter(|_| is_raw(&topic.config().schema)) else { return Ok(None) };
        let notices = registry.notices(topic.name(), &name)?;
        let mut first: Option<Timestamp> = None;
        for (p, from, to) in ranges.iter().filter(|(_, from, to)| from < to) {
            let Some(rows) = topic.read(*p, *from, Offset(from.0 + 1).min(*to)).next().transpose()? else { continue };
            let time = rows.times.first().map(|(_, time)| *time);
            first = [first, time].into_iter().flatten().min();
        }
        let mut unread = Vec::new();
        if let Some(first) = first {
            for p in 0..topic.config().partitions {
                unread.push((p, topic.read(p, topic.read_time(p, first)?, topic.end(p))));
            }
        }
        Ok(Some(Self {
            topic: Arc::clone(topic),
            notices,
            keys: [RandomState::new(), RandomState::new()],
            gone: HashMap::default(),
            most: MOST,
            unread,
        }))
    }

    /// Reads notices a little further; whether there is more to read.
    ///
    /// # Errors
    /// When the log can't be read, or has more notices than can be held.
    pub fn read_on(&mut self) -> Result<bool> {
        let Some((partition, reader)) = self.unread.last_mut() else { return Ok(false) };
        let partition = *partition;
        let Some(rows) = reader.next() else {
            self.unread.pop();
            return Ok(!self.unread.is_empty());
        };
        let rows = rows?;
        let values = rows.rows.column(0).as_binary::<i32>();
        for (row, (offset, time)) in places(&rows).enumerate() {
            let Some(id) = self.notices.taken_back(values.value(row)) else { continue };
            let here = Place { time, partition, offset };
            let place = self.gone.entry(key(&self.keys, &id)).or_insert(here);
            *place = here.max(*place);
        }
        if self.gone.len() > self.most {
            return Err(Error::user(format!(
                "over {} records of topic `{}` were taken back by notices, and no more can be left out at once: ask for \
                 less of the topic, by `_timestamp` or the newest records",
                self.most,
                self.topic.name()
            )));
        }
        Ok(true)
    }

    /// Reads all notices.
    ///
    /// # Errors
    /// As [`Self::read_on`].
    pub fn read(mut self) -> Result<Self> {
        while self.read_on()? {}
        Ok(self)
    }

    /// Which rows of a partition still stand; `None` when all do.
    pub fn standing(&self, partition: u32, rows: &LogRows) -> Option<BooleanArray> {
        if self.gone.is_empty() {
            return None;
        }
        let values = rows.rows.column(0).as_binary::<i32>();
        let mut all = true;
        let stands: BooleanArray = places(rows)
            .enumerate()
            .map(|(row, (offset, time))| {
                let there = Place { time, partition, offset };
                let mut stands = true;
                self.notices.shown(values.value(row), &mut |id| {
                    let notice = self.gone.get(&key(&self.keys, id));
                    stands &= !notice.is_some_and(|notice| notice.is_after(&there));
                });
                all &= stands;
                Some(stands)
            })
            .collect();
        (!all).then_some(stands)
    }
}

fn key(keys: &[RandomState; 2], id: &str) -> [u64; 2] {
    [keys[0].hash_one(id), keys[1].hash_one(id)]
}

/// The offset and the time of each row.
fn places(rows: &LogRows) -> impl Iterator<Item = (Offset, Timestamp)> + '_ {
    let times = rows.times.iter().flat_map(|(rows, time)| std::iter::repeat_n(*time, *rows as usize));
    (rows.base.0..).map(Offset).zip(times)
}

#[cfg(test)]
mod tests;
