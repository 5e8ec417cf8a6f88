//! Rows that a sink keeps aside until their batch is committed.
//!
//! ```text
//! stage     ─► programs/<program>/staged/<output>/…-00000.rows     durable, seen by nobody
//! commit    ─► read, sent by the sink, removed when all of the batch is there
//! ```
//!
//! For services that can't hide rows until the commit: what they are sent is
//! what was staged, byte for byte, however often the commit is repeated. A
//! program without a data directory keeps a batch's rows in memory instead.
//!
//! Invariant: rows go only when the sink says so, so a commit that failed can be
//! repeated; after a commit nothing of its batch is left. Called by sinks that send.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::{StreamExt, stream::BoxStream};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};
use tidemill_core::{BatchId, Error, Result, StagedPart, Timestamp};
use tidemill_store::{RealDisk, StagedFiles};

/// Where an output's rows are kept aside.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    place: OnceLock<(String, PathBuf)>,
    kept: OnceLock<Kept>,
}

#[derive(Debug, Clone)]
enum Kept {
    Files(Arc<StagedFiles>),
    /// By name; the rows of the batches that wait for their commits, which are a few.
    Memory(Arc<Mutex<BTreeMap<String, Vec<RecordBatch>>>>),
}

/// What `stage` leaves in the ledger: the name of the rows, and the batch's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// The name.
    pub(crate) name: String,
    /// The batch's time.
    pub(crate) time: Timestamp,
}

impl Part {
    fn token(&self) -> StagedPart {
        StagedPart(format!("{} {}", self.name, self.time.0))
    }

    /// Reads tokens back.
    ///
    /// # Errors
    /// When one is no token of these.
    pub(crate) fn parse(parts: &[StagedPart]) -> Result<Vec<Self>> {
        let read = |StagedPart(token): &StagedPart| {
            let part = token
                .split_once(' ')
                .and_then(|(name, time)| Some(Self { name: name.to_string(), time: Timestamp(time.parse().ok()?) }));
            part.ok_or_else(|| Error::internal(format!("`{token}` names no rows that were kept aside")))
        };
        parts.iter().map(read).collect()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("keeping rows aside panicked").because(e))?
}

impl Aside {
    /// Says where; of several calls the first counts.
    pub(crate) fn place(&self, owner: &str, dir: &Path) {
        // Placed once by the pipeline; a second call would be a bug and changes nothing.
        let _placed = self.place.set((owner.to_string(), dir.to_owned()));
    }

    /// Who writes: `program/output`, if that is known.
    pub(crate) fn owner(&self) -> Option<&str> {
        self.place.get().map(|(owner, _)| owner.as_str())
    }

    /// Makes the place ready for rows of these columns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) async fn open(&self, schema: SchemaRef) -> Result<()> {
        let kept = match self.place.get().cloned() {
            None => Kept::Memory(Arc::default()),
            Some((owner, dir)) => {
                let opened = blocking(move || StagedFiles::open(Arc::new(RealDisk), &dir, &owner, schema));
                Kept::Files(Arc::new(opened.await?))
            }
        };
        // Opened once.
        let _set = self.kept.set(kept);
        Ok(())
    }

    fn kept(&self) -> Result<Kept> {
        self.kept.get().cloned().ok_or_else(|| Error::internal("a sink is used before it was opened"))
    }

    /// Keeps the rows of a part; nothing is kept, and nothing given, when there are none.
    ///
    /// # Errors
    /// When the rows fail, or the disk refuses: then nothing is kept.
    pub(crate) async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        mut rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let mut all = Vec::new();
        while let Some(rows) = rows.next().await {
            all.extend(Some(rows?).filter(|rows| rows.num_rows() > 0));
        }
        if all.is_empty() {
            return Ok(None);
        }
        let name = match self.kept()? {
            Kept::Files(files) => blocking(move || files.stage(batch, part, all.into_iter())).await?,
            Kept::Memory(kept) => {
                let name = format!("{batch}-{part}");
                kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), all);
                name
            }
        };
        Ok(Some(Part { name, time }.token()))
    }

    /// Whether all rows of a batch are still here: they go together, when the batch is where it belongs.
    ///
    /// # Errors
    /// When the sink was not opened.
    pub(crate) fn has(&self, parts: &[Part]) -> Result<bool> {
        Ok(match self.kept()? {
            Kept::Files(files) => parts.iter().all(|part| files.exists(&part.name)),
            Kept::Memory(kept) => {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                parts.iter().all(|part| kept.contains_key(&part.name))
            }
        })
    }

    /// The rows of a part, as they were cut.
    ///
    /// # Errors
    /// When they are gone or damaged.
    pub(crate) async fn read(&self, batch: BatchId, part: &Part) -> Result<Vec<RecordBatch>> {
        let name = part.name.clone();
        match self.kept()? {
            Kept::Files(files) => blocking(move || files.read(batch, &name)).await,
            Kept::Memory(kept) => {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.get(&name).cloned().ok_or_else(|| Error::internal(format!("rows `{name}` are gone")))
            }
        }
    }

    /// Lets the rows of a batch go; may be repeated.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) async fn remove(&self, parts: &[Part]) -> Result<()> {
        let names: Vec<String> = parts.iter().map(|part| part.name.clone()).collect();
        match self.kept()? {
            Kept::Files(files) => blocking(move || files.remove(names.iter().map(String::as_str))).await,
            Kept::Memory(kept) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                names.iter().for_each(|name| drop(kept.remove(name)));
                Ok(())
            }
        }
    }

    /// Lets everything go: at a start, when the last commit was repeated.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) async fn clear(&self) -> Result<()> {
        match self.kept()? {
            Kept::Files(files) => blocking(move || files.clear()).await,
            Kept::Memory(kept) => {
                kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::rows;
    use futures::stream;

    #[tokio::test]
    async fn rows_stay_until_they_are_let_go() {
        let dir = tempfile::tempdir().unwrap();
        for place in [None, Some(dir.path().join("staged"))] {
            let open = async || {
                let aside = Aside::default();
                if let Some(place) = &place {
                    aside.place("p/out", place);
                }
                aside.open(rows([]).schema()).await.unwrap();
                aside
            };
            let aside = open().await;
            let stage = |batch, part, all: Vec<RecordBatch>| {
                aside.stage(BatchId(batch), Timestamp(5), part, stream::iter(all.into_iter().map(Ok)).boxed())
            };
            assert_eq!(stage(1, 0, vec![rows([])]).await.unwrap(), None);
            stage(1, 0, vec![rows([9])]).await.unwrap();
            let tokens = [
                stage(1, 0, vec![rows([1, 2]), rows([]), rows([3])]).await.unwrap().unwrap(),
                stage(1, 1, vec![rows([4])]).await.unwrap().unwrap(),
            ];
            let parts = Part::parse(&tokens).unwrap();
            assert_eq!(parts[0].time, Timestamp(5));
            // What is on disk is there for the next life.
            let next = if place.is_some() { open().await } else { aside };
            assert!(next.has(&parts).unwrap());
            assert_eq!(next.read(BatchId(1), &parts[0]).await.unwrap(), [rows([1, 2]), rows([3])]);
            next.remove(&parts[..1]).await.unwrap();
            assert!(!next.has(&parts).unwrap() && next.has(&parts[1..]).unwrap());
            next.clear().await.unwrap();
            assert!(!next.has(&parts[1..]).unwrap());
            next.remove(&parts).await.unwrap();
        }
        assert!(Part::parse(&[StagedPart("12".to_string())]).is_err());
    }
}
