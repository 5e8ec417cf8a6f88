//! `tidemill topic`: makes, lists, describes and deletes topics.
//!
//! Invariant: a topic that is made here has the columns of a receiver's, one
//! binary column `value`, so that programs and `produce` can share it.

use super::{
    data::{DataArg, raw_schema},
    kafka::KafkaArg,
    out::outln,
    values,
};
use clap::{Args, Subcommand};
use std::path::Path;
use tidemill::{
    Duration, Error, Result, Sync,
    core::parse_bytes,
    store::{RealDisk, Topic, TopicConfig, log::Retention, rewind::readers},
};

/// Make, list, describe and delete topics of the log.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill topic create events --partitions 4 --keep-bytes 10GiB
  tidemill topic list
  tidemill topic describe events
  tidemill topic delete events
  tidemill topic --kafka localhost:9092 list      those of an Apache Kafka")]
pub(crate) struct TopicCommand {
    #[command(flatten)]
    data: DataArg,

    #[command(flatten)]
    kafka: KafkaArg,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a topic of raw records.
    #[command(after_help = "\
Examples:
  tidemill topic create words
  tidemill topic create events --partitions 4 --keep-for 7d --keep-bytes 10GiB
  tidemill topic create orders --sync always       each append waits for the disk

`tidemill produce` fills it with lines; a program reads it with \
CREATE STREAM … WITH (connector = 'topic', topic = 'words')")]
    Create {
        /// Its name: letters, digits, `.`, `_` and `-`.
        name: String,
        /// Partitions; records keep their order within one.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
        partitions: u32,
        /// When records are made durable: always, never, or at most a time after they came, such as 10ms.
        #[arg(long, value_name = "WHEN", default_value = "10ms", value_parser = sync)]
        sync: Sync,
        /// Remove records older than this, such as 7d, unless a program still needs them.
        #[arg(long, visible_alias = "retention-age", value_name = "TIME", value_parser = values::duration)]
        keep_for: Option<Duration>,
        /// Remove the oldest records beyond this size of a partition, such as 10GiB.
        #[arg(long, visible_alias = "retention-bytes", value_name = "SIZE", value_parser = size)]
        keep_bytes: Option<u64>,
    },
    /// List all topics.
    List,
    /// Show a topic's columns, partitions and settings.
    Describe {
        /// Its name.
        name: String,
    },
    /// Delete a topic and all its records, unless a program needs them.
    #[command(after_help = "\
Examples:
  tidemill topic delete words
  tidemill topic delete words --force      although a program reads it

A program that has read a topic holds its place in it, also while it is stopped. Made anew, the topic is \
another one, which that program refuses to go on with: give its stream another name, or begin anew with \
`tidemill rewind --to 0`.")]
    Delete {
        /// Its name.
        name: String,
        /// Delete it although programs need it.
        #[arg(long)]
        force: bool,
    },
}

fn sync(text: &str) -> Result<Sync, String> {
    match text {
        "always" => Ok(Sync::Always),
        "never" => Ok(Sync::Never),
        other => {
            values::duration(other).map(Sync::Every).map_err(|_| "write always, never, or a time such as 10ms".into())
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).filter(|b| *b > 0).ok_or_else(|| "write a size such as 10GiB or 500MB".into())
}

impl TopicCommand {
    pub(crate) fn run(self) -> Result<()> {
        if self.kafka.is_given() {
            return self.on_kafka();
        }
        match self.action {
            Action::Create { name, partitions, sync, keep_for, keep_bytes } => {
                let open = self.data.open()?;
                let retention = Retention { max_age: keep_for, max_bytes: keep_bytes };
                let config = TopicConfig { partitions, sync, retention, ..TopicConfig::new(raw_schema()) };
                open.log().create_topic(&name, &config)?;
                outln!("made topic {name} in {}", open.path().display());
            }
            Action::List => {
                let open = self.data.look()?;
                let topics = open.log().topics();
                let rows = topics.iter().map(|topic| {
                    let columns: Vec<&str> = topic.config().schema.fields().iter().map(|f| f.name().as_str()).collect();
                    let partitions = topic.config().partitions;
                    vec![
                        topic.name().to_string(),
                        partitions.to_string(),
                        records(topic).to_string(),
                        columns.join(", "),
                    ]
                });
                super::print_columns(&["topic", "partitions", "records", "columns"], &[1, 2], rows.collect())?;
            }
            Action::Describe { name } => {
                let open = self.data.look()?;
                describe(&*open.topic(&name)?)?;
            }
            Action::Delete { name, force } => {
                let open = self.data.open_existing()?;
                let topic = open.topic(&name)?;
                if !force {
                    must_be_free(open.path(), &topic)?;
                }
                let count = records(&topic);
                open.log().delete_topic(&name)?;
                outln!("deleted topic {name} and its {count} records");
            }
        }
        Ok(())
    }
}

impl TopicCommand {
    #[cfg(not(feature = "kafka"))]
    fn on_kafka(self) -> Result<()> {
        Err(self.kafka.missing())
    }

    #[cfg(feature = "kafka")]
    fn on_kafka(self) -> Result<()> {
        let admin = self.kafka.open()?;
        match self.action {
            Action::Create { name, partitions, sync: _, keep_for, keep_bytes } => {
                let age = keep_for.map(|age| age.as_millis().to_string());
                let bytes = keep_bytes.map(|bytes| bytes.to_string());
                let settings = [("retention.ms", &age), ("retention.bytes", &bytes)];
                let settings: Vec<(&str, &str)> =
                    settings.iter().filter_map(|(key, value)| Some((*key, value.as_deref()?))).collect();
                let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
                // As many replicas as the cluster's own setting says.
                admin.create(&name, partitions, -1, &settings)?;
                outln!("made topic {name}");
                Ok(())
            }
            Action::List => super::kafka::list(&admin),
            Action::Describe { name } => super::kafka::describe(&admin, &name),
            Action::Delete { name, force: _ } => {
                admin.delete(&name)?;
                outln!("deleted topic {name}");
                Ok(())
            }
        }
    }
}

/// Nobody's place is lost with the topic.
fn must_be_free(data: &Path, topic: &Topic) -> Result<()> {
    let readers: Vec<String> = readers(&RealDisk, data, topic.name())?
        .into_iter()
        .map(|(program, stream)| match stream.as_str() {
            "" => program,
            _ => format!("program `{program}` (stream `{stream}`)"),
        })
        .collect();
    if readers.is_empty() {
        return Ok(());
    }
    let name = topic.name();
    Err(Error::user(format!(
        "topic `{name}` is read by {}, and nothing was deleted: its place in the topic would be lost, and it could not go on \
         with another topic of that name. Take the stream out of the program and run it once, or delete all the same with \
         `tidemill topic delete {name} --force`",
        readers.join(", ")
    )))
}

fn records(topic: &Topic) -> u64 {
    (0..topic.config().partitions).map(|p| topic.end(p).0 - topic.start(p).0).sum()
}

fn describe(topic: &Topic) -> Result<()> {
    let config = topic.config();
    outln!("topic {}", topic.name());
    for field in config.schema.fields() {
        let null = if field.is_nullable() { "" } else { " NOT NULL" };
        outln!("  column {} {}{null}", field.name(), field.data_type());
    }
    let sync = match config.sync {
        Sync::Always => "at once".to_string(),
        Sync::Every(span) => format!("within {} ms", span.as_secs_f64() * 1e3),
        Sync::Never => "when the system likes".to_string(),
    };
    outln!("  records become durable {sync}");
    let retention = topic.retention();
    match (retention.max_age, retention.max_bytes) {
        (None, None) => outln!("  everything is kept"),
        (age, bytes) => {
            if let Some(age) = age {
                outln!("  records older than {} s are removed", age.as_secs());
            }
            if let Some(bytes) = bytes {
                outln!("  a partition keeps at most {bytes} bytes");
            }
        }
    }
    if let Some(of) = topic.notices() {
        outln!("  {of}: those that a notice deletes are shown no more");
    }
    let rows = (0..config.partitions)
        .map(|p| vec![p.to_string(), topic.start(p).to_string(), topic.end(p).to_string()])
        .collect();
    super::print_columns(&["partition", "first offset", "next offset"], &[0, 1, 2], rows)?;
    for (owner, positions) in topic.pins() {
        let at: Vec<String> = positions.iter().map(|(p, offset)| format!("{p} from {offset}")).collect();
        outln!("  needed by {owner}: partition {}", at.join(", "));
    }
    Ok(())
}
