//! Sink `topic`: rows into a topic of the program's own log, exactly once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `topic` | the topic; it is made with the query's columns if it is not there |
//! | `partitions` | partitions of a topic that is made (1); a part of a batch goes into one |
//! | `retention_age`, `retention_bytes` | what the topic keeps |
//!
//! ```text
//! stage    programs/<program>/staged/<output>/<batch>-<part>.rows      seen by nobody
//! commit   appended frame by frame, each with a token {"<program>/<output>": batch, time, frames so far}
//!          ─► topic durable ─► staged files removed
//! ```
//!
//! A token is durable exactly when its rows are, so a commit that is repeated,
//! or was cut short by a crash, goes on behind the last frame that is there. Tokens
//! name all writers of a partition and survive each other.
//!
//! Invariant: rows of a batch are in the topic once, in their order within a
//! partition; staged files are removed only when all rows of the batch are durable.
//! The ledger knows where the rows of each batch lie, so a topic that has lost its
//! end is noticed, and one whose program was rewound is cut where the batch left it
//! ([`past`]), before anyone reads it.

use crate::{
    ops::renamed,
    record::Record,
    stream::{Chain, DStream},
};
use arrow_array::RecordBatch;
use arrow_schema::{Field, Schema, SchemaRef};
use arrow_select::concat::concat_batches;
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};
use tidemill_core::{BatchId, Error, Guarantee, Offset, OffsetRange, Options, Result, Sink, StagedPart, Timestamp};
use tidemill_store::{
    Disk, StagedFiles,
    log::{Log, Retention, Sync, Topic, TopicConfig},
};

mod past;

pub use past::TopicPast;

/// Rows appended together at least, where there are as many: small frames cost readers.
const ROWS: usize = 8192;

/// Where a sink finds its log and puts what is not committed.
#[derive(Clone)]
pub struct TopicPlace {
    /// The log.
    pub log: Arc<Log>,
    /// The disk of the staged files.
    pub disk: Arc<dyn Disk>,
    /// The directory of the staged files, which is the sink's own.
    pub staged: PathBuf,
    /// Who writes: stays the same over restarts, and no other sink has it.
    pub owner: String,
    /// When other rows of a topic that is made become durable; those of a sink are at its commit.
    pub sync: Sync,
    /// What the ledger knows of the topic.
    pub past: TopicPast,
}

impl fmt::Debug for TopicPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicPlace").field("owner", &self.owner).field("staged", &self.staged).finish_non_exhaustive()
    }
}

/// A topic as a sink. Made when the output is declared, placed when the log is open.
#[derive(Debug)]
pub struct TopicSink {
    topic: String,
    partitions: u32,
    retention: Option<Retention>,
    opened: OnceLock<Arc<Opened>>,
    place: OnceLock<TopicPlace>,
}

#[derive(Debug)]
struct Opened {
    owner: String,
    topic: Arc<Topic>,
    staged: StagedFiles,
    past: TopicPast,
}

/// What a partition's token says: of each writer, how far it is.
type Tokens = BTreeMap<String, Mark>;

/// The frames of a batch that are in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    batch: BatchId,
    /// The batch's time: numbers begin anew in a new ledger, times don't.
    time: Timestamp,
    frames: usize,
}

impl TopicSink {
    /// From `topic`, `partitions` and the retention.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        let topic = options.require("topic", "it names the topic that the rows go to")?.to_string();
        tidemill_store::log::check_name(&topic)?;
        let partitions = options.parse("partitions", 1)?;
        if !(1..=4096).contains(&partitions) {
            return Err(Error::user(format!("{}: a topic has 1 to 4096 partitions", options.owner())));
        }
        let retention = Retention::from_options(options)?;
        Ok(Self { topic, partitions, retention, opened: OnceLock::new(), place: OnceLock::new() })
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Says where it writes; done once, before it is opened.
    pub fn place(&self, place: TopicPlace) {
        // Placed once by the pipeline; a second call would be a bug and changes nothing.
        let _placed = self.place.set(place);
    }

    /// Whether rows of these columns can be appended to the topic, when it is there under the data directory `data`.
    ///
    /// # Errors
    /// When it has other columns, or can't be read.
    pub(crate) fn takes_in(&self, schema: &SchemaRef, disk: &dyn Disk, data: &Path) -> Result<()> {
        match tidemill_store::log::stored_config(disk, &data.join("log"), &self.topic)? {
            Some(topic) => fits(&plain(schema), &self.topic, &topic.schema),
            None => Ok(()),
        }
    }

    /// Makes the topic if it is not there, and takes back what was undone. May be
    /// repeated. Whether it is new though the ledger knows rows of it.
    ///
    /// # Errors
    /// When it is there with other columns, or filled by receivers; when rows
    /// that were committed are gone, or others than those that were undone lie among them.
    pub(crate) fn make(&self, schema: &SchemaRef) -> Result<bool> {
        if self.opened.get().is_some() {
            return Ok(false);
        }
        let place = self.place.get().ok_or_else(|| {
            Error::user(format!("topic `{}` lies in a data directory: give the context one", self.topic))
        })?;
        let schema = plain(schema);
        let (topic, anew) = match place.log.topic(&self.topic) {
            Some(topic) => {
                fits(&schema, topic.name(), &topic.config().schema)?;
                if let Some(retention) = self.retention {
                    topic.set_retention(retention)?;
                }
                (topic, false)
            }
            None => {
                let retention = self.retention.unwrap_or_default();
                let config = TopicConfig {
                    partitions: self.partitions,
                    retention,
                    sync: place.sync,
                    ..TopicConfig::new(Arc::clone(&schema))
                };
                (place.log.create_topic(&self.topic, &config)?, place.past.knows_rows())
            }
        };
        for partition in 0..topic.config().partitions {
            tokens(&topic, partition)?;
        }
        let staged = StagedFiles::open(Arc::clone(&place.disk), &place.staged, &place.owner, schema)?;
        let past = if anew {
            tracing::warn!(topic = self.topic, "the topic is not there any more, and was made anew");
            TopicPast::default()
        } else {
            place.past.clone()
        };
        past.reaches_last_commit(&topic)?;
        past.cut(&topic, &place.owner)?;
        let opened = Opened { owner: place.owner.clone(), topic, staged, past };
        // The first is as good as this one.
        let _opened = self.opened.set(Arc::new(opened));
        Ok(anew)
    }

    fn opened(&self) -> Result<Arc<Opened>> {
        self.opened.get().cloned().ok_or_else(|| Error::internal("a topic was written to before it was opened"))
    }
}

/// The columns without notes of the planner.
pub(crate) fn plain(schema: &SchemaRef) -> SchemaRef {
    let field = |f: &Arc<Field>| f.as_ref().clone().with_metadata(std::collections::HashMap::new());
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// Whether rows of these columns can be appended.
fn fits(schema: &SchemaRef, topic: &str, own: &SchemaRef) -> Result<()> {
    let same = own.fields().len() == schema.fields().len()
        && own.fields().iter().zip(schema.fields()).all(|(own, given)| {
            own.name() == given.name()
                && own.data_type() == given.data_type()
                && (own.is_nullable() || !given.is_nullable())
        });
    if same {
        return Ok(());
    }
    let columns = |schema: &SchemaRef| {
        let column = |f: &Arc<Field>| {
            format!("{} {}{}", f.name(), f.data_type(), if f.is_nullable() { "" } else { " NOT NULL" })
        };
        schema.fields().iter().map(column).collect::<Vec<_>>().join(", ")
    };
    Err(Error::user(format!(
        "topic `{topic}` has the columns ({}), and the rows have ({}): select those, or name another topic",
        columns(own),
        columns(schema)
    )))
}

fn tokens(topic: &Topic, partition: u32) -> Result<Tokens> {
    let Some(token) = topic.resume(partition) else { return Ok(Tokens::new()) };
    serde_json::from_str(&token).map_err(|e| {
        Error::user(format!(
            "topic `{}` is filled by a receiver or holds dead letters: a sink needs a topic of its own",
            topic.name()
        ))
        .because(e)
    })
}

/// A staged part: its file, which part it is, the batch's time, its rows (of older versions unknown).
struct Part {
    name: String,
    part: usize,
    time: Timestamp,
    rows: Option<u64>,
}

impl Part {
    fn token(&self) -> StagedPart {
        let rows = self.rows.map(|rows| format!(" {rows}")).unwrap_or_default();
        StagedPart(format!("{} {} {}{rows}", self.name, self.part, self.time.0))
    }

    fn parse(StagedPart(token): &StagedPart) -> Result<Self> {
        let mut words = token.split(' ');
        let read = words.next().zip(words.next()).zip(words.next()).and_then(|((name, part), time)| {
            let rows = words.next().map(str::parse).transpose().ok()?;
            Some(Self { name: name.to_string(), part: part.parse().ok()?, time: Timestamp(time.parse().ok()?), rows })
        });
        read.ok_or_else(|| Error::internal(format!("`{token}` is no staged part of a topic")))
    }
}

impl Opened {
    fn commit(&self, batch: BatchId, parts: &[Part]) -> Result<()> {
        let count = self.topic.config().partitions as usize;
        let gone = parts.iter().find(|part| !self.staged.exists(&part.name));
        if let Some(part) = gone {
            // Files are removed when all is durable: an earlier commit had come so far.
            self.vouch(batch, part)?;
        } else {
            for partition in 0..count.min(parts.iter().map(|part| part.part + 1).max().unwrap_or(0)) {
                let mine = parts.iter().filter(|part| part.part % count == partition);
                self.append(batch, u32::try_from(partition).unwrap_or(0), mine)?;
            }
        }
        self.staged.remove(parts.iter().map(|part| part.name.as_str()))
    }

    /// Appends what is missing of the parts that belong to a partition.
    fn append<'a>(&self, batch: BatchId, partition: u32, parts: impl Iterator<Item = &'a Part>) -> Result<()> {
        let mut tokens = tokens(&self.topic, partition)?;
        let mark = tokens.get(&self.owner).copied();
        let mut frame = 0;
        for part in parts {
            let done = mark.filter(|m| (m.batch, m.time) == (batch, part.time)).map_or(0, |m| m.frames);
            for rows in self.staged.read(batch, &part.name)? {
                frame += 1;
                if frame <= done {
                    continue;
                }
                tokens.insert(self.owner.clone(), Mark { batch, time: part.time, frames: frame });
                let token =
                    serde_json::to_string(&tokens).map_err(|e| Error::internal("a topic's token").because(e))?;
                self.topic.append(partition, &rows, Some(&token))?;
            }
        }
        self.topic.sync_to(partition, self.topic.end(partition))
    }

    /// Refuses a topic that has batches which the ledger does not know: it has lost its end.
    fn refuse_unknown(&self, last: BatchId) -> Result<()> {
        for partition in 0..self.topic.config().partitions {
            let mark = tokens(&self.topic, partition)?.get(&self.owner).copied();
            if let Some(mark) = mark.filter(|mark| mark.batch > last) {
                return Err(Error::user(format!(
                    "topic `{}` has rows of batch {}, and the ledger ends with batch {last}: it has lost commits. \
                     Restore the ledger from a copy; or let the rows stay, and what is computed again come after them, \
                     with `tidemill rewind --to {last} --upto {}`",
                    self.topic.name(),
                    mark.batch,
                    mark.batch
                )));
            }
        }
        Ok(())
    }

    /// Whether the token says that a part whose file is gone is in the topic.
    fn vouch(&self, batch: BatchId, part: &Part) -> Result<()> {
        let config = self.topic.config();
        let partition = u32::try_from(part.part % config.partitions as usize).unwrap_or(0);
        let mark = tokens(&self.topic, partition)?.get(&self.owner).copied();
        if mark.is_some_and(|m| (m.batch, m.time) == (batch, part.time)) {
            return Ok(());
        }
        if config.sync == Sync::Never || self.topic.end(partition).0 == 0 {
            tracing::warn!(
                topic = self.topic.name(),
                batch = batch.0,
                "rows of the last batch are not in the topic: the machine stopped before they were durable, or the topic was made anew"
            );
            return Ok(());
        }
        Err(Error::user(format!(
            "part {} of committed batch {batch} is neither staged nor in topic `{}`: was it removed by someone else?",
            part.name,
            self.topic.name()
        )))
    }
}

/// Runs something that waits for the disk where nothing else waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("writing to a topic panicked").because(e))?
}

#[async_trait]
impl Sink for TopicSink {
    fn describe(&self) -> String {
        format!("topic {}", self.topic)
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        self.make(&schema).map(drop)
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        mut rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let opened = self.opened()?;
        let (mut whole, mut small, mut waiting) = (Vec::new(), Vec::new(), 0);
        let joined = |small: &mut Vec<RecordBatch>| {
            let schema = small[0].schema();
            concat_batches(&schema, &std::mem::take(small)).map_err(|e| Error::internal("rows of a topic").because(e))
        };
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            if rows.num_rows() > 0 {
                waiting += rows.num_rows();
                small.push(rows);
            }
            if waiting >= ROWS {
                whole.push(joined(&mut small)?);
                waiting = 0;
            }
        }
        if !small.is_empty() {
            whole.push(joined(&mut small)?);
        }
        if whole.is_empty() {
            return Ok(None);
        }
        let rows = Some(whole.iter().map(|rows| rows.num_rows() as u64).sum());
        let name = blocking(move || opened.staged.stage(batch, part, whole.into_iter())).await?;
        Ok(Some(Part { name, part, time, rows }.token()))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let opened = self.opened()?;
        let parts = parts.iter().map(Part::parse).collect::<Result<Vec<_>>>()?;
        blocking(move || opened.commit(batch, &parts)).await
    }

    fn undoes(&self) -> Option<String> {
        Some("their rows are cut off".to_string())
    }

    fn topic(&self) -> Option<&str> {
        Some(&self.topic)
    }

    fn written(&self, parts: &[StagedPart]) -> Result<Vec<OffsetRange>> {
        let topic = &self.opened()?.topic;
        let count = topic.config().partitions as usize;
        let mut rows = BTreeMap::<u32, u64>::new();
        for part in parts.iter().map(Part::parse) {
            let part = part?;
            *rows.entry(u32::try_from(part.part % count).unwrap_or(0)).or_default() += part.rows.unwrap_or(0);
        }
        let range = |(partition, rows): (u32, u64)| {
            let start = topic.end(partition);
            OffsetRange { partition: partition.into(), start, end: Offset(start.0 + rows) }
        };
        Ok(rows.into_iter().filter(|(_, rows)| *rows > 0).map(range).collect())
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        // The last commit was repeated, so all that is left belongs to no commit.
        let opened = self.opened()?;
        blocking(move || {
            opened.refuse_unknown(last_committed.unwrap_or_default())?;
            opened.past.reaches_end(&opened.topic)?;
            opened.staged.clear()
        })
        .await
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// Appends the records of each batch to the topic `name` of the program's
    /// log, each batch exactly once, in the columns named `columns` (a struct's
    /// or tuple's own names when empty). The topic is made if it is not there;
    /// streams of this and other programs read it with connector `topic`.
    ///
    /// ```no_run
    /// # use tidemill_engine::{Str, StreamingContext};
    /// # fn declare(context: &StreamingContext) -> Result<(), tidemill_core::Error> {
    /// let words = context.socket_text_stream("127.0.0.1", 9999)?.map(|line: &str| line.to_lowercase());
    /// words.save_to_topic("lower", &["line"])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When another output of the program writes to the topic.
    pub fn save_to_topic(&self, name: &str, columns: &[&str]) -> Result<()> {
        let options = Options::new(format!("save_to_topic(\"{name}\")"), [("topic", name)]);
        let sink = Arc::new(TopicSink::from_options(&options)?);
        let node = renamed(&self.declare, self.rows(), columns);
        let output = self.declare.name("topic");
        self.declare.topic_output(output, node, &sink)
    }
}

#[cfg(test)]
mod tests;
