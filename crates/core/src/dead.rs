//! A record that was refused, or came too late, kept raw with its place and the reason.
//!
//! Invariant: no record disappears; one that can't be decoded, is too long or
//! too late becomes a dead letter and is counted. The engine writes them to the
//! topic `<program>.dead`.

use crate::{BatchId, Offset, PartitionId, StreamName};

/// A refused record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Input stream that it came from.
    pub stream: StreamName,
    /// Partition of the stream; empty where it is not known.
    pub partition: PartitionId,
    /// Its offset there; for a line that was never appended, of the next record;
    /// 0 for a record that came too late where functions or a view stand before the window: its place is not known.
    pub offset: Offset,
    /// Batch that refused it; `None` when it was refused before any batch.
    pub batch: Option<BatchId>,
    /// Why, in words that name the field or the place.
    pub reason: String,
    /// Its bytes; of an oversized line, the beginning; of a late row, its columns as JSON.
    pub raw: Vec<u8>,
}

/// What kind of reason it is, of a few: for counters, whose labels must not
/// grow with the input. `late`, `ahead`, `too_long`, `not_utf8`, `missing_field`,
/// `bad_value`, `malformed` or `other`.
///
/// ```
/// use tidemill_core::reason_kind;
/// assert_eq!(reason_kind("field \"n\": expected an integer, found \"many\""), "bad_value");
/// ```
pub fn reason_kind(reason: &str) -> &'static str {
    // A rebuild that left a record out says why it did.
    let reason = reason.strip_prefix("rebuild: ").unwrap_or(reason);
    let field = reason.starts_with("field \"");
    match reason {
        _ if reason.starts_with("late:") => "late",
        _ if reason.starts_with("ahead:") => "ahead",
        _ if reason.contains("over the bound") => "too_long",
        _ if field && reason.contains("\": missing") => "missing_field",
        _ if field => "bad_value",
        _ if reason.contains("not UTF-8") => "not_utf8",
        _ if reason.starts_with("byte ") || reason.contains("fields, found") || reason.contains("not closed") => {
            "malformed"
        }
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_of_formats_and_windows_have_kinds() {
        for (reason, kind) in [
            ("ahead: `t` is 2036-01-01T00:00:00.000Z, and the batch was at …", "ahead"),
            ("byte 0: the record is empty", "malformed"),
            ("expected 3 fields, found 2", "malformed"),
            ("a quoted field is not closed", "malformed"),
            ("byte 6: not UTF-8", "not_utf8"),
            ("field \"t\": not UTF-8", "bad_value"),
            ("field \"id\": missing, and declared NOT NULL", "missing_field"),
            ("field \"l\": field \"item\": expected an integer, found \"x\"", "bad_value"),
            ("a line of 20 bytes, over the bound of 10 (option `max_line`)", "too_long"),
            ("late: `t` is empty, so the row is in no window of `w`", "late"),
            ("rebuild: field \"n\": expected an integer, found 1.5", "bad_value"),
            ("no idea", "other"),
        ] {
            assert_eq!(reason_kind(reason), kind, "{reason}");
        }
    }
}
