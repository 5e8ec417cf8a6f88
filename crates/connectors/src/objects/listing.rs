//! Which objects are new: found by listing, in the order of their names.
//!
//! ```text
//! names ─►  a   b   c   d   e   f   g
//!           └── a whole round: each `sweep` ──┘
//!                               └─ a round behind the last name seen: each `refresh`
//! ```
//!
//! A round from behind the last name costs one request while nothing is new, whatever the prefix holds. It does not
//! see an object whose name comes before others that are there already; that one is found by the next whole round.
//! Of up to a thousand objects a whole round is one request as well, so then each round is a whole one.
//!
//! Invariant: an object that was found stays until the position is at its end; an object that changed after some of it
//! was read, or that went before all of it was, is an error that names it. A plan asks for [`PAGES`] pages at most, and
//! at most [`FOUND`] objects that are not read are held: more are listed when those are read. Called by the source.

use super::{
    Place,
    fetch::{Version, mark},
};
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use glob::{MatchOptions, Pattern};
use object_store::{ObjectMeta, ObjectStore};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::Duration,
};
use tidemill_core::{Clock, Error, Offset, PartitionId, Position, Result, Timestamp};

/// Objects of a page.
pub(super) const PAGE: usize = 1000;
/// Pages that one plan asks for at most.
pub(super) const PAGES: usize = 10;
/// Objects that are held at most until they are read.
pub(super) const FOUND: usize = 10_000;
/// Files that are looked at side by side.
const LOOKS: usize = 16;
const MATCH: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// An object that is not read to its end.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) mark: u32,
    pub(super) size: u64,
    /// The first row of each row group, and the rows of all, where it is known.
    pub(super) groups: Option<Arc<Vec<u64>>>,
}

/// What is listed, and how often.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) place: Arc<Place>,
    pub(super) pattern: Option<Pattern>,
    /// Names up to this one are passed over.
    pub(super) after: String,
    pub(super) refresh: Duration,
    pub(super) sweep: Duration,
    /// Bits that an offset is above a byte.
    pub(super) shift: u32,
    pub(super) clock: Arc<dyn Clock>,
}

/// What this life has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// By what follows the prefix.
    pub(super) found: BTreeMap<String, Found>,
    round: Option<Round>,
    /// The last name of all.
    frontier: String,
    /// When a round ended, and when a whole one did.
    looked: Option<Timestamp>,
    swept: Option<Timestamp>,
    /// Whether all objects are one page.
    is_small: bool,
    /// Of the last position: partitions, and their offsets together.
    position: (usize, u128),
}

#[derive(Debug)]
struct Round {
    /// The last name that it came to.
    cursor: String,
    whole: bool,
    listed: usize,
}

impl Listing {
    /// Looks for new objects when it is time to, and `now` to the end.
    pub(super) async fn look(&self, seen: &mut Seen, position: &Position, now: bool) -> Result<()> {
        let at = (position.len(), position.values().map(|at| u128::from(at.0)).sum());
        if at.0 < seen.position.0 || at.1 < seen.position.1 {
            // What was read by the position before is perhaps to be read by this one.
            *seen = Seen::default();
        }
        seen.position = at;
        if now {
            seen.round = None;
        }
        let looked = self.listed(seen, position, now).await;
        if looked.as_ref().is_err_and(|error| !error.is_retryable()) {
            // Once it is mended all is looked at again.
            (seen.round, seen.looked, seen.swept) = (None, None, None);
        }
        looked
    }

    async fn listed(&self, seen: &mut Seen, position: &Position, now: bool) -> Result<()> {
        let time = self.clock.now();
        let is_over = |since: Option<Timestamp>, span: Duration| {
            since.is_none_or(|since| {
                time.0.saturating_sub(since.0) >= i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
            })
        };
        if seen.round.is_none() {
            if !now && !is_over(seen.looked, self.refresh) {
                return Ok(());
            }
            // Where names come in no order all of them are asked for anyway.
            let whole = now || seen.is_small || !self.place.is_sorted || is_over(seen.swept, self.sweep);
            let cursor = if whole { self.after.clone() } else { seen.frontier.clone() };
            seen.round = Some(Round { cursor, whole, listed: 0 });
        }
        let mut left = if now { usize::MAX } else { PAGES * PAGE };
        let Some(round) = &mut seen.round else { return Ok(()) };
        let listed = self.behind(&round.cursor).await?;
        // What is known was whole when it was found.
        let known: BTreeSet<String> = match &self.place.tree {
            Some(_) => seen.found.keys().cloned().collect(),
            None => BTreeSet::new(),
        };
        let mut listed = self.closed(listed, &known, position);
        loop {
            if left == 0 || seen.found.len() >= FOUND {
                return Ok(());
            }
            left -= 1;
            let Some((object, is_closed)) = listed.try_next().await? else { break };
            if !is_closed {
                continue;
            }
            let name = self.place.rest(&object.location);
            gone(&self.place, &mut seen.found, (&round.cursor, Some(name)), position, self.shift)?;
            round.cursor = name.to_string();
            round.listed += 1;
            if *name > *seen.frontier {
                seen.frontier = name.to_string();
            }
            self.take(&mut seen.found, name, &object, position)?;
        }
        gone(&self.place, &mut seen.found, (&round.cursor, None), position, self.shift)?;
        if round.whole {
            seen.swept = Some(time);
            seen.is_small = round.listed < PAGE;
        }
        (seen.looked, seen.round) = (Some(time), None);
        Ok(())
    }

    /// The objects whose names come behind one, by their names.
    async fn behind(&self, name: &str) -> Result<BoxStream<'static, object_store::Result<ObjectMeta>>> {
        let prefix = self.place.prefix()?;
        let prefix = (!self.place.prefix.is_empty()).then_some(&prefix);
        let listed = match name {
            "" => self.place.store.list(prefix),
            name => self.place.store.list_with_offset(prefix, &self.place.key(name)?),
        };
        if self.place.is_sorted {
            return Ok(listed);
        }
        let listed: Result<Vec<ObjectMeta>, _> = listed.try_collect().await;
        let mut listed = match listed {
            // A file system has a directory, or somebody has mistaken its name.
            Err(error) if self.place.is_absent(&error) && self.place.tree.is_none() => Vec::new(),
            listed => listed.map_err(|error| self.place.failed("list", error))?,
        };
        listed.sort_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
        Ok(stream::iter(listed.into_iter().map(Ok)).boxed())
    }

    /// The same, each with whether nobody writes to it any more; of those that may be new, and in file systems alone.
    fn closed<'a>(
        &'a self,
        listed: BoxStream<'static, object_store::Result<ObjectMeta>>,
        known: &'a BTreeSet<String>,
        position: &'a Position,
    ) -> BoxStream<'a, Result<(ObjectMeta, bool)>> {
        let Some(tree) = &self.place.tree else {
            let all = listed.map(|object| Ok((object.map_err(|error| self.place.failed("list", error))?, true)));
            return all.boxed();
        };
        let asked = listed.map(move |object| async move {
            let object = object.map_err(|error| self.place.failed("list", error))?;
            let name = self.place.rest(&object.location);
            let id = Version { name: name.to_string(), mark: mark(&object) }.partition();
            if object.size == 0 || !self.is_wanted(name) || known.contains(name) || position.contains_key(&id) {
                return Ok((object, true));
            }
            match tree.is_closed(&object.location).await {
                Ok(is_closed) => Ok((object, is_closed)),
                // It went meanwhile.
                Err(error) if self.place.is_absent(&error) => Ok((object, false)),
                Err(error) => Err(self.place.failed("look at a file of", error)),
            }
        });
        asked.buffered(LOOKS).boxed()
    }

    fn is_wanted(&self, name: &str) -> bool {
        let is_chosen = self.pattern.as_ref().is_none_or(|pattern| pattern.matches_with(name, MATCH));
        is_chosen && !is_being_prepared(name) && *name > *self.after
    }

    /// Notes an object, unless it is not to be read or was.
    fn take(
        &self,
        found: &mut BTreeMap<String, Found>,
        name: &str,
        object: &ObjectMeta,
        position: &Position,
    ) -> Result<()> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let version = Version { name: name.to_string(), mark: mark(object) };
        if let Some((other, read)) = of_other_version(position, &version) {
            let (kind, url) = (self.place.kind, self.place.url());
            return Err(Error::user(format!(
                "{kind}: {url}/{name} was replaced by other content after it had been read up to {read} (as {other}); put it back, or give the new content another name"
            )));
        }
        let end = object.size << self.shift;
        if position.get(&version.partition()).is_some_and(|at| at.0 >= end) || object.size == 0 {
            found.remove(name);
            return Ok(());
        }
        let groups = found.get(name).filter(|known| known.mark == version.mark).and_then(|known| known.groups.clone());
        found.insert(version.name, Found { mark: version.mark, size: object.size, groups });
        Ok(())
    }
}

/// Objects that were found between two names and are not there any more.
fn gone(
    place: &Place,
    found: &mut BTreeMap<String, Found>,
    (from, to): (&str, Option<&str>),
    position: &Position,
    shift: u32,
) -> Result<()> {
    let between = (Excluded(from), to.map_or(Unbounded, Excluded));
    if to.is_some_and(|to| to <= from) {
        return Ok(());
    }
    let all: Vec<String> = found.range::<str, _>(between).map(|(name, _)| name.clone()).collect();
    for name in all {
        let Some(known) = found.get(&name) else { continue };
        let version = Version { name: name.clone(), mark: known.mark };
        let read = position.get(&version.partition()).map_or(0, |at| at.0);
        if read < known.size << shift {
            let (kind, url) = (place.kind, place.url());
            let what = if read == 0 { "it was".to_string() } else { format!("what is behind {read} of it was") };
            return Err(Error::user(format!(
                "{kind}: {url}/{name} is gone, and {what} not read yet. Put it back; or start again, and it is passed over if nothing of it was read"
            )));
        }
        found.remove(&name);
    }
    Ok(())
}

/// Another version of an object that something was read of.
fn of_other_version(position: &Position, version: &Version) -> Option<(PartitionId, Offset)> {
    let begin = format!("{}@", version.name);
    let own = version.partition();
    let from = PartitionId::new(&begin);
    let named = position.range(from..).take_while(|(id, _)| id.0.starts_with(&begin));
    let mut others = named.filter(|(id, at)| id.0.len() == own.0.len() && **id != own && at.0 > 0);
    others.next().map(|(id, at)| (id.clone(), *at))
}

fn is_being_prepared(name: &str) -> bool {
    name.ends_with(".tmp") || name.ends_with("._COPYING_") || name.split('/').any(|part| part.starts_with(['.', '_']))
}
