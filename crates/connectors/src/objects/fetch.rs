//! Bytes of one version of an object, by ranges.
//!
//! A version is known by a mark: four bytes of a digest of the store's own (its ETag; where it has none, the time of the
//! last change) and of the size. The mark stands behind the name in the partition, so it is in the ledger, and a range
//! that is read again after a restart is checked as well.
//!
//! Invariant: all bytes are of the version that was asked for, or there is an error that names the object. At most
//! [`AHEAD`] pieces are in memory. Called by the readers of ranges.

use super::Place;
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};
use ring::digest;
use std::{ops::Range, sync::Arc};
use tidemill_core::{Error, PartitionId, Result};

/// Bytes that are asked for together.
pub(super) const PIECE: u64 = 2 << 20;
/// Pieces on their way at the same time.
const AHEAD: usize = 2;
/// Bytes asked for behind the end of a range, where its last record ends; then twice as many.
const BEYOND: u64 = 64 << 10;

/// The mark of an object as a store tells it.
pub(super) fn mark(meta: &ObjectMeta) -> u32 {
    let own = match &meta.e_tag {
        Some(tag) => format!("{tag}:{}", meta.size),
        None => format!("{}:{}", meta.last_modified.timestamp_millis(), meta.size),
    };
    let digest = digest::digest(&digest::SHA256, own.as_bytes());
    digest.as_ref().first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// A version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    /// What follows the prefix.
    pub(super) name: String,
    pub(super) mark: u32,
}

impl Version {
    /// As partitions are named: `2026/a.json@9f86d081`.
    pub(super) fn partition(&self) -> PartitionId {
        PartitionId::new(format!("{}@{:08x}", self.name, self.mark))
    }

    pub(super) fn parse(partition: &PartitionId) -> Option<Self> {
        let (name, mark) = partition.0.rsplit_once('@')?;
        let mark = (mark.len() == 8).then(|| u32::from_str_radix(mark, 16).ok())??;
        Some(Self { name: name.to_string(), mark })
    }
}

/// Reads a version of an object.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) place: Arc<Place>,
    pub(super) version: Version,
}

impl Object {
    /// The object's whole name, for people.
    pub(super) fn url(&self) -> String {
        format!("{}/{}", self.place.url(), self.version.name)
    }

    /// Whose fault it is that the bytes can't be taken for what they should be.
    pub(super) fn damaged(&self, why: &str) -> Error {
        Error::user(format!("{}: {} {why}", self.place.kind, self.url()))
    }

    /// Those of the bytes that there are, and how many the object has.
    pub(super) async fn get(&self, range: Range<u64>) -> Result<(Bytes, u64)> {
        let wanted = format!("bytes [{}, {})", range.start, range.end);
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let got = self.place.store.get_opts(&self.place.key(&self.version.name)?, options).await;
        let kind = self.place.kind;
        let got = got.map_err(|error| match error {
            error if self.place.is_absent(&error) => Error::user(format!(
                "{kind}: {} is gone; its {wanted} were to be read. Put it back, or rewind past it",
                self.url()
            )),
            error => self.place.failed(&format!("read {wanted} of {} in", self.version.name), error),
        })?;
        if mark(&got.meta) != self.version.mark {
            return Err(Error::user(format!(
                "{kind}: {} was replaced by other content before its {wanted} were read; put it back, and give the new content another name",
                self.url()
            )));
        }
        let size = got.meta.size;
        let bytes = got.bytes().await;
        Ok((
            bytes.map_err(|error| self.place.failed(&format!("read {wanted} of {} in", self.version.name), error))?,
            size,
        ))
    }

    /// All bytes of a range that lies within the object.
    pub(super) async fn bytes(&self, range: Range<u64>) -> Result<Bytes> {
        let pieces: Vec<(Bytes, u64)> = self.pieces(range.clone()).try_collect().await?;
        let bytes = match pieces.len() {
            1 => pieces.into_iter().next().map(|(bytes, _)| bytes).unwrap_or_default(),
            _ => pieces.into_iter().flat_map(|(bytes, _)| bytes).collect(),
        };
        if bytes.len() as u64 != range.end - range.start {
            return Err(self.damaged(&format!("gave {} bytes for [{}, {})", bytes.len(), range.start, range.end)));
        }
        Ok(bytes)
    }

    fn pieces(&self, range: Range<u64>) -> BoxStream<'static, Result<(Bytes, u64)>> {
        let object = self.clone();
        let count = range.end.saturating_sub(range.start).div_ceil(PIECE);
        let piece = move |at: u64| {
            let (object, from) = (object.clone(), range.start + at * PIECE);
            let to = (from + PIECE).min(range.end);
            async move { object.get(from..to).await }.boxed()
        };
        stream::iter((0..count).map(piece)).buffered(AHEAD).boxed()
    }
}

/// Pieces of an object, to the end of a range and on, as far as they are asked for.
pub(super) struct Pieces {
    object: Object,
    within: BoxStream<'static, Result<(Bytes, u64)>>,
    /// What is asked for next, behind the range.
    at: u64,
    /// Bytes of the object, as an answer said.
    size: u64,
    step: u64,
}

impl Pieces {
    /// Those of a range that begins within the object.
    pub(super) fn new(object: Object, from: u64, end: u64) -> Self {
        let within = object.pieces(from..end);
        Self { object, within, at: end, size: 0, step: BEYOND }
    }

    /// `None` behind the object's last byte.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some((piece, size)) = self.within.try_next().await? {
            self.size = size;
            return Ok(Some(piece));
        }
        if self.at >= self.size {
            return Ok(None);
        }
        let to = (self.at + self.step).min(self.size);
        let (bytes, _) = self.object.get(self.at..to).await?;
        self.at = to;
        self.step = (self.step * 2).min(PIECE);
        Ok(Some(bytes))
    }
}
