//! Where `tidemill replay` has its lines from.
//!
//! Invariant: a recording is read as it is sent, a line at a time; a line over
//! the bound is left out and told in the log. Called by `replay`.

use super::{
    data::{DataArg, OpenLog, is_raw},
    stored::without_deleted,
};
use arrow_array::cast::AsArray;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use std::{
    fs::File,
    future::ready,
    io::{self, BufRead, BufReader, Read},
    iter::Peekable,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill::{
    Error, Result, Timestamp,
    connectors::{
        files::{is_parquet, parquet_recording},
        format::{
            json::{Paths, Raw, scan_bytes},
            time::instant,
        },
        lines::MAX_LINE,
        replay::{Line, Recording, TimeOf},
    },
    core::Offset,
    engine::Standing,
    store::Topic,
};

/// What of a recording is wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    /// Where the time is.
    pub(super) time: Option<String>,
    pub(super) from: Option<Timestamp>,
    pub(super) to: Option<Timestamp>,
    /// The member that is played.
    pub(super) field: Option<String>,
}

/// A recording that can be played.
pub(super) struct Opened {
    pub(super) recording: Recording,
    /// Whether its lines know their times by themselves.
    pub(super) is_timed: bool,
    /// Kept open while its topic is served.
    _log: Option<OpenLog>,
}

/// Finds what a name means: an address, a file, a directory, or a topic.
pub(super) async fn open(name: &str, wanted: &Wanted, data: &DataArg) -> Result<Opened> {
    if name.starts_with("mongodb:") || name.starts_with("mongodb+srv:") {
        return of_collection(name, wanted).await;
    }
    if wanted.field.is_some() {
        return Err(Error::user("--field is for the documents of a collection: mongodb://HOST/DATABASE.COLLECTION"));
    }
    let path = PathBuf::from(name);
    let (recording, is_timed, log) = if is_parquet(&path) && path.exists() {
        let rows = parquet_recording(&path, wanted.time.as_deref())?;
        (without_deleted(rows).await, wanted.time.is_some(), None)
    } else if path.exists() {
        (without_deleted(of_file(&path)?).await, false, None)
    } else if data.path.join("log").is_dir() {
        let log = data.look()?;
        let topic = log.topic(name)?;
        (of_topic(&topic, wanted.time.as_deref())?, true, Some(log))
    } else {
        return Err(Error::user(format!(
            "there is no file {}, and {} is no data directory with a topic of that name",
            path.display(),
            data.path.display()
        )));
    };
    let recording = match (wanted.from, wanted.to) {
        (None, None) => recording,
        _ if wanted.time.is_none() && !is_timed => {
            return Err(Error::user("--from and --to need --time FIELD: where each line has its time"));
        }
        (from, to) => between(recording, from, to, time_of(wanted.time.as_deref())),
    };
    Ok(Opened { recording, is_timed, _log: log })
}

#[cfg(not(feature = "mongodb"))]
async fn of_collection(_name: &str, _wanted: &Wanted) -> Result<Opened> {
    ready(()).await;
    Err(Error::user("this build has no MongoDB: the one with it is made by cargo build --release --features mongodb"))
}

/// The documents of a collection; the server chooses those that are wanted.
#[cfg(feature = "mongodb")]
async fn of_collection(name: &str, wanted: &Wanted) -> Result<Opened> {
    use tidemill::connectors::mongo::{MongoHistory, Span};
    let span = Span { from: wanted.from, to: wanted.to };
    let history = MongoHistory::new(name, wanted.time.as_deref().unwrap_or("created_at"), span)?;
    let recording = history.field(wanted.field.clone()).recording().await?;
    Ok(Opened { recording, is_timed: true, _log: None })
}

/// The lines of a span of time; those without a time are left out.
fn between(recording: Recording, from: Option<Timestamp>, to: Option<Timestamp>, time_of: TimeOf) -> Recording {
    Arc::new(move || {
        let time_of = Arc::clone(&time_of);
        let inside = move |line: &Result<Line>| {
            let Ok(line) = line else { return ready(true) };
            let at = line.at.or_else(|| time_of(&line.bytes));
            ready(at.is_some_and(|at| from.is_none_or(|from| at >= from) && to.is_none_or(|to| at < to)))
        };
        recording().filter(inside).boxed()
    })
}

/// The lines of a file, opened anew for each round.
fn of_file(path: &Path) -> Result<Recording> {
    let named = |e: io::Error| Error::user(format!("can't read {}", path.display())).because(e);
    if path.is_dir() {
        return Err(Error::user(format!("{} is a directory; replay serves one file", path.display())));
    }
    // Opened once here, so that a file that can't be read is an error at the start.
    drop(File::open(path).map_err(named)?);
    let path = path.to_path_buf();
    Ok(Arc::new(move || match File::open(&path) {
        Ok(file) => {
            let input = BufReader::with_capacity(256 << 10, file);
            stream::iter(Lines { input, number: 0, path: path.clone() }).boxed()
        }
        Err(error) => {
            let what = format!("{} can't be opened any more", path.display());
            stream::iter([Err(Error::user(what).because(error))]).boxed()
        }
    }))
}

struct Lines {
    input: BufReader<File>,
    number: u64,
    path: PathBuf,
}

impl Lines {
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let mut line = Vec::new();
            self.number += 1;
            if (&mut self.input).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)? == 0 {
                return Ok(None);
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            } else if line.len() > MAX_LINE {
                tracing::warn!(path = %self.path.display(), line = self.number, "left out a line of over {MAX_LINE} bytes");
                self.input.skip_until(b'\n')?;
                continue;
            }
            return Ok(Some(Bytes::from(line)));
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Result<Line>> {
        let line = self.read().map_err(|error| {
            let what = format!("{} can't be read on from line {}", self.path.display(), self.number);
            Error::external(what).because(error)
        });
        line.map(|line| line.map(Line::from)).transpose()
    }
}

/// The records of a topic in the order of their times: when they were received, or by the member `time`. Posts that
/// were deleted since are left out.
fn of_topic(topic: &Arc<Topic>, time: Option<&str>) -> Result<Recording> {
    if !is_raw(topic) {
        return Err(Error::user(format!("topic `{}` has columns of its own; replay serves raw records", topic.name())));
    }
    let (topic, by) = (Arc::clone(topic), time.map(|time| time_of(Some(time))));
    let registry = tidemill::connectors::registry();
    Ok(Arc::new(move || {
        let ranges: Vec<_> = (0..topic.config().partitions).map(|p| (p, topic.start(p), topic.end(p))).collect();
        let standing = Standing::of(&topic, &registry, &ranges).and_then(|found| found.map(Standing::read).transpose());
        let standing = match standing {
            Ok(standing) => standing.map(Arc::new),
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let part = |range| of_partition(&topic, range, by.clone(), standing.clone()).peekable();
        stream::iter(InTurn { partitions: ranges.into_iter().map(part).collect() }).boxed()
    }))
}

/// The records of a partition with their times, of those that stand.
fn of_partition(
    topic: &Arc<Topic>,
    (p, from, to): (u32, Offset, Offset),
    by: Option<TimeOf>,
    standing: Option<Arc<Standing>>,
) -> Records {
    let rows = topic.read(p, from, to);
    Box::new(rows.flat_map(move |rows| {
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => return Box::new(std::iter::once(Err(error))) as Records,
        };
        let stand = standing.as_ref().and_then(|standing| standing.standing(p, &rows));
        let values = rows.rows.column(0).as_binary::<i32>().clone();
        let received = rows.times.into_iter().flat_map(|(rows, time)| std::iter::repeat_n(time, rows as usize));
        let by = by.clone();
        let stands = move |row: usize| stand.as_ref().is_none_or(|stand| stand.value(row));
        Box::new(received.enumerate().filter(move |(row, _)| stands(*row)).map(move |(row, received)| {
            let bytes = Bytes::copy_from_slice(values.value(row));
            let at = by.as_ref().map_or(Some(received), |by| by(&bytes));
            Ok(Line { bytes, at })
        }))
    }))
}

type Records = Box<dyn Iterator<Item = Result<Line>> + Send>;

/// Partitions as one stream, each in its own order and the earliest record first; one without a time comes at once,
/// and an error as well.
struct InTurn {
    partitions: Vec<Peekable<Records>>,
}

impl Iterator for InTurn {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Result<Line>> {
        let heads = self.partitions.iter_mut().enumerate();
        let at = |head: &Result<Line>| head.as_ref().map_or(None, |line| line.at);
        let (_, first) = heads.filter_map(|(p, records)| Some((at(records.peek()?), p))).min()?;
        self.partitions[first].next()
    }
}

/// Reads a line's time from a member of its JSON object: ISO 8601, or a number of milliseconds.
pub(super) fn time_of(field: Option<&str>) -> TimeOf {
    let Some(field) = field else { return Arc::new(|_| None) };
    let path: Vec<String> = field.split('.').map(str::to_string).collect();
    Arc::new(move |line| {
        let mut found = None;
        scan_bytes(line, &Paths::new([&path]), |_, raw| {
            found = match raw {
                Raw::Text { text, .. } => instant(text).map(Timestamp),
                Raw::Number(text) => text.parse().ok().map(Timestamp::from_millis),
                _ => None,
            };
        })
        .ok()?;
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn lines(recording: &Recording) -> Vec<Line> {
        recording().map(Result::unwrap).collect::<Vec<_>>().now_or_never().unwrap()
    }

    fn text(line: &'static str, at: Option<i64>) -> Line {
        Line { bytes: line.into(), at: at.map(Timestamp) }
    }

    #[test]
    fn lines_over_the_bound_are_left_out_and_the_next_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let long = "x".repeat(MAX_LINE + 1);
        let most = "y".repeat(MAX_LINE);
        std::fs::write(file.path(), format!("a\n{long}\n{most}\n\nb")).unwrap();
        let lines: Vec<Bytes> = lines(&of_file(file.path()).unwrap()).into_iter().map(|line| line.bytes).collect();
        assert_eq!(lines, [Bytes::from("a"), most.into(), "".into(), "b".into()]);
    }

    #[test]
    fn a_line_says_its_time() {
        let at = time_of(Some("a.at"));
        assert_eq!(at(br#"{"a": {"at": "1970-01-01T00:00:01Z"}}"#), Some(Timestamp(1_000_000)));
        assert_eq!(at(br#"{"a": {"at": 1500}}"#), Some(Timestamp(1_500_000)));
        assert_eq!(at(br#"{"a": 1}"#), None);
        assert_eq!(at(b"no json"), None);
    }

    #[test]
    fn a_span_leaves_out_what_is_before_it_at_its_end_and_without_a_time() {
        let all: Arc<[Line]> = [text("a", Some(9)), text("b", Some(10)), text("c", None), text("d", Some(20))].into();
        let recording: Recording = Arc::new(move || stream::iter(all.to_vec()).map(Ok).boxed());
        let of = |from: Option<i64>, to: Option<i64>| {
            let span = between(Arc::clone(&recording), from.map(Timestamp), to.map(Timestamp), time_of(None));
            lines(&span).iter().map(|line| String::from_utf8(line.bytes.to_vec()).unwrap()).collect::<String>()
        };
        assert_eq!(
            (of(Some(10), Some(20)), of(None, Some(21)), of(Some(10), None)),
            ("b".into(), "abd".into(), "bd".into())
        );
    }

    #[test]
    fn partitions_are_one_stream_by_time() {
        let part = |lines: &[Line]| (Box::new(Vec::from(lines).into_iter().map(Ok)) as Records).peekable();
        let partitions = vec![
            part(&[text("a", Some(1)), text("d", Some(9)), text("e", Some(4))]),
            part(&[]),
            part(&[text("b", Some(2)), text("c", None), text("f", Some(9))]),
        ];
        let all: String =
            InTurn { partitions }.map(|line| String::from_utf8(line.unwrap().bytes.to_vec()).unwrap()).collect();
        assert_eq!(all, "abcdef");
    }
}
