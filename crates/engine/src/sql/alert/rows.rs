//! Rows of an alert: the changes, as views and sinks see them.
//!
//! Invariant: all alerts have the same columns, so that one sink may take those of
//! several with UNION ALL. Called by [`super::step`] and [`super::history`].

use arrow_array::{
    Array, ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    cast::AsArray,
    types::{Float64Type, TimestampMicrosecondType},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::Result as DfResult;
use std::sync::Arc;
use tidemill_core::{AlertChange, AlertState, Timestamp};

/// The type of times.
pub(super) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Times as a column.
pub(super) fn times(times: impl Iterator<Item = Option<Timestamp>>) -> ArrayRef {
    let times: TimestampMicrosecondArray = times.map(|time| time.map(|time| time.0)).collect();
    Arc::new(times.with_timezone("UTC"))
}

/// Columns of a change, in the order of [`columns`].
pub(super) fn fields() -> Vec<Field> {
    vec![
        Field::new("key", DataType::Utf8, true),
        Field::new("state", DataType::Utf8, true),
        Field::new("was", DataType::Utf8, true),
        Field::new("since", time_type(), true),
        Field::new("at", time_type(), true),
        Field::new("value", DataType::Float64, true),
        Field::new("message", DataType::Utf8, true),
        Field::new("silenced", DataType::Boolean, true),
    ]
}

/// Columns of an alert's rows.
pub(super) fn schema() -> SchemaRef {
    let own = ["alert", "severity"].map(|name| Field::new(name, DataType::Utf8, true));
    Arc::new(Schema::new(own.into_iter().chain(fields()).collect::<Vec<_>>()))
}

/// Changes as columns.
pub(super) fn columns(changes: &[&AlertChange]) -> Vec<ArrayRef> {
    let texts = |of: &dyn Fn(&AlertChange) -> String| -> ArrayRef {
        Arc::new(changes.iter().map(|change| Some(of(change))).collect::<StringArray>())
    };
    vec![
        texts(&|change| change.key.clone()),
        texts(&|change| change.state.name().to_string()),
        texts(&|change| change.was.name().to_string()),
        times(changes.iter().map(|change| Some(change.since))),
        times(changes.iter().map(|change| Some(change.at))),
        Arc::new(changes.iter().map(|change| change.value).collect::<Float64Array>()),
        texts(&|change| change.message.clone()),
        Arc::new(changes.iter().map(|change| Some(change.silenced)).collect::<BooleanArray>()),
    ]
}

/// The changes of an alert as rows.
pub(super) fn rows(alert: &str, severity: &str, changes: &[AlertChange]) -> DfResult<Vec<RecordBatch>> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let own = [alert, severity].map(|text| Arc::new(StringArray::from(vec![text; changes.len()])) as ArrayRef);
    let changes: Vec<&AlertChange> = changes.iter().collect();
    Ok(vec![RecordBatch::try_new(schema(), own.into_iter().chain(columns(&changes)).collect())?])
}

/// A text in a column that may have none.
pub(super) fn text(column: &ArrayRef, row: usize) -> Option<&str> {
    let column = column.as_string_opt::<i32>()?;
    column.is_valid(row).then(|| column.value(row))
}

/// A time in a column that may have none.
pub(super) fn time(column: &ArrayRef, row: usize) -> Option<Timestamp> {
    let column = column.as_primitive_opt::<TimestampMicrosecondType>()?;
    column.is_valid(row).then(|| Timestamp(column.value(row)))
}

/// A number in a column that may have none.
pub(super) fn number(column: &ArrayRef, row: usize) -> Option<f64> {
    let column = column.as_primitive_opt::<Float64Type>()?;
    column.is_valid(row).then(|| column.value(row))
}

/// A change as [`columns`] laid it out; `None` when it is none.
pub(super) fn change(columns: &[ArrayRef], row: usize) -> Option<AlertChange> {
    let [key, state, was, since, at, value, message, silenced] = columns else { return None };
    let silenced = silenced.as_boolean_opt()?;
    Some(AlertChange {
        key: text(key, row)?.to_string(),
        state: AlertState::of(text(state, row)?)?,
        was: AlertState::of(text(was, row)?)?,
        since: time(since, row)?,
        at: time(at, row)?,
        value: number(value, row),
        message: text(message, row)?.to_string(),
        silenced: silenced.is_valid(row) && silenced.value(row),
    })
}
