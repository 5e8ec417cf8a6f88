//! Against the server of `TIDEMILL_S3`, whose port has Kinesis too.
//!
//! It keeps all records, closes no shard and looks at no signature: what it lacks is in `fake.rs`.

use super::*;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::collections::BTreeMap;

/// A stream of its own for the test. `None`, and said, when there is no server.
pub(super) async fn stream(name: &str, shards: usize) -> Option<Client> {
    let Ok(endpoint) = std::env::var("TIDEMILL_S3") else {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_S3 is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: TIDEMILL_S3 is not set; ci/services up starts a server");
        return None;
    };
    let link = Link { proxy: Proxy::Direct, ..Link::default() };
    let stream = Name::Name(name.to_string());
    let client = Client { caller: Caller::of(KEY, "hunter2", None), endpoint, stream, link };
    // Of an earlier run.
    let _none = client.call("DeleteStream", &json!({ "StreamName": name })).await;
    client.call("CreateStream", &json!({ "StreamName": name, "ShardCount": shards })).await.unwrap();
    Some(client)
}

pub(super) async fn put(client: &Client, numbers: std::ops::Range<u32>) {
    let all: Vec<Value> = numbers
        .map(|n| json!({"Data": STANDARD.encode(format!("{{\"n\":{n}}}")), "PartitionKey": format!("key {n}")}))
        .collect();
    let (answer, _) =
        client.call("PutRecords", &json!({"StreamName": client.stream.shown(), "Records": all})).await.unwrap();
    assert_eq!(answer["FailedRecordCount"], 0);
}

fn start(client: &Client, options: &[(&str, &str)], token: Option<String>) -> Running {
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let mut all = vec![("stream", client.stream.shown()), ("record", "message")];
    all.extend(options);
    run(reader(&client.endpoint, &clock, &all), &clock, token)
}

/// The numbers of records by shard, in order.
fn numbers(heard: &Heard) -> BTreeMap<String, Vec<u64>> {
    let mut all: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for record in &heard.records {
        let record: Value = serde_json::from_slice(record).unwrap();
        let n = record["data"]["n"].as_u64().unwrap();
        assert_eq!(record["partition_key"], format!("key {n}"));
        assert!(
            record["sequence_number"].is_string() && record["arrived"].as_str().unwrap().ends_with('Z'),
            "{record}"
        );
        all.entry(record["shard"].as_str().unwrap().to_string()).or_default().push(n);
    }
    all
}

#[tokio::test]
async fn all_records_of_all_shards_come_once_over_restarts() {
    let Some(client) = stream("once", 3).await else { return };
    put(&client, 0..150).await;
    let (mut token, mut all) = (None, BTreeMap::<String, Vec<u64>>::new());
    for life in 0..4 {
        let running = start(&client, &[("limit", "17")], token);
        let whole = if life == 0 { 60 } else { 1 };
        running.records(whole).await;
        put(&client, 150 + life * 50..200 + life * 50).await;
        if life == 3 {
            let have = all.values().map(Vec::len).sum::<usize>();
            running.records(350 - have).await;
        }
        let heard = running.end().await;
        for (shard, mut numbers) in numbers(&heard) {
            all.entry(shard).or_default().append(&mut numbers);
        }
        token = heard.resume;
    }
    assert_eq!(all.len(), 3, "all shards");
    for numbers in all.values() {
        assert!(numbers.is_sorted_by(|a, b| a < b), "in order, none twice: {numbers:?}");
    }
    assert_eq!(all.values().map(Vec::len).sum::<usize>(), 350);
}

#[tokio::test]
async fn it_begins_where_it_is_told_to() {
    let Some(client) = stream("begins", 1).await else { return };
    put(&client, 0..3).await;
    let running = start(&client, &[("start", "latest")], None);
    running.until(says("connected")).await;
    put(&client, 3..5).await;
    let only = |heard: &Heard| numbers(heard).into_values().flatten().collect::<Vec<_>>();
    // Those of the same second may come with it.
    let heard = running.until(|heard| only(heard).ends_with(&[3, 4])).await;
    assert!(only(&heard).is_sorted_by(|a, b| a < b), "{heard:?}");
    running.end().await;
    for (time, wanted) in [("2020-01-01T00:00:00Z", 5), ("earliest", 5)] {
        let running = start(&client, &[("start", time)], None);
        assert_eq!(only(&running.records(wanted).await), [0, 1, 2, 3, 4]);
        running.end().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_named() {
    let Some(client) = stream("there", 1).await else { return };
    let error = start(&client, &[], None);
    error.until(says("connected")).await;
    error.end().await;
    client.call("DeleteStream", &json!({ "StreamName": "there" })).await.unwrap();
    let text = start(&client, &[], None).fails().await.chain();
    assert!(text.contains("no stream `there`") && text.contains("not found"), "{text}");
}
