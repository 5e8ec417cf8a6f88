//! The ledger as others may read it: beside its owner, without writing.
//!
//! Invariant: nothing on disk is changed, and what is given was durable or was
//! about to be: a torn or half-written end is left out. Called by commands that
//! look at a program which may be running.

use super::{
    Checkpoint, Committed, Filled, FormerProgram, Ledger, OperatorEntry, ProgramEntry, Record, TakesBack, Undone,
    number_of,
};
use crate::{
    disk::{Disk, Mode},
    fault::{Named, io_error},
    frame::{Kind, Scanner},
};
use arrow_schema::SchemaRef;
use std::{collections::BTreeMap, io, path::Path, sync::Arc};
use tidemill_core::{Batch, BatchId, Error, Position, Result, StreamName};

/// How often a file that a rotation took away is looked for again.
const TRIES: usize = 5;

/// All that a ledger knew when it was read.
#[derive(Debug, Clone)]
pub struct Past(pub(super) Checkpoint);

impl Past {
    /// Reads the ledger in `dir`; `None` when there is none.
    ///
    /// # Errors
    /// When it is damaged at its beginning, or the disk refuses.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>> {
        let mut tried = 0;
        loop {
            tried += 1;
            if !disk.exists(dir) {
                return Ok(None);
            }
            let names = disk.list(dir).named("list", dir)?;
            let Some(name) = names.iter().rfind(|name| number_of(name).is_some()) else { return Ok(None) };
            let path = dir.join(name);
            match read_file(disk, &path) {
                // The owner began the next file meanwhile.
                Err(Failed::Io(error)) if error.kind() == io::ErrorKind::NotFound && tried < TRIES => {}
                Err(Failed::Io(error)) => return Err(io_error("read", &path, error)),
                Err(Failed::Bad(why)) => {
                    return Err(Error::external(format!(
                        "the ledger {} is damaged ({why}): restore it from a copy",
                        path.display()
                    ))
                    .fatal());
                }
                Ok(now) => return Ok(Some(Self(now))),
            }
        }
    }

    /// As the ledger of a copy of the program, gone back to `to`.
    ///
    /// # Errors
    /// When `to` is not kept.
    pub fn fork(mut self, to: BatchId) -> Result<Self> {
        let upto = self.last().map_or(BatchId(0), |last| last.batch);
        let now = self.program().outputs;
        if to < self.version() || to.0 == 0 {
            self = self.rewound(Undone { to, upto, keeps_topics: false })?;
        } else if self.undone().is_empty() {
            self.0.history.undone.push(Undone { to, upto: to, keeps_topics: false });
        }
        // Where the first program writes now, the copy must not, whatever was written to at `to`.
        let outputs = &mut self.0.history.outputs;
        outputs
            .extend(now.into_iter().filter(|now| outputs.iter().all(|then| then.what != now.what)).collect::<Vec<_>>());
        self.0.history.forked = true;
        Ok(self)
    }

    /// As it would be, gone back.
    ///
    /// # Errors
    /// When the batch is not kept.
    pub fn rewound(mut self, undone: Undone) -> Result<Self> {
        self.0.rewind(undone).map_err(Error::user)?;
        Ok(self)
    }

    /// How far committed batches have filled the topics of the program's outputs.
    pub fn filled(&self) -> &BTreeMap<String, Filled> {
        &self.0.history.filled
    }

    /// What is to be taken back from a topic.
    pub fn takes_back(&self, topic: &str) -> TakesBack {
        self.0.takes_back(topic)
    }

    /// All batches that were ever undone.
    pub fn gone(&self) -> Gone {
        Gone(self.0.history.gone.clone())
    }

    /// Whether this is the ledger of a copy that has not been started: what was
    /// shown, the first program has shown, and nothing of it is to be taken back.
    pub fn is_forked(&self) -> bool {
        self.0.history.forked
    }

    /// Writes it as the ledger of a directory that has none.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(self, disk: Arc<dyn Disk>, dir: &Path) -> Result<()> {
        crate::disk::create_dir(&*disk, dir).named("create", dir)?;
        Ledger::begin(disk, dir, 0, self.0).map(drop)
    }

    /// Gives operators of a ledger that kept no columns those that `columns` finds.
    ///
    /// # Errors
    /// Those of `columns`.
    pub fn fill_columns(&mut self, columns: impl Fn(&OperatorEntry) -> Result<Option<SchemaRef>>) -> Result<()> {
        for entry in self.0.operators.iter_mut().filter(|entry| entry.schema.is_none()) {
            if let Some(columns) = columns(entry)? {
                let known = OperatorEntry::new(&entry.name, &entry.kind, &columns, 0)?;
                entry.schema = known.schema;
            }
        }
        Ok(())
    }

    /// The last committed batch; after a rewind one that carries the newest number and reads nothing.
    pub fn last(&self) -> Option<&Committed> {
        self.0.last.as_ref()
    }

    /// Whether all outputs are known to have made the last batch whole: after a crash they may not have.
    pub fn is_shown(&self) -> bool {
        self.0.is_shown()
    }

    /// The version of the states, as [`Ledger::version`].
    pub fn version(&self) -> BatchId {
        self.0.version()
    }

    /// The batch that is planned and not committed.
    pub fn planned(&self) -> Option<&Batch> {
        self.0.planned.as_ref()
    }

    /// The committed batches that are kept, oldest first.
    pub fn recent(&self) -> impl DoubleEndedIterator<Item = &Batch> {
        self.0.recent.iter()
    }

    /// The commit of a batch, if it is kept.
    pub fn commit(&self, batch: BatchId) -> Option<&Committed> {
        self.0.history.commits.iter().rev().find(|commit| commit.batch == batch)
    }

    /// How far each stream was read.
    pub fn positions(&self) -> BTreeMap<StreamName, Position> {
        self.0.positions.clone()
    }

    /// How far each stream had been read after `batch`; 0 is the beginning.
    pub fn positions_at(&self, batch: BatchId) -> BTreeMap<StreamName, Position> {
        if batch.0 == 0 { BTreeMap::new() } else { self.0.positions_at(batch) }
    }

    /// The program in force.
    pub fn program(&self) -> ProgramEntry {
        self.0.program()
    }

    /// The program in force when `batch` was committed.
    pub fn program_at(&self, batch: BatchId) -> ProgramEntry {
        self.0.program_at(batch)
    }

    /// Programs that were in force before, the oldest first.
    pub fn before(&self) -> &[FormerProgram] {
        &self.0.history.before
    }

    /// What was undone and is still to be taken back by outputs.
    pub fn undone(&self) -> &[Undone] {
        &self.0.history.undone
    }
}

/// Batches that were undone, at any time: what they read was read again since, or will be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gone(Vec<(BatchId, BatchId)>);

impl Gone {
    /// Whether a batch is one of them.
    pub fn has(&self, batch: BatchId) -> bool {
        self.0.iter().any(|(to, upto)| *to < batch && batch <= *upto)
    }
}

enum Failed {
    Io(io::Error),
    Bad(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn read_file(disk: &dyn Disk, path: &Path) -> Result<Checkpoint, Failed> {
    let file = disk.open(path, Mode::Read)?;
    let mut scan = Scanner::new(&*file, 0)?;
    let head = scan.next()?.filter(|f| f.head().kind == Kind::Head);
    let head = head.ok_or_else(|| Failed::Bad("its checkpoint can't be read".to_owned()))?;
    let salt = head.head().salt;
    let Ok(Record::Checkpoint(now)) = serde_json::from_slice(head.meta()) else {
        return Err(Failed::Bad("its checkpoint can't be understood".to_owned()));
    };
    let mut now = now.of_any_version();
    while let Some(frame) = scan.next()?.filter(|f| f.head().kind == Kind::Ledger && f.head().salt == salt) {
        let record = serde_json::from_slice(frame.meta()).map_err(|e| Failed::Bad(e.to_string()))?;
        now.apply(record).map_err(Failed::Bad)?;
    }
    Ok(now)
}
