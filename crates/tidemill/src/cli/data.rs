//! A data directory opened by a command that runs no program.
//!
//! Invariant: the directory is owned while its log is open for writing; a
//! command that only reads looks at it as it is, beside whoever owns it, and
//! makes none that is not there. Called by `topic`, `produce`, `consume`,
//! `replay` and `dead`.

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill::{
    Error, Result,
    core::nearest,
    engine::SystemClock,
    store::{DataDir, Log, Topic},
};

/// The data directory of a command.
#[derive(Debug, clap::Args)]
pub(crate) struct DataArg {
    /// Data directory: log, ledger and state.
    #[arg(id = "data", long = "data", visible_alias = "data-dir", global = true, display_order = 800, value_name = "DIR", env = "TIDEMILL_DATA", default_value = super::DATA)]
    pub(crate) path: PathBuf,
}

/// An open log and the directory that it is in.
#[derive(Debug)]
pub(crate) struct OpenLog {
    // Dropped in this order: the log writes its marks while the directory is still owned.
    log: Log,
    path: PathBuf,
    /// None when it is only looked at.
    _dir: Option<DataDir>,
}

impl DataArg {
    /// Opens the log; makes the directory when it is not there.
    pub(crate) fn open(&self) -> Result<OpenLog> {
        let dir = DataDir::open(&self.path)?;
        let log = Log::open(dir.disk(), &dir.join("log"), Arc::new(SystemClock))?;
        Ok(OpenLog { log, path: self.path.clone(), _dir: Some(dir) })
    }

    /// The log as it is now, whoever owns it.
    pub(crate) fn look(&self) -> Result<OpenLog> {
        self.must_be()?;
        DataDir::check(&self.path)?;
        let log = Log::look(&self.path.join("log"), Arc::new(SystemClock))?;
        Ok(OpenLog { log, path: self.path.clone(), _dir: None })
    }

    /// Opens the log of a directory that must be there.
    pub(crate) fn open_existing(&self) -> Result<OpenLog> {
        self.must_be()?;
        self.open()
    }

    fn must_be(&self) -> Result<()> {
        if self.path.join("log").is_dir() {
            return Ok(());
        }
        Err(Error::user(format!(
            "{} is no data directory: name one with --data DIR, or begin one with `tidemill topic create`",
            self.path.display()
        )))
    }
}

impl OpenLog {
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The topic of that name.
    pub(crate) fn topic(&self, name: &str) -> Result<Arc<Topic>> {
        self.log.topic(name).ok_or_else(|| {
            let topics = self.log.topics();
            let names: Vec<&str> = topics.iter().map(|t| t.name()).collect();
            let hint = match nearest(name, &names) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => format!("there is none yet; make it with `tidemill topic create {name}`"),
                None => {
                    format!("there are {}; a new one is made with `tidemill topic create {name}`", names.join(", "))
                }
            };
            Error::user(format!("there is no topic `{name}` in {}: {hint}", self.path().display()))
        })
    }
}

/// Columns of a topic of raw records, the same as a receiver's.
pub(crate) fn raw_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("value", DataType::Binary, false)]))
}

/// Whether a topic holds raw records.
pub(crate) fn is_raw(topic: &Topic) -> bool {
    topic.config().schema == raw_schema()
}
