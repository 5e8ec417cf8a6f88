//! The sink of objects: one a batch, part and directory, exactly once.
//!
//! ```text
//! stage    rows aside, on the program's own disk                        seen by nobody
//! commit   PUT posts/day=…/batch-000000000007-part-00000.parquet  …     each whole at once
//!          PUT posts/_tidemill.json  {"batch":7}                        the batch is whole
//! ```
//!
//! **Why so.** A PUT shows an object whole or not at all, and one that is
//! repeated under the same name with the same rows changes nothing: so a commit
//! may be cut off and repeated, and nothing has to be cleaned up in the store.
//! Parts of an upload that are held back until the commit would have to be found
//! and given up after each crash, and cost money until then; a staged object that
//! is copied would be written twice and read once more. The rows that wait lie
//! where the ledger lies, so they share its fate. What is not promised: the
//! objects of a batch are not seen at one instant; who needs that reads
//! `_tidemill.json` first, and takes no object of a later batch.
//!
//! A program that is rewound has the objects of the batches that it undoes moved
//! to `_undone/<to>-<upto>/`; readers pass over names that begin with `_`. Each
//! start lists the objects once, and refuses batches that the ledger does not know.
//!
//! Invariant: an object belongs to a committed batch, and has rows; a quiet batch
//! makes none. Nothing grows beside the objects: the mark is one, and is replaced; what a
//! store left of a write that was cut off ([`half`]) goes with the next start. Made by the
//! connectors of stores.

use super::{Place, place::half};
use crate::{
    aside::{Aside, Part},
    files::{Encoder, Encoding, FileFormat, PartitionBy, batch_of, takes},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{
    StreamExt, TryStreamExt, future,
    stream::{self, BoxStream},
};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path as Key};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};
use tidemill_core::{BatchId, Claim, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};

/// The name of the mark.
pub(super) const MARK: &str = "_tidemill.json";
/// The folder of what was undone.
const ASIDE: &str = "_undone";
/// Objects that a part of a batch makes at most.
const OBJECTS: usize = 1000;
/// Objects that are sent side by side.
const SENDING: usize = 8;

/// Objects of a store.
#[derive(Debug)]
pub struct ObjectsSink {
    pub(super) at: Place,
    format: Encoding,
    by: Option<PartitionBy>,
    pub(super) aside: Aside,
    /// Whether it is known that there are no objects of later batches, those of an earlier life least of all.
    is_recovered: AtomicBool,
}

impl ObjectsSink {
    /// Into a place, by what else a sink's options say.
    ///
    /// # Errors
    /// When an option is wrong.
    pub(crate) fn from_options(options: &Options, at: Place) -> Result<Self> {
        let format = Encoding::from_options(options, FileFormat::Parquet)?;
        Ok(Self {
            at,
            format,
            by: PartitionBy::parse(options.get("partition_by").unwrap_or_default()),
            aside: Aside::default(),
            is_recovered: AtomicBool::new(false),
        })
    }

    /// The store and the beginning of names, for people.
    fn url(&self) -> String {
        self.at.url()
    }

    fn key(&self, rest: &str) -> Result<Key> {
        self.at.key(rest)
    }

    fn failed(&self, what: &str, error: object_store::Error) -> Error {
        self.at.failed(what, error)
    }

    /// The last batch that is whole in the store.
    async fn last_whole(&self) -> Result<Option<u64>> {
        let read = async {
            let found = self.at.store.get(&self.key(MARK)?).await;
            match found {
                Err(error) if self.at.is_absent(&error) => Ok(None),
                Err(error) => Err(self.failed("read the mark of", error)),
                Ok(found) => found.bytes().await.map(Some).map_err(|error| self.failed("read the mark of", error)),
            }
        };
        let Some(mark) = read.await? else { return Ok(None) };
        let batch = serde_json::from_slice::<serde_json::Value>(&mark).ok().and_then(|mark| mark["batch"].as_u64());
        batch.map(Some).ok_or_else(|| {
            Error::user(format!(
                "{}: {}/{MARK} is damaged, or another's: it should be like {{\"batch\":7}}",
                self.at.kind,
                self.url()
            ))
        })
    }

    async fn note(&self, batch: u64) -> Result<()> {
        let mark = PutPayload::from(serde_json::json!({ "batch": batch }).to_string());
        let put = self.at.store.put(&self.key(MARK)?, mark).await;
        put.map(drop).map_err(|error| self.failed("write the mark of", error))
    }

    fn rest<'a>(&self, key: &'a Key) -> &'a str {
        self.at.rest(key)
    }

    /// The batch that an object is of, when it is one of ours that readers see: such lie in directories of
    /// partitions alone. What lies elsewhere below was undone, or is another's.
    fn batch_of(&self, key: &Key) -> Option<BatchId> {
        let (dirs, name) = match self.rest(key).rsplit_once('/') {
            Some((dirs, name)) => (Some(dirs), name),
            None => (None, self.rest(key)),
        };
        let is_ours = dirs.is_none_or(|dirs| dirs.split('/').all(|dir| dir.contains('=') && !dir.starts_with('=')));
        batch_of(name).filter(|_| is_ours)
    }

    /// The names of all that lies below; nothing where the store has no such place yet.
    fn names(&self) -> Result<BoxStream<'_, Result<Key>>> {
        let prefix = self.at.prefix()?;
        let listed = self.at.store.list(Some(&prefix)).filter_map(|object| {
            let listed = match object {
                Ok(object) => Some(Ok(object.location)),
                Err(error) if self.at.is_absent(&error) => None,
                Err(error) => Some(Err(self.failed("list", error))),
            };
            future::ready(listed)
        });
        Ok(listed.boxed())
    }

    /// All our objects that readers see, with their batches.
    fn objects(&self) -> Result<BoxStream<'_, Result<(Key, BatchId)>>> {
        let ours = self.names()?.try_filter_map(|key| {
            let batch = self.batch_of(&key);
            future::ready(Ok(batch.map(|batch| (key, batch))))
        });
        Ok(ours.boxed())
    }

    /// Whether a name is of a write of ours that was cut off: all that are wanted were written again by now.
    fn is_cut_off(&self, key: &Key) -> bool {
        let (dirs, name) = self.rest(key).rsplit_once('/').unwrap_or(("", self.rest(key)));
        let whole =
            half::whole(name).map(|name| if dirs.is_empty() { name.to_string() } else { format!("{dirs}/{name}") });
        whole.is_some_and(|whole| whole == MARK || self.at.key(&whole).is_ok_and(|key| self.batch_of(&key).is_some()))
    }

    /// Removes the objects of a batch that are not those `written`. A life that was cut off in the middle of this
    /// commit may have had other options, and so other names for the same rows.
    async fn remove_others(&self, batch: BatchId, written: &BTreeSet<Key>) -> Result<()> {
        let mut all = self.objects()?;
        while let Some((key, of)) = all.try_next().await? {
            if of == batch && !written.contains(&key) {
                tracing::warn!(%key, "removed an object of a commit that was cut off under other options");
                self.at.store.delete(&key).await.map_err(|error| self.failed("remove from", error))?;
            }
        }
        Ok(())
    }

    /// The objects of a part: what follows the prefix, and the bytes.
    pub(super) fn encoded(&self, batch: BatchId, part: usize, all: &[RecordBatch]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut encoders: BTreeMap<String, Encoder> = BTreeMap::new();
        for rows in all {
            let dealt = match &self.by {
                Some(by) => by.split(rows)?,
                None => [(String::new(), rows.clone())].into(),
            };
            for (dir, rows) in dealt {
                if encoders.len() == OBJECTS && !encoders.contains_key(&dir) {
                    return Err(Error::user(format!(
                        "{}: batch {batch} has rows for more than {OBJECTS} directories of {}: take columns with fewer values in option `partition_by`",
                        self.at.kind,
                        self.url()
                    )));
                }
                encoders.entry(dir).or_insert_with(|| Encoder::new(&self.format)).encode(&rows)?;
            }
        }
        let name = format!("batch-{:012}-part-{part:05}.{}", batch.0, self.format.extension());
        let finished = |(dir, mut encoder): (String, Encoder)| {
            encoder.finish()?;
            let slash = if dir.is_empty() { "" } else { "/" };
            Ok((format!("{dir}{slash}{name}"), std::mem::take(encoder.bytes())))
        };
        encoders.into_iter().map(finished).collect()
    }

    fn proved(&self, rows: RecordBatch) -> Result<RecordBatch> {
        match &self.by {
            Some(by) => {
                let written = rows.project(&by.rest(&rows.schema()));
                self.format.prove(&written.map_err(|e| Error::internal("columns of objects").because(e))?)?;
            }
            None => self.format.prove(&rows)?,
        }
        Ok(rows)
    }

    /// Writes all objects of a batch, and says which they are.
    async fn write(&self, batch: BatchId, parts: &[Part]) -> Result<BTreeSet<Key>> {
        let mut written = BTreeSet::new();
        for (at, part) in parts.iter().enumerate() {
            let rows = self.aside.read(batch, part).await?;
            let objects = self.encoded(batch, at, &rows)?;
            drop(rows);
            let puts = objects.into_iter().map(|(rest, bytes)| async move {
                let key = self.key(&rest)?;
                let put = self.at.store.put(&key, PutPayload::from(bytes)).await;
                put.map(|_| key).map_err(|error| self.failed("write to", error))
            });
            let keys: Vec<Key> = stream::iter(puts).buffer_unordered(SENDING).try_collect().await?;
            written.extend(keys);
        }
        Ok(written)
    }
}

#[async_trait]
impl Sink for ObjectsSink {
    fn describe(&self) -> String {
        let by = if self.by.is_some() { ", partitioned" } else { "" };
        format!("{}{} ({}{by})", self.url(), self.at.at(), self.format.name())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim::new(format!("{}{}", self.url(), self.at.at())))
    }

    fn place(&self, owner: &str, aside: &Path) {
        self.aside.place(owner, aside);
    }

    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        takes(&self.format, self.by.as_ref(), schema)
    }

    fn undoes(&self) -> Option<String> {
        Some(format!("its objects are moved aside, to {}/{ASIDE}", self.url()))
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        self.takes(&schema)?;
        // Says at the start what is wrong with the way there.
        if self.at.tree.is_some() {
            self.last_whole().await?;
        } else {
            let mark = self.key(MARK)?;
            let listed = self.at.store.list(Some(&mark)).next().await.transpose();
            listed.map_err(|error| self.failed("list", error))?;
        }
        self.aside.open(schema).await
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        // A row that can't be written must not be found when the ledger has the batch.
        let proved = rows.map(|rows| rows.and_then(|rows| self.proved(rows)));
        self.aside.stage(batch, time, part, proved.boxed()).await
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let parts = Part::parse(parts)?;
        if parts.is_empty() {
            return Ok(());
        }
        if self.last_whole().await?.is_none_or(|last| last < batch.0) {
            if !self.aside.has(&parts)? {
                return Err(Error::user(format!(
                    "{}: rows of committed batch {batch} are neither aside nor noted in {}/{MARK}: was that mark, or the data directory, changed by someone else?",
                    self.at.kind,
                    self.url()
                )));
            }
            let written = self.write(batch, &parts).await?;
            // This life is the first to try its later batches.
            if !self.is_recovered.load(Ordering::Relaxed) {
                self.remove_others(batch, &written).await?;
            }
            self.note(batch.0).await?;
        }
        self.aside.remove(&parts).await
    }

    async fn undo(&self, to: BatchId, upto: BatchId) -> Result<()> {
        let mut all = self.objects()?;
        while let Some((from, batch)) = all.try_next().await? {
            if batch > to && batch <= upto {
                let into = self.key(&format!("{ASIDE}/{to}-{upto}/{}", self.rest(&from)))?;
                // A copy, and then gone: cut off in between it is done again.
                self.at
                    .store
                    .rename(&from, &into)
                    .await
                    .map_err(|error| self.failed("move aside objects of", error))?;
            }
        }
        // Their numbers do not come again.
        match self.last_whole().await? {
            Some(last) if last > to.0 => self.note(to.0).await,
            _ => Ok(()),
        }
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        let last = last_committed.unwrap_or_default();
        // The mark is written after the objects: of a batch that the ledger has lost there may be some without it.
        let (mut begun, mut names) = (0, self.names()?);
        let mut cut_off = Vec::new();
        while let Some(key) = names.try_next().await? {
            begun = self.batch_of(&key).map_or(0, |batch| batch.0).max(begun);
            if self.is_cut_off(&key) {
                cut_off.push(key);
            }
        }
        let newest = self.last_whole().await?.unwrap_or_default().max(begun);
        if newest > last.0 {
            let (kind, place) = (self.at.kind, self.url());
            let after = if last.0 == 0 {
                "and this program has committed none: they are another program's, or its data directory is a new one."
                    .to_string()
            } else {
                format!(
                    "and this program's ledger ends with batch {last}: it has lost commits, or the objects are another program's. \
                     `tidemill rewind --to {last} --upto {newest}` lets them be moved aside."
                )
            };
            return Err(Error::user(format!(
                "{kind}: {place} has objects of batches up to {newest}, {after} Nothing was written: name another place, or move them away and let {place}/{MARK} be {{\"batch\":{last}}}"
            )));
        }
        for key in cut_off {
            self.at.store.delete(&key).await.map_err(|error| self.failed("remove from", error))?;
        }
        self.is_recovered.store(true, Ordering::Relaxed);
        // The last commit was repeated, so all that is left belongs to no commit.
        self.aside.clear().await
    }
}
