//! How a program is run, and the builder that is told so.
//!
//! Invariant: every setting has a default with which a program runs well on
//! one machine. Read by the parts of the engine; set by who builds a context.

use crate::{
    batch::{RateControl, Trigger},
    change::Asked,
    context::StreamingContext,
    ingest::DeadShare,
    state::memory::StateMemory,
};
use std::{path::PathBuf, sync::Arc};
use tidemill_core::{Clock, Duration, Error, Registry};
use tidemill_store::log::Retention;

/// How a program is run.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) trigger: Trigger,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) partitions: usize,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) rate: RateControl,
    pub(crate) batch_bytes: u64,
    pub(crate) batch_records: u64,
    pub(crate) sync: tidemill_store::log::Sync,
    pub(crate) max_lag_bytes: u64,
    /// What the log keeps of streams that say nothing themselves.
    pub(crate) retention: Option<Retention>,
    pub(crate) dead_retention: Retention,
    /// How far back the program may be rewound.
    pub(crate) versions: Versions,
    /// What a start may do with a changed program.
    pub(crate) asked: Asked,
    /// What share of records may be refused, of streams that say nothing themselves.
    pub(crate) dead_share: Option<DeadShare>,
    pub(crate) disk: Arc<dyn tidemill_store::disk::Disk>,
    /// What states may take together.
    pub(crate) memory: Arc<StateMemory>,
    /// Whether the program is only looked at, never started.
    pub(crate) check: bool,
}

/// How many versions of its state a program keeps: the batches that it can be
/// rewound to, or that can be run again to look at them. A version is kept while
/// all bounds allow; the newest always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Batches (10,000 by default).
    pub batches: u64,
    /// Time before the newest batch; no bound by default.
    pub age: Option<Duration>,
    /// Bytes of the files of one operator (256 MiB by default).
    pub bytes: u64,
}

impl Default for Versions {
    fn default() -> Self {
        Self { batches: 10_000, age: None, bytes: 256 << 20 }
    }
}

/// Builds a [`StreamingContext`].
#[derive(Debug)]
pub struct ContextBuilder {
    config: Config,
}

impl ContextBuilder {
    pub(crate) fn new(name: String) -> Self {
        let partitions = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            config: Config {
                name,
                trigger: Trigger::Every(Duration::from_secs(1)),
                data_dir: None,
                partitions,
                clock: Arc::new(crate::clock::SystemClock),
                registry: Arc::default(),
                rate: RateControl::default(),
                batch_bytes: 64 << 20,
                batch_records: u64::MAX,
                sync: tidemill_store::log::Sync::Every(Duration::from_millis(10)),
                max_lag_bytes: 256 << 20,
                retention: None,
                dead_retention: Retention { max_age: None, max_bytes: Some(256 << 20) },
                versions: Versions::default(),
                asked: Asked::default(),
                dead_share: None,
                disk: Arc::new(tidemill_store::disk::RealDisk),
                memory: Arc::default(),
                check: false,
            },
        }
    }

    /// Batches begin each `interval`; the default is one second.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        self.trigger(Trigger::Every(interval))
    }

    /// When batches begin.
    #[must_use]
    pub fn trigger(mut self, trigger: Trigger) -> Self {
        self.config.trigger = trigger;
        self
    }

    /// Where the log, the ledger and the state are kept. Without it nothing
    /// survives the process and receivers can't be used.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.data_dir = Some(path.into());
        self
    }

    /// Partitions of keyed operators and threads of the program; the default is
    /// the number of processors.
    #[must_use]
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.config.partitions = partitions.max(1);
        self
    }

    /// The clock; tests move a [`tidemill_core::ManualClock`].
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.config.clock = clock;
        self
    }

    /// Connectors, formats and sinks by name.
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.config.registry = Arc::new(registry);
        self
    }

    /// How the size of batches follows what the program can take.
    #[must_use]
    pub fn rate_control(mut self, rate: RateControl) -> Self {
        self.config.rate = rate;
        self
    }

    /// Bytes that a batch reads at most (64 MiB by default).
    #[must_use]
    pub fn batch_bytes(mut self, bytes: u64) -> Self {
        self.config.batch_bytes = bytes.max(1);
        self
    }

    /// Records that a batch reads at most (no bound by default).
    #[must_use]
    pub fn batch_records(mut self, records: u64) -> Self {
        self.config.batch_records = records.max(1);
        self
    }

    /// When records from receivers are made durable (each 10 ms by default).
    #[must_use]
    pub fn sync(mut self, sync: tidemill_store::log::Sync) -> Self {
        self.config.sync = sync;
        self
    }

    /// Bytes that receivers may run ahead of the batches before senders are slowed down.
    #[must_use]
    pub fn max_lag_bytes(mut self, bytes: u64) -> Self {
        self.config.max_lag_bytes = bytes.max(1);
        self
    }

    /// What the log keeps of the streams of receivers, unless a stream says
    /// otherwise ([`StreamingContext::retain`], or `retention_age` and
    /// `retention_bytes` in SQL). By default everything is kept. What no batch
    /// has committed is kept always.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.config.retention = Some(retention);
        self
    }

    /// What is kept of the dead letters, in the topic `<program>.dead`: 256 MiB by default.
    #[must_use]
    pub fn dead_retention(mut self, retention: Retention) -> Self {
        self.config.dead_retention = retention;
        self
    }

    /// How far back the program may be rewound.
    #[must_use]
    pub fn keep_versions(mut self, versions: Versions) -> Self {
        self.config.versions = versions;
        self
    }

    /// Bytes of memory that the states of the program may take together: keyed
    /// states, and the groups, first rows and windows of SQL;
    /// by default half of what the machine, or the group of the process, has. Keys
    /// and groups beyond it that are at rest go to disk, into the data directory (to the
    /// directory for temporary files without one), and come back when they have
    /// news. The store that keeps them takes about 100 MiB more. When what can't go there
    /// is more than the bound, the program ends with an error that says which state it is.
    #[must_use]
    pub fn state_memory(self, bytes: u64) -> Self {
        self.config.memory.set_limit(bytes);
        self
    }

    /// Lets a changed program take over the state that is kept: without it, a
    /// start stops with the plan ([`StreamingContext::changes`]) when any of the
    /// state were migrated, rebuilt, dropped, or mixed with that of another query.
    #[must_use]
    pub fn accept_changes(mut self) -> Self {
        self.config.asked.accept = true;
        self
    }

    /// Computes the state of an operator anew from what the inputs have kept.
    /// Needs [`ContextBuilder::accept_changes`].
    #[must_use]
    pub fn rebuild(mut self, operator: impl Into<String>) -> Self {
        self.config.asked.rebuild.push(operator.into());
        self
    }

    /// The operator `to` takes over the state that was kept as `from`.
    /// Needs [`ContextBuilder::accept_changes`].
    #[must_use]
    pub fn rename(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.config.asked.rename.push((from.into(), to.into()));
        self
    }

    /// Stops the program, before the batch is committed, when more than a share
    /// of the last records of a stream is refused (`dead_stop_share` and
    /// `dead_stop_over` in SQL). By default all is kept and the program goes on.
    #[must_use]
    pub fn dead_stop(mut self, share: DeadShare) -> Self {
        self.config.dead_share = Some(share);
        self
    }

    /// The disk that log, ledger and state are on; tests give one that is full, or that breaks.
    #[must_use]
    pub fn disk(mut self, disk: Arc<dyn tidemill_store::disk::Disk>) -> Self {
        self.config.disk = disk;
        self
    }

    /// The program is only declared, checked and explained: it needs no data
    /// directory, and can't be started.
    #[must_use]
    pub fn check_only(mut self) -> Self {
        self.config.check = true;
        self
    }

    /// The context, ready for declarations.
    pub fn build(mut self) -> StreamingContext {
        // Topics are the engine's own; the names are known, so that a slip in one is told.
        let registry = Arc::make_mut(&mut self.config.registry);
        registry.add_input("topic", |o| Err(Error::internal(format!("{}: topics are opened otherwise", o.owner()))));
        registry.add_sink("topic", |o| Err(Error::internal(format!("{}: topics are opened otherwise", o.owner()))));
        StreamingContext::of(self.config)
    }
}
