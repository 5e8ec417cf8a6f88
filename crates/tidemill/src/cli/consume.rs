//! `tidemill consume`: records of a topic on standard output.
//!
//! Invariant: raw records come out byte for byte with a line end each (on a
//! terminal without control characters); rows of other topics come out as JSON
//! lines. Posts that were deleted since are left out, and counted. A closed pipe
//! ends the command quietly.

use super::{
    data::{DataArg, is_raw},
    kafka::KafkaArg,
    out,
};
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, StringArray, cast::AsArray};
use arrow_schema::{Field, Schema};
use clap::Args;
use std::{
    io::{self, IsTerminal, Write},
    sync::Arc,
};
use tidemill::{
    Error, Result,
    core::Offset,
    engine::Standing,
    store::{Topic, log::LogRows},
};

/// Records shown when neither the beginning nor a number was asked for.
const NEWEST: u64 = 10;

/// Print records of a topic: the newest ten, or from the beginning.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill consume words                          the newest 10
  tidemill consume words --from-beginning         all
  tidemill consume words --from-beginning --max 5 the oldest 5
  tidemill consume demo.dead --data tidemill-data/demo   refused records, as JSON
  tidemill consume words --kafka localhost:9092   of an Apache Kafka: what is committed

Posts that their network deleted since are left out, and counted on standard error.")]
pub(crate) struct Consume {
    /// The topic.
    topic: String,

    /// Begin with the oldest record.
    #[arg(long)]
    from_beginning: bool,

    /// Print so many records at most; without --from-beginning the newest.
    #[arg(long, value_name = "N")]
    max: Option<u64>,

    /// Only this partition.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,

    /// Begin each line with its partition and offset.
    #[arg(long)]
    offsets: bool,

    #[command(flatten)]
    data: DataArg,

    #[command(flatten)]
    kafka: KafkaArg,
}

impl Consume {
    pub(crate) fn run(self) -> Result<()> {
        if self.kafka.is_given() {
            return self.on_kafka();
        }
        let open = self.data.look()?;
        let topic = open.topic(&self.topic)?;
        self.print(&topic)
    }

    #[cfg(not(feature = "kafka"))]
    fn on_kafka(self) -> Result<()> {
        Err(self.kafka.missing())
    }

    #[cfg(feature = "kafka")]
    fn on_kafka(self) -> Result<()> {
        let wanted = super::kafka::Wanted {
            partition: self.partition,
            from_beginning: self.from_beginning,
            max: self.most(),
            offsets: self.offsets,
        };
        super::kafka::consume(&self.kafka.open()?, &self.topic, wanted)
    }

    /// Records that are printed at most.
    fn most(&self) -> u64 {
        self.max.unwrap_or(if self.from_beginning { u64::MAX } else { NEWEST })
    }

    fn print(&self, topic: &Arc<Topic>) -> Result<()> {
        let partitions = match self.partition {
            Some(p) if p < topic.config().partitions => p..p + 1,
            Some(p) => {
                let count = topic.config().partitions;
                return Err(Error::user(format!(
                    "topic `{}` has no partition {p}: it has {count} of them, counted from 0",
                    self.topic
                )));
            }
            None => 0..topic.config().partitions,
        };
        let mut left = self.most();
        let total: u64 = partitions.clone().map(|p| topic.end(p).0 - topic.start(p).0).sum();
        // The newest of several partitions: what is too much is left out at the front.
        let mut skip = if self.from_beginning { 0 } else { total.saturating_sub(left) };
        let mut ranges = Vec::new();
        for p in partitions {
            let (start, end) = (topic.start(p).0, topic.end(p).0);
            let from = end.min(start + skip);
            skip -= from - start;
            let to = end.min(from.saturating_add(left));
            left -= to - from;
            ranges.push((p, Offset(from), Offset(to)));
        }
        let standing = Standing::of(topic, &tidemill::connectors::registry(), &ranges)?;
        let standing = standing.map(Standing::read).transpose()?;
        let safe = io::stdout().is_terminal();
        let mut hidden = 0;
        for (p, from, to) in ranges {
            for rows in topic.read(p, from, to) {
                let rows = rows?;
                let stand = standing.as_ref().and_then(|standing| standing.standing(p, &rows));
                hidden += stand.as_ref().map_or(0, BooleanArray::false_count);
                out::bytes(&self.rows(topic, p, &rows, stand.as_ref(), safe)?)?;
                if out::is_closed() {
                    return Ok(());
                }
            }
        }
        if hidden > 0 {
            // A terminal that is gone ends nothing.
            let _told = writeln!(io::stderr(), "left out {hidden} records that were deleted since");
        }
        Ok(())
    }

    /// The lines of rows, of those that stand.
    fn rows(
        &self,
        topic: &Topic,
        partition: u32,
        rows: &LogRows,
        stand: Option<&BooleanArray>,
        safe: bool,
    ) -> Result<Vec<u8>> {
        let lines: Vec<Vec<u8>> = if is_raw(topic) {
            rows.rows.column(0).as_binary::<i32>().iter().map(|v| v.unwrap_or_default().to_vec()).collect()
        } else {
            json_lines(&rows.rows)?
        };
        let mut text = Vec::new();
        for (row, (offset, line)) in (rows.base.0..).zip(lines).enumerate() {
            if stand.is_some_and(|stand| !stand.value(row)) {
                continue;
            }
            if self.offsets {
                text.extend_from_slice(format!("{partition}:{offset}\t").as_bytes());
            }
            if safe {
                let line = String::from_utf8_lossy(&line);
                text.extend(
                    line.chars()
                        .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
                        .collect::<String>()
                        .into_bytes(),
                );
            } else {
                text.extend_from_slice(&line);
            }
            text.push(b'\n');
        }
        Ok(text)
    }
}

/// Rows as JSON objects; bytes as text where they are text, else as `\x` and hexadecimal digits.
fn json_lines(rows: &RecordBatch) -> Result<Vec<Vec<u8>>> {
    let failed = |e: arrow_schema::ArrowError| Error::user("these columns can't be printed as JSON").because(e);
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        let column: ArrayRef = match column.as_binary_opt::<i32>() {
            Some(bytes) => Arc::new(bytes.iter().map(|value| value.map(readable)).collect::<StringArray>()),
            None => Arc::clone(column),
        };
        fields.push(Field::new(field.name(), column.data_type().clone(), true));
        columns.push(column);
    }
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(failed)?;
    let mut writer = arrow_json::LineDelimitedWriter::new(Vec::new());
    writer.write(&rows).and_then(|()| writer.finish()).map_err(failed)?;
    let text = writer.into_inner();
    Ok(text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec).collect())
}

fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().fold("\\x".to_string(), |text, byte| format!("{text}{byte:02x}")),
    }
}
