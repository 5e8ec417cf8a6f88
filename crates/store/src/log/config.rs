//! What a topic is made with, and its file `topic.json`.
//!
//! Invariant: a topic exists if and only if its `topic.json` does; the file is
//! written last when a topic is made.

use crate::{
    disk::{self, Disk},
    fault::Named,
    ipc, small,
};
use arrow_schema::SchemaRef;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tidemill_core::{Duration, Error, Options, Result};

/// When appended rows are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sync {
    /// As soon as possible; appends that come meanwhile share the next sync.
    Always,
    /// At most this long after the append.
    #[serde(with = "micros")]
    Every(Duration),
    /// When the operating system likes: rows survive a crash of the process, not of the machine.
    Never,
}

/// What old rows are kept. Whole segments are deleted, and none that a pin needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retention {
    /// Segments whose newest row is older than this go; `None` keeps them.
    #[serde(with = "micros_option")]
    pub max_age: Option<Duration>,
    /// The oldest segments go until a partition has at most this many bytes, or
    /// little more than three quarters of them would be left; `None` keeps them.
    pub max_bytes: Option<u64>,
}

impl Retention {
    /// Whether it keeps everything.
    pub fn keeps_all(&self) -> bool {
        self.max_age.is_none() && self.max_bytes.is_none()
    }

    /// What the options `retention_age` (such as `1h`) and `retention_bytes`
    /// (such as `1GB`, of a partition) say; `None` when neither is given.
    ///
    /// # Errors
    /// When one is no duration or no size, or is nothing at all.
    pub fn from_options(options: &Options) -> Result<Option<Self>> {
        let max_age =
            options.get("retention_age").map(|_| options.duration("retention_age", Duration::ZERO)).transpose()?;
        let max_bytes = options.get("retention_bytes").map(|_| options.bytes("retention_bytes", 0)).transpose()?;
        let nothing = |key: &str, such: &str| {
            Error::user(format!("{}: option `{key}` must be more than nothing, such as {such}", options.owner()))
        };
        if max_age.is_some_and(|age| age.is_zero()) {
            return Err(nothing("retention_age", "1h"));
        }
        if max_bytes == Some(0) {
            return Err(nothing("retention_bytes", "1GB"));
        }
        let given = Self { max_age, max_bytes };
        Ok((!given.keeps_all()).then_some(given))
    }
}

/// What a topic is made with.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicConfig {
    /// Columns of its rows. Dictionary-encoded ones are refused.
    pub schema: SchemaRef,
    /// Number of partitions, 1 to 4096.
    pub partitions: u32,
    /// When rows are made durable.
    pub sync: Sync,
    /// What old rows are kept.
    pub retention: Retention,
    /// Bytes after which a new segment begins, 4 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// Whose notices take back earlier rows, by the name of who can read them; `None` when there are none.
    pub notices: Option<String>,
}

impl TopicConfig {
    /// One partition, synced every 10 ms, everything kept, segments of 64 MiB.
    pub fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            partitions: 1,
            sync: Sync::Every(Duration::from_millis(10)),
            retention: Retention::default(),
            segment_bytes: 64 << 20,
            notices: None,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(1..=4096).contains(&self.partitions) {
            return Err(Error::user(format!("a topic has 1 to 4096 partitions, not {}", self.partitions)));
        }
        if !(4 << 10..=1 << 30).contains(&self.segment_bytes) {
            return Err(Error::user(format!("segments have 4 KiB to 1 GiB, not {} bytes", self.segment_bytes)));
        }
        ipc::check_schema(&self.schema)
    }
}

/// `topic.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    partitions: u32,
    sync: Sync,
    retention: Retention,
    segment_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notices: Option<String>,
    /// For people; not read.
    columns: Vec<String>,
    /// The IPC schema message in hexadecimal.
    schema: String,
}

/// Whether a name can be a topic's: it becomes a directory.
///
/// # Errors
/// Says which names are fine.
pub fn check_name(name: &str) -> Result<()> {
    check_name_of("a topic", name)
}

/// Whether a name can be a program's: it becomes a directory, and begins topics' names.
///
/// # Errors
/// Says which names are fine.
pub fn check_program_name(name: &str) -> Result<()> {
    check_name_of("a program", name)
}

fn check_name_of(what: &str, name: &str) -> Result<()> {
    let fine = (1..=200).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if fine {
        return Ok(());
    }
    let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
    Err(Error::user(format!(
        "\"{shown}\" can't be {what}'s name: use 1 to 200 of A-Z a-z 0-9 . _ - and do not begin with a dot"
    )))
}

pub(super) fn write(disk: &dyn Disk, path: &Path, config: &TopicConfig) -> Result<()> {
    let stored = Stored {
        version: small::VERSION,
        partitions: config.partitions,
        sync: config.sync,
        retention: config.retention,
        segment_bytes: config.segment_bytes,
        notices: config.notices.clone(),
        columns: config.schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect(),
        schema: to_hex(&ipc::schema_message(&config.schema)?),
    };
    disk::atomic_write(disk, path, &small::sealed(&stored)).named("write", path)
}

pub(super) fn read(disk: &dyn Disk, path: &Path) -> Result<TopicConfig> {
    let bytes = disk::read_file(disk, path).named("read", path)?;
    let stored: Stored = small::opened(&bytes, path)?;
    let message = from_hex(&stored.schema)
        .ok_or_else(|| Error::external(format!("the schema in {} is damaged", path.display())).fatal())?;
    let config = TopicConfig {
        schema: ipc::schema_from(&message)?,
        partitions: stored.partitions,
        sync: stored.sync,
        retention: stored.retention,
        segment_bytes: stored.segment_bytes,
        notices: stored.notices,
    };
    config.check()?;
    Ok(config)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect()
}

/// Durations as whole microseconds.
mod micros {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use tidemill_core::Duration;

    pub(super) fn serialize<S: Serializer>(span: &Duration, s: S) -> Result<S::Ok, S::Error> {
        u64::try_from(span.as_micros()).unwrap_or(u64::MAX).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_micros)
    }
}

/// The same, or null.
mod micros_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use tidemill_core::Duration;

    #[expect(clippy::ref_option, reason = "serde's `with` asks for this signature")]
    pub(super) fn serialize<S: Serializer>(span: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        span.map(|span| u64::try_from(span.as_micros()).unwrap_or(u64::MAX)).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(d)?.map(Duration::from_micros))
    }
}
