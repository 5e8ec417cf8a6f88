//! Events as rows of a topic, and back.
//!
//! ```text
//! timestamp TIMESTAMP │ headers MAP<TEXT, TEXT> │ body BINARY
//! ```
//!
//! So a durable channel is a table that SQL can ask. Invariant: what is read is what was written, in its order; bodies
//! share the memory of the rows. Called by the file channel and the sink `topic`.

use crate::event::{Event, Headers, shared};
use arrow_array::{
    Array, ArrayRef, BinaryArray, MapArray, RecordBatch, StringArray, TimestampMicrosecondArray,
    builder::{BinaryBuilder, MapBuilder, StringBuilder},
    cast::AsArray,
    types::TimestampMicrosecondType,
};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use std::sync::{Arc, LazyLock};
use tidemill_core::{Error, Result, Timestamp};

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let entry =
        Fields::from(vec![Field::new("keys", DataType::Utf8, false), Field::new("values", DataType::Utf8, true)]);
    let entries = Arc::new(Field::new("entries", DataType::Struct(entry), false));
    Arc::new(Schema::new(vec![
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        Field::new("headers", DataType::Map(entries, false), false),
        Field::new("body", DataType::Binary, false),
    ]))
});

/// The columns of events.
pub(crate) fn schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}

/// Events as rows.
///
/// # Errors
/// When bodies or headers together exceed 2 GiB.
pub(crate) fn rows_of(events: &[Event]) -> Result<RecordBatch> {
    let too_large = |e| Error::user("events of over 2 GiB at once: use a smaller `batch_size`").because(e);
    let bytes = events.iter().map(|event| event.body.len()).sum::<usize>();
    if i32::try_from(bytes).is_err() {
        return Err(Error::user("events of over 2 GiB at once: use a smaller `batch_size`"));
    }
    let times = TimestampMicrosecondArray::from_iter_values(events.iter().map(|event| event.timestamp.0));
    let mut headers = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    let mut bodies = BinaryBuilder::with_capacity(events.len(), bytes);
    for event in events {
        for (key, value) in &event.headers {
            headers.keys().append_value(key);
            headers.values().append_value(value);
        }
        headers.append(true).map_err(too_large)?;
        bodies.append_value(&event.body);
    }
    let columns: Vec<ArrayRef> = vec![Arc::new(times), Arc::new(headers.finish()), Arc::new(bodies.finish())];
    RecordBatch::try_new(schema(), columns).map_err(|e| Error::internal("rows of events").because(e))
}

/// Adds the events in rows to `events`.
///
/// # Errors
/// When the rows have other columns.
pub(crate) fn events_in(rows: &RecordBatch, events: &mut Vec<Event>) -> Result<()> {
    let wrong = || Error::internal("rows of a channel have other columns than events");
    let [times, headers, bodies] = rows.columns() else { return Err(wrong()) };
    let times = times.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(wrong)?;
    let headers = headers.as_map_opt().ok_or_else(wrong)?;
    let bodies: &BinaryArray = bodies.as_binary_opt().ok_or_else(wrong)?;
    let bytes = shared(bodies.values().clone());
    let spans = bodies.value_offsets().windows(2);
    events.reserve(rows.num_rows());
    for (row, span) in spans.enumerate() {
        let [start, end] = [span[0], span[1]].map(|at| usize::try_from(at).unwrap_or_default());
        events.push(Event {
            headers: headers_at(headers, row).ok_or_else(wrong)?,
            body: bytes.slice(start..end),
            timestamp: Timestamp(times.value(row)),
        });
    }
    Ok(())
}

fn headers_at(maps: &MapArray, row: usize) -> Option<Headers> {
    if maps.value_length(row) == 0 {
        return Some(Headers::new());
    }
    let entries = maps.value(row);
    let keys: &StringArray = entries.column(0).as_string_opt()?;
    let values: &StringArray = entries.column(1).as_string_opt()?;
    Some((0..entries.len()).map(|i| (keys.value(i).to_owned(), values.value(i).to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_from_rows_and_from_parts_of_them() {
        let mut events: Vec<Event> = (0..5).map(|n| Event::new(format!("body-{n}"), Timestamp(n))).collect();
        events[1].headers.insert("host".to_owned(), "a".to_owned());
        events[1].headers.insert("key".to_owned(), String::new());
        events[3].headers.insert("潮".to_owned(), "mill".to_owned());
        events[4].body = bytes::Bytes::new();
        let rows = rows_of(&events).unwrap();
        for (from, count) in [(0, 5), (1, 3), (4, 1), (2, 0)] {
            let mut back = Vec::new();
            events_in(&rows.slice(from, count), &mut back).unwrap();
            assert_eq!(back, events[from..from + count]);
        }
        assert!(events_in(&rows.project(&[0, 2]).unwrap(), &mut Vec::new()).is_err());
    }
}
