//! The source of objects: new ones, within a budget, as ranges of offsets.
//!
//! A partition is a version of an object: its name below the prefix, `@`, and a mark of its content. Offsets are bytes of
//! lines, rows of Parquet, and blocks of Avro with the places of records in them.
//!
//! Invariant: a plan depends on the position and on what is listed; the same range gives the same records, or an error
//! that names the object. The position names every object ever read, as that of a directory of files does. Made by the
//! connectors of stores.

use super::{
    Place,
    fetch::{Object, Version},
    listing::{FOUND, Found, Listing, Seen},
    reader::{Layout, Readers},
    rows::Footer,
};
use crate::{
    format::avro::file::{Containers, SHIFT},
    http::clock::WallClock,
    lines,
};
use arrow_schema::{Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, future, stream};
use glob::Pattern;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tidemill_core::{
    Budget, ChunkStream, Error, Format, Offset, OffsetRange, Options, PartitionId, Position, Result, Shape, Source,
};
use tokio::sync::Mutex;

/// How often new objects are looked for, and how often also those with an older name, unless the options say so.
const REFRESH: Duration = Duration::from_secs(5);
const SWEEP: Duration = Duration::from_secs(60);
/// An object is not cut into smaller ranges than this, to be read side by side.
const MIN_RANGE: u64 = 1 << 20;
/// Footers that are read side by side.
const FOOTERS: usize = 16;

/// Objects below a prefix.
#[derive(Debug)]
pub struct ObjectsSource {
    listing: Listing,
    seen: Mutex<Seen>,
    readers: Arc<Readers>,
}

/// Waits for what can't be waited for: a stream is declared outside of any future.
fn wait<T: Send>(work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let failed = |e: std::io::Error| Error::external("no thread to look at an object").because(e);
    let waited = || {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("tidemill-objects".into()).spawn_scoped(scope, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
                runtime.block_on(work)
            });
            match thread.map_err(failed)?.join() {
                Ok(done) => done,
                Err(_) => Err(Error::internal("looking at an object panicked")),
            }
        })
    };
    match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(waited),
        _ => waited(),
    }
}

impl ObjectsSource {
    /// Objects of a place, and of these those whose names below it fit a pattern.
    ///
    /// # Errors
    /// When an option is wrong.
    pub(crate) fn from_options(options: &Options, place: Place, pattern: Option<Pattern>) -> Result<Self> {
        let owner = options.owner();
        let layout = match (Containers::from_options(options)?, options.get("format")) {
            (Some(containers), _) => Layout::Avro(containers),
            (None, Some("parquet")) => Layout::Parquet(OnceLock::new()),
            (None, Some("protobuf")) => {
                return Err(Error::user(format!(
                    "{owner}: objects hold lines, Avro or Parquet, and a record of Protobuf may hold a line end anywhere"
                )));
            }
            _ => Layout::Lines { max_line: lines::max_line(options)?, header: options.parse("header", false)? },
        };
        let place = Arc::new(place);
        let listing = Listing {
            place: Arc::clone(&place),
            pattern,
            after: options.get("after").unwrap_or_default().to_string(),
            refresh: options.duration("refresh", REFRESH)?,
            sweep: options.duration("sweep", SWEEP)?,
            shift: if matches!(layout, Layout::Lines { .. }) { 0 } else { SHIFT },
            clock: Arc::new(WallClock),
        };
        let readers = Readers::new(place, layout);
        Ok(Self { listing, seen: Mutex::default(), readers: Arc::new(readers) })
    }

    /// The time by which it looks for new objects.
    #[cfg(test)]
    pub(super) fn clock(mut self, clock: Arc<dyn tidemill_core::Clock>) -> Self {
        self.listing.clock = clock;
        self
    }

    /// The first object that there is, to take columns from.
    async fn first(&self) -> Result<(Object, u64)> {
        let mut seen = Seen::default();
        self.listing.look(&mut seen, &Position::new(), false).await?;
        let first = seen.found.into_iter().next().ok_or_else(|| {
            let (kind, url) = (self.readers.place.kind, self.readers.place.url());
            Error::user(format!("{kind}: {url} has no object yet to take the columns from; declare the columns"))
        });
        let (name, found) = first?;
        let version = Version { name, mark: found.mark };
        Ok((Object { place: Arc::clone(&self.readers.place), version }, found.size))
    }

    /// Reads what plans have to know of the next objects of Parquet.
    async fn look_at_footers(&self, seen: &mut Seen) -> Result<()> {
        let next = seen.found.iter().take(FOOTERS).filter(|(_, found)| found.groups.is_none());
        let asked = next.map(|(name, found)| {
            let version = Version { name: name.clone(), mark: found.mark };
            let (readers, size) = (Arc::clone(&self.readers), found.size);
            async move { Ok::<_, Error>((version.name.clone(), readers.footer(version, Some(size)).await?)) }
        });
        for (name, footer) in future::try_join_all(asked.collect::<Vec<_>>()).await? {
            if let Some(found) = seen.found.get_mut(&name) {
                found.groups = Some(Arc::new(footer.groups()));
            }
        }
        Ok(())
    }

    /// What is next of an object, in its offsets: from where, to where, and how many bytes that is about.
    fn part(&self, found: &Found, at: u64, bytes: u64, records: u64) -> Option<(u64, u64)> {
        match &found.groups {
            Some(groups) => {
                let rows = groups.last().copied().unwrap_or_default();
                let each = (found.size / rows.max(1)).max(1);
                let most = records.min(bytes / each).max(1);
                let end = at.saturating_add(most);
                Some(if end >= rows {
                    (found.size << SHIFT, rows.saturating_sub(at).saturating_mul(each).max(1))
                } else {
                    (end, most.saturating_mul(each))
                })
            }
            None if matches!(self.readers.layout, Layout::Parquet(_)) => None,
            None => {
                let shift = self.listing.shift;
                let from = at >> shift;
                let to = found.size.min(from.saturating_add(bytes.max(1)));
                Some((to << shift, to - from))
            }
        }
    }

    /// Cuts a part so that about `parallelism` of them can be read side by side.
    fn split(
        &self,
        found: &Found,
        id: &PartitionId,
        (start, end): (u64, u64),
        share: u64,
        ranges: &mut Vec<OffsetRange>,
    ) {
        let mut from = start;
        let mut push = |to: u64| {
            if to > from {
                ranges.push(OffsetRange { partition: id.clone(), start: Offset(from), end: Offset(to) });
                from = to;
            }
        };
        match &found.groups {
            Some(groups) => {
                let each = (found.size / groups.last().copied().unwrap_or(1).max(1)).max(1);
                let rows = (share / each).max(1);
                let mut last = start;
                for group in
                    groups.iter().filter(|group| **group > start && **group < end.min(*groups.last().unwrap_or(&0)))
                {
                    if group - last >= rows {
                        push(*group);
                        last = *group;
                    }
                }
            }
            None => {
                let shift = self.listing.shift;
                let (first, size) = (start >> shift, (end - start) >> shift);
                let pieces = (size / share.max(MIN_RANGE)).max(1);
                for piece in 1..pieces {
                    let place = u128::from(size) * u128::from(piece) / u128::from(pieces);
                    push((first + u64::try_from(place).unwrap_or(0)) << shift);
                }
            }
        }
        push(end);
    }

    async fn plan_now(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        let mut seen = self.seen.lock().await;
        self.listing.look(&mut seen, position, false).await?;
        let shift = self.listing.shift;
        let at = |name: &str, found: &Found| {
            let id = Version { name: name.to_string(), mark: found.mark }.partition();
            let at = position.get(&id).map_or(0, |at| at.0);
            (id, at)
        };
        seen.found.retain(|name, found| at(name, found).1 < found.size << shift);
        if matches!(self.readers.layout, Layout::Parquet(_)) {
            self.look_at_footers(&mut seen).await?;
        }
        let mut bytes = budget.bytes.max(1);
        let mut records = budget.records.max(1);
        if shift == 0 || !matches!(self.readers.layout, Layout::Parquet(_)) {
            bytes = bytes.min(records.saturating_mul(self.readers.record_bytes()));
            records = u64::MAX;
        }
        let mut parts = Vec::new();
        for (name, found) in &seen.found {
            if bytes == 0 || records == 0 {
                break;
            }
            let (id, start) = at(name, found);
            let Some((end, size)) = self.part(found, start, bytes, records) else { break };
            bytes = bytes.saturating_sub(size);
            if let Some(groups) = &found.groups {
                records = records.saturating_sub(end.min(groups.last().copied().unwrap_or(0)).saturating_sub(start));
            }
            parts.push((found, id, (start, end), size));
        }
        let total: u64 = parts.iter().map(|(.., size)| *size).fold(0, u64::saturating_add);
        let share = total / u64::try_from(budget.parallelism).unwrap_or(1).max(1);
        let mut ranges = Vec::with_capacity(parts.len());
        for (found, id, part, _) in parts {
            self.split(found, &id, part, share, &mut ranges);
        }
        Ok(ranges)
    }
}

#[async_trait]
impl Source for ObjectsSource {
    fn describe(&self) -> String {
        let (place, listing) = (&self.readers.place, &self.listing);
        let pattern = listing.pattern.as_ref().map(|pattern| format!("/{pattern}")).unwrap_or_default();
        format!("{}{pattern}{}", place.url(), place.at())
    }

    fn declare(&self, columns: Option<&SchemaRef>) -> Result<()> {
        let Layout::Parquet(known) = &self.readers.layout else { return Ok(()) };
        let columns = match columns {
            Some(columns) => Arc::clone(columns),
            None => wait(async {
                let (object, size) = self.first().await?;
                Ok(Footer::read(&object, size).await?.columns())
            })?,
        };
        // A stream is declared once.
        let _set = known.set(columns);
        Ok(())
    }

    fn shape(&self) -> Shape {
        match &self.readers.layout {
            Layout::Parquet(columns) => {
                Shape::Columns(columns.get().cloned().unwrap_or_else(|| Arc::new(Schema::empty())))
            }
            _ => Shape::Raw,
        }
    }

    fn format(
        &self,
        columns: Option<SchemaRef>,
        make: &dyn Fn(Option<SchemaRef>) -> Result<Arc<dyn Format>>,
    ) -> Result<Arc<dyn Format>> {
        let Layout::Avro(containers) = &self.readers.layout else { return make(columns) };
        containers.format(columns, || {
            wait(async {
                let (object, _) = self.first().await?;
                Ok(self.readers.header(object.version).await?.0)
            })
        })
    }

    async fn plan(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        self.plan_now(position, budget).await
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        let columns = match self.shape() {
            Shape::Columns(columns) => columns,
            Shape::Raw => Arc::new(Schema::empty()),
        };
        self.readers.read(range, columns)
    }

    fn read_columns(&self, range: &OffsetRange, projection: &[usize]) -> ChunkStream {
        let Shape::Columns(columns) = self.shape() else { return self.read(range) };
        match columns.project(projection) {
            Ok(columns) => self.readers.read(range, Arc::new(columns)),
            Err(e) => {
                let error = Error::internal("a projection of an object's columns").because(e);
                stream::iter([Err(error)]).boxed()
            }
        }
    }

    fn partitions_are_parallel(&self) -> bool {
        false
    }

    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        let mut seen = self.seen.lock().await;
        let is_left = |seen: &Seen| {
            seen.found.iter().any(|(name, found)| {
                let id = Version { name: name.clone(), mark: found.mark }.partition();
                position.get(&id).map_or(0, |at| at.0) < found.size << self.listing.shift
            })
        };
        // What is left is to be read first; then all is looked at again.
        if !is_left(&seen) {
            self.listing.look(&mut seen, position, true).await?;
        }
        Ok(!is_left(&seen) && seen.found.len() < FOUND)
    }

    async fn lag(&self, position: &Position) -> Result<u64> {
        let seen = self.seen.lock().await;
        let shift = self.listing.shift;
        let behind = seen.found.iter().map(|(name, found)| {
            let id = Version { name: name.clone(), mark: found.mark }.partition();
            let at = position.get(&id).map_or(0, |at| at.0);
            match found.groups.as_ref().and_then(|groups| groups.last()) {
                // In bytes, as all others are.
                Some(rows) if at < *rows => found.size - found.size * at / rows,
                _ => found.size.saturating_sub(at >> shift),
            }
        });
        Ok(behind.sum())
    }
}
