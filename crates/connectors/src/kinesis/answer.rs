//! Answers of the service, read.
//!
//! Invariant: an answer is taken whole or not at all; what has not the form that
//! is documented is told, and nothing of it is guessed. Called by [`super::client`].

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use std::time::Duration;
use tidemill_core::Timestamp;

/// Bytes of a shard's name or of a sequence number at most; both are documented to be shorter.
const NAME: usize = 128;

/// A shard, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: String,
    /// Those that it was split or merged from.
    pub(super) parents: Vec<String>,
    /// Whether records still come to it.
    pub(super) is_open: bool,
}

/// What is asked of a stream beside its shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    /// When it was made.
    pub(super) created: Timestamp,
    /// How long records are kept.
    pub(super) retention: Duration,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence: String,
    pub(super) key: String,
    pub(super) arrived: Option<Timestamp>,
    pub(super) data: Vec<u8>,
}

/// Records of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) records: Vec<Record>,
    /// Where the next page is; `None` when a closed shard is read out.
    pub(super) next: Option<String>,
    /// How far the shard's end is behind this page.
    pub(super) behind: Duration,
}

/// A text under this name.
fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str, String> {
    value[name].as_str().ok_or_else(|| format!("there is no text `{name}`"))
}

/// A shard's name, or a sequence number.
fn name(value: &Value, name: &str) -> Result<String, String> {
    let text = text(value, name)?;
    let fine = (1..=NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if fine { Ok(text.to_string()) } else { Err(format!("`{name}` is no name")) }
}

/// A time in seconds, with parts of them.
fn time(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64().filter(|seconds| (0.0..1e11).contains(seconds))?;
    Some(Timestamp::default().plus(Duration::from_millis(millis(seconds * 1000.0))))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the caller has seen that it is no more")]
fn millis(of: f64) -> u64 {
    of.round() as u64
}

/// The shards of a page of their list, and the token of the next page.
pub(super) fn shards(answer: &Value) -> Result<(Vec<Listed>, Option<String>), String> {
    let listed = answer["Shards"].as_array().ok_or("there is no list `Shards`")?.iter().map(|shard| {
        let parents = ["ParentShardId", "AdjacentParentShardId"].into_iter().filter(|key| !shard[*key].is_null());
        let ends = &shard["SequenceNumberRange"]["EndingSequenceNumber"];
        Ok(Listed {
            id: name(shard, "ShardId")?,
            parents: parents.map(|key| name(shard, key)).collect::<Result<_, String>>()?,
            is_open: ends.is_null(),
        })
    });
    let listed = listed.collect::<Result<_, String>>()?;
    Ok((listed, answer["NextToken"].as_str().map(str::to_string)))
}

/// What the summary of a stream says.
pub(super) fn summary(answer: &Value) -> Result<Summary, String> {
    let summary = &answer["StreamDescriptionSummary"];
    let hours = summary["RetentionPeriodHours"].as_u64().filter(|hours| (1..=100_000).contains(hours));
    Ok(Summary {
        created: time(&summary["StreamCreationTimestamp"]).ok_or("there is no time `StreamCreationTimestamp`")?,
        retention: Duration::from_secs(3600 * hours.ok_or("there is no number `RetentionPeriodHours`")?),
    })
}

/// An iterator.
pub(super) fn iterator(answer: &Value) -> Result<String, String> {
    text(answer, "ShardIterator").map(str::to_string)
}

/// A page of records.
pub(super) fn page(answer: &Value) -> Result<Page, String> {
    let records = answer["Records"].as_array().ok_or("there is no list `Records`")?.iter().map(|record| {
        let data = STANDARD.decode(text(record, "Data")?).map_err(|_| "`Data` is no base64".to_string())?;
        Ok(Record {
            sequence: name(record, "SequenceNumber")?,
            key: text(record, "PartitionKey")?.to_string(),
            arrived: time(&record["ApproximateArrivalTimestamp"]),
            data,
        })
    });
    Ok(Page {
        records: records.collect::<Result<_, String>>()?,
        next: answer["NextShardIterator"].as_str().map(str::to_string),
        behind: Duration::from_millis(answer["MillisBehindLatest"].as_u64().ok_or("there is no `MillisBehindLatest`")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_read_as_they_are_documented() {
        let listed = json!({"Shards": [
            {"ShardId": "shardId-000000000000", "HashKeyRange": {},
             "SequenceNumberRange": {"StartingSequenceNumber": "1", "EndingSequenceNumber": "9"}},
            {"ShardId": "shardId-000000000002", "ParentShardId": "shardId-000000000000",
             "AdjacentParentShardId": "shardId-000000000001", "SequenceNumberRange": {"StartingSequenceNumber": "9"}},
        ], "NextToken": "more"});
        let (all, next) = shards(&listed).unwrap();
        assert_eq!((all.len(), next.as_deref()), (2, Some("more")));
        assert!(!all[0].is_open && all[0].parents.is_empty() && all[1].is_open);
        assert_eq!(all[1].parents, ["shardId-000000000000", "shardId-000000000001"]);

        let summed =
            json!({"StreamDescriptionSummary": {"RetentionPeriodHours": 24, "StreamCreationTimestamp": 1.5e9}});
        let wanted = Summary { created: Timestamp(1_500_000_000_000_000), retention: Duration::from_secs(86_400) };
        assert_eq!(summary(&summed).unwrap(), wanted);

        let read = page(&json!({"Records": [{"Data": "/wA=", "PartitionKey": "k", "SequenceNumber": "49",
            "ApproximateArrivalTimestamp": 1_700_000_000.25}], "NextShardIterator": null, "MillisBehindLatest": 1500}));
        let read = read.unwrap();
        assert_eq!(read.records[0].arrived, Some(Timestamp(1_700_000_000_250_000)));
        assert_eq!(
            (&read.records[0].data[..], read.next, read.behind),
            (&b"\xff\x00"[..], None, Duration::from_millis(1500))
        );
    }

    #[test]
    fn what_has_another_form_is_told() {
        for (answer, wanted) in [
            (json!({}), "`Records`"),
            (json!({"Records": [{}], "MillisBehindLatest": 0}), "`Data`"),
            (json!({"Records": [{"Data": "!"}], "MillisBehindLatest": 0}), "no base64"),
            (
                json!({"Records": [{"Data": "", "SequenceNumber": ""}], "MillisBehindLatest": 0}),
                "`SequenceNumber` is no",
            ),
            (json!({"Records": [{"Data": "", "SequenceNumber": "1\n"}], "MillisBehindLatest": 0}), "is no name"),
            (json!({"Records": [], "MillisBehindLatest": -1}), "`MillisBehindLatest`"),
        ] {
            assert!(page(&answer).unwrap_err().contains(wanted), "{answer}");
        }
        assert!(shards(&json!({"Shards": [{"ShardId": "a/b"}]})).is_err());
        assert!(shards(&json!({"Shards": [{"ShardId": "x".repeat(129)}]})).is_err());
        assert!(iterator(&json!({"ShardIterator": 7})).is_err());
        for (hours, created) in [(json!(0), json!(1)), (json!(24), json!(-1)), (json!(24), json!(1e300))] {
            let of = json!({"RetentionPeriodHours": hours, "StreamCreationTimestamp": created});
            assert!(summary(&json!({"StreamDescriptionSummary": of})).is_err(), "{of}");
        }
    }
}
