//! Reading ranges of objects: what a range is cut by, and what of objects is kept between ranges.
//!
//! Invariant: what is kept only saves asking again; a range is read the same without it. Called by the source.

use super::{
    Place,
    fetch::{Object, Pieces, Version},
    lines::LineRange,
    rows::{Footer, RowRange},
};
use crate::{
    format::avro::file::{BlockRange, Containers, HEADER, Header, SHIFT},
    ranges::{CHUNK, RangeCutter, Step},
};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tidemill_core::{Chunk, ChunkStream, Error, OffsetRange, PartitionId, Result};

/// Bytes of a record, before any is read.
const GUESS: u64 = 256;
/// Beginnings and footers of objects that are kept.
const KEPT: usize = 64;
/// Bytes that are read of the beginning of a file of Avro at first.
const BEGIN: u64 = 64 << 10;

/// How objects are read.
#[derive(Debug)]
pub(super) enum Layout {
    Lines {
        max_line: usize,
        header: bool,
    },
    Avro(Containers),
    /// With the stream's columns, once they are known.
    Parquet(OnceLock<SchemaRef>),
}

/// What reads of ranges share.
#[derive(Debug)]
pub(super) struct Readers {
    pub(super) place: Arc<Place>,
    pub(super) layout: Layout,
    headers: Mutex<HashMap<PartitionId, (Arc<Header>, u64)>>,
    footers: Mutex<HashMap<PartitionId, Arc<Footer>>>,
    /// Records that were read, and their bytes.
    records: AtomicU64,
    bytes: AtomicU64,
}

/// What a map keeps, which is emptied when it is full: it only saves asking again.
fn keep<T: Clone>(kept: &Mutex<HashMap<PartitionId, T>>, id: PartitionId, value: T) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(id, value);
}

fn kept<T: Clone>(kept: &Mutex<HashMap<PartitionId, T>>, id: &PartitionId) -> Option<T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
}

impl Readers {
    pub(super) fn new(place: Arc<Place>, layout: Layout) -> Self {
        let (headers, footers) = (Mutex::default(), Mutex::default());
        Self { place, layout, headers, footers, records: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    pub(super) fn object(&self, version: Version) -> Object {
        Object { place: Arc::clone(&self.place), version }
    }

    /// Bytes of a record, as far as is known.
    pub(super) fn record_bytes(&self) -> u64 {
        self.bytes.load(Relaxed).checked_div(self.records.load(Relaxed)).map_or(GUESS, |mean| mean.max(1))
    }

    /// The footer of an object; its size is asked for where it is not known.
    pub(super) async fn footer(&self, version: Version, size: Option<u64>) -> Result<Arc<Footer>> {
        let id = version.partition();
        if let Some(footer) = kept(&self.footers, &id) {
            return Ok(footer);
        }
        let object = self.object(version);
        let size = match size {
            Some(size) => size,
            None => object.get(0..1).await?.1,
        };
        let footer = Arc::new(Footer::read(&object, size).await?);
        keep(&self.footers, id, Arc::clone(&footer));
        Ok(footer)
    }

    /// The beginning of a file of Avro, and its size.
    pub(super) async fn header(&self, version: Version) -> Result<(Arc<Header>, u64)> {
        let id = version.partition();
        if let Some(header) = kept(&self.headers, &id) {
            return Ok(header);
        }
        let object = self.object(version);
        let mut most = BEGIN;
        let (header, size) = loop {
            let (bytes, size) = object.get(0..most).await?;
            match Header::read(&bytes).map_err(|why| object.damaged(&why))? {
                Some(header) => break (Arc::new(header), size),
                None if most >= size || most >= HEADER as u64 => {
                    return Err(object.damaged("ends within its beginning"));
                }
                None => most *= 8,
            }
        };
        if let Layout::Avro(containers) = &self.layout {
            containers.schemas.add(&header);
        }
        keep(&self.headers, id, (Arc::clone(&header), size));
        Ok((header, size))
    }

    /// What cuts a range into records, and what brings its bytes.
    async fn open(&self, version: Version, start: u64, end: u64) -> Result<Cutting> {
        let object = self.object(version);
        let (cutter, end): (Box<dyn RangeCutter>, u64) = match &self.layout {
            Layout::Lines { max_line, header } => (Box::new(LineRange::new(start, end, *max_line, *header)), end),
            Layout::Avro(_) => {
                let (header, size) = self.header(object.version.clone()).await?;
                let (start, end) = (start >> SHIFT, end >> SHIFT);
                (Box::new(BlockRange::new(header, start, end, size)), end)
            }
            Layout::Parquet(_) => return Err(Error::internal("rows are not cut")),
        };
        let pieces = Pieces::new(object, cutter.begins(), end);
        Ok(Cutting { cutter, pieces, rest: Bytes::new() })
    }

    fn count(&self, chunk: &Chunk) {
        if let Chunk::Raw(block) = chunk {
            self.records.fetch_add(block.len() as u64, Relaxed);
            self.bytes.fetch_add(block.bytes.len() as u64, Relaxed);
        }
    }
}

/// A range that is being cut.
struct Cutting {
    cutter: Box<dyn RangeCutter>,
    pieces: Pieces,
    rest: Bytes,
}

impl Cutting {
    async fn next(&mut self) -> Result<Option<Chunk>> {
        loop {
            match self.cutter.next() {
                Step::Chunk(chunk) => return Ok(Some(chunk)),
                Step::Done => return Ok(None),
                Step::More => {
                    if self.rest.is_empty() {
                        match self.pieces.next().await? {
                            Some(bytes) => self.rest = bytes,
                            None => {
                                self.cutter.end();
                                continue;
                            }
                        }
                    }
                    let count = self.rest.len().min(CHUNK);
                    self.cutter.push(&self.rest.split_to(count));
                }
            }
        }
    }
}

/// A range before and while it is read.
enum Reading {
    New(Version, OffsetRange),
    Cutting(Box<Cutting>),
    Rows(Box<RowRange>),
}

impl Readers {
    /// The next chunk of a range, of these columns where it has columns.
    async fn next(&self, mut reading: Reading, columns: &SchemaRef) -> Result<Option<(Chunk, Reading)>> {
        loop {
            reading = match reading {
                Reading::New(version, range) => {
                    let (start, end) = (range.start.0, range.end.0);
                    if matches!(self.layout, Layout::Parquet(_)) {
                        let footer = self.footer(version.clone(), None).await?;
                        let rows = RowRange::new(self.object(version), &footer, Arc::clone(columns), start, end)?;
                        let Some(rows) = rows else { return Ok(None) };
                        Reading::Rows(Box::new(rows))
                    } else {
                        Reading::Cutting(Box::new(self.open(version, start, end).await?))
                    }
                }
                Reading::Cutting(mut cutting) => {
                    let chunk = cutting.next().await?;
                    return Ok(chunk.map(|chunk| {
                        self.count(&chunk);
                        (chunk, Reading::Cutting(cutting))
                    }));
                }
                Reading::Rows(mut rows) => {
                    let chunk = rows.next().await?;
                    return Ok(chunk.map(|chunk| (chunk, Reading::Rows(rows))));
                }
            }
        }
    }

    pub(super) fn read(self: &Arc<Self>, range: &OffsetRange, columns: SchemaRef) -> ChunkStream {
        let Some(version) = Version::parse(&range.partition) else {
            let error = Error::user(format!("{}: there is no object `{}`", self.place.kind, range.partition));
            return stream::iter([Err(error)]).boxed();
        };
        if range.is_empty() {
            return stream::empty().boxed();
        }
        let (readers, reading) = (Arc::clone(self), Reading::New(version, range.clone()));
        stream::try_unfold(reading, move |reading| {
            let (readers, columns) = (Arc::clone(&readers), Arc::clone(&columns));
            async move { readers.next(reading, &columns).await }
        })
        .boxed()
    }
}
