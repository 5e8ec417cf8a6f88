//! Every kind of column, and what does not fit one.
//!
//! The tables are made by hand, as those of others are.

use super::*;
use arrow_array::{
    BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeListArray, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, ListArray, StructArray, Time64MicrosecondArray, TimestampNanosecondArray, UInt64Array,
    builder::{MapBuilder, StringBuilder},
    types::{Float32Type, Int32Type},
};
use arrow_schema::{DataType, Field};

fn texts(texts: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

#[tokio::test]
async fn every_kind_of_column_is_written() {
    let Some(server) = server().await else { return };
    let ks = keyspace();
    let made = [
        format!("CREATE TYPE {ks}.place (town text, size int)"),
        format!(
            "CREATE TABLE {ks}.kinds (id uuid PRIMARY KEY, a ascii, t tinyint, s smallint, i int, b bigint, v varint, d decimal, f float, x double, txt text, raw blob, yes boolean, at timestamp, day date, hour time, tu timeuuid, ip inet, l frozen<list<int>>, st set<int>, vec vector<float, 2>, m map<text, text>, p place, \"Upper\" text)"
        ),
    ];
    probe::run(&server, &made.each_ref().map(String::as_str)).await;
    let times = TimestampNanosecondArray::from(vec![Some(-1_500_000), None]).with_timezone("Asia/Shanghai");
    let list = || ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(2), Some(1), Some(2)]), None]);
    let vector = [Some(vec![Some(0.5), Some(-1.0)]), None];
    let vector = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(vector, 2);
    let place = StructArray::from(vec![(
        Arc::new(Field::new("town", DataType::Utf8, true)),
        Arc::new(StringArray::from(vec![Some("潮州"), None])) as ArrayRef,
    )]);
    let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    map.keys().append_value("en");
    map.values().append_value("tide");
    map.append(true).unwrap();
    map.append(false).unwrap();
    let ids = ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"];
    let decimals = Decimal128Array::from(vec![Some(-12_345), None]).with_precision_and_scale(9, 2).unwrap();
    let columns: [(&str, ArrayRef); 24] = [
        ("id", texts(&ids.map(Some))),
        ("a", texts(&[Some("plain"), None])),
        ("t", Arc::new(Int8Array::from(vec![Some(-7), None]))),
        ("s", Arc::new(Int8Array::from(vec![Some(8), None]))),
        ("i", Arc::new(Int16Array::from(vec![Some(-9), None]))),
        ("b", Arc::new(Int32Array::from(vec![Some(i32::MAX), None]))),
        ("v", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None]))),
        ("d", Arc::new(decimals)),
        ("f", Arc::new(Float32Array::from(vec![Some(0.25), None]))),
        ("x", Arc::new(Float64Array::from(vec![Some(-0.5), None]))),
        ("txt", texts(&[Some("tab\there \"潮\""), None])),
        ("raw", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"ebb"), None]))),
        ("yes", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("at", Arc::new(times)),
        ("day", Arc::new(Date32Array::from(vec![Some(-1), None]))),
        ("hour", Arc::new(Time64MicrosecondArray::from(vec![Some(3_600_000_001), None]))),
        ("tu", texts(&[Some("50554d6e-29bb-11e5-b345-feff819cdc9f"), None])),
        ("ip", texts(&[Some("fd00::1"), None])),
        ("l", Arc::new(list())),
        ("st", Arc::new(list())),
        ("vec", Arc::new(vector)),
        ("m", Arc::new(map.finish())),
        ("p", Arc::new(place)),
        ("Upper", texts(&[Some("u"), None])),
    ];
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    // Struct and map columns can be null as a whole as well.
    let all = RecordBatch::try_from_iter_with_nullable(columns.clone().map(|(name, column)| (name, column, true)));
    let all = all.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&server, "kinds", &[], dir.path());
    sink.open(all.schema()).await.unwrap();
    write(&*sink, 4, 1000, all.clone()).await;
    let part = staged(&*sink, 5, 1000, all.slice(0, 1)).await;
    for _again in 0..2 {
        sink.commit(BatchId(5), std::slice::from_ref(&part)).await.unwrap();
    }
    // The server itself says what it has.
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let first = format!("SELECT JSON {} FROM {ks}.kinds WHERE id = {}", quoted.join(", "), ids[0]);
    let want = r#"{"id": "00000000-0000-4000-8000-000000000001", "a": "plain", "t": -7, "s": 8, "i": -9, "b": 2147483647, "v": 18446744073709551615, "d": -123.45, "f": 0.25, "x": -0.5, "txt": "tab\there \"潮\"", "raw": "0x656262", "yes": true, "at": "1969-12-31 23:59:59.998Z", "day": "1969-12-31", "hour": "01:00:00.000001000", "tu": "50554d6e-29bb-11e5-b345-feff819cdc9f", "ip": "fd00:0:0:0:0:0:0:1", "l": [2, 1, 2], "st": [1, 2], "vec": [0.5, -1.0], "m": {"en": "tide"}, "p": {"town": "潮州", "size": null}, "\"Upper\"": "u"}"#;
    assert_eq!(probe::rows(&server, &first).await, [want]);
    let second = format!("SELECT a, t, v, d, at, l, st, m, p FROM {ks}.kinds WHERE id = {}", ids[1]);
    let second = probe::rows(&server, &second).await;
    assert!(second[0].starts_with("null|null|null|null|null|null|null|null|"), "{second:?}");
}

#[tokio::test]
async fn what_does_not_fit_is_told_with_column_and_type_before_the_first_row() {
    let Some(server) = server().await else { return };
    let ks = keyspace();
    let tables = [
        "narrow (n int PRIMARY KEY, word text)",
        "wider (n bigint, day date, word text, PRIMARY KEY (n, day))",
        "without (n bigint PRIMARY KEY)",
        "lists (n bigint PRIMARY KEY, word list<text>)",
        "statics (n bigint, m bigint, word text static, PRIMARY KEY (n, m))",
        "counters (n bigint PRIMARY KEY, word counter)",
        "other (word text PRIMARY KEY, n bigint)",
    ];
    let made: Vec<String> = tables.iter().map(|table| format!("CREATE TABLE {ks}.{table}")).collect();
    probe::run(&server, &made.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for (table, options, want) in [
        (
            "narrow",
            &[][..],
            "column `n` is Int64, and the table's is int, which does not hold all of that: CAST it to INT",
        ),
        ("wider", &[], "its primary key is (n, day), and the rows have no column `day`; there are n, word"),
        ("without", &[], "it has no column `word`; there are n: add it (ALTER TABLE \"without\" ADD \"word\" text)"),
        ("lists", &[], "its column `word` is a list that is not frozen"),
        ("statics", &[], "the rows have no column `m`"),
        ("counters", &[], "its column `word` is a counter"),
        ("other", &[("key", "n")], "its primary key is (word): say so in option `key`"),
        ("nowhere", &[], "has none of the name: make it, or name its primary key in option `key`"),
        ("any", &[("keyspace", "none_such")], "there is no keyspace `none_such`"),
        ("any", &[("key", "n"), ("datacenter", "dc9")], "is there a datacenter of the name in option `datacenter`?"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = sink(&server, table, options, dir.path()).open(rows([]).schema()).await.unwrap_err();
        assert!(error.to_string().contains(want) && !error.is_retryable(), "{table}: {}", error.chain());
    }
}

#[tokio::test]
async fn a_value_that_a_column_does_not_hold_is_told_and_nothing_is_noted() {
    let Some(server) = server().await else { return };
    let ks = keyspace();
    let made =
        format!("CREATE TABLE {ks}.strict (word text PRIMARY KEY, id uuid, ip inet, a ascii, l frozen<list<int>>)");
    probe::run(&server, &[&made]).await;
    let item = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![None])]);
    for (batch, (word, name, column, want)) in (1..).zip([
        (None, "id", texts(&[None]), "column `word` is of the primary key, and null in a row: leave such rows out"),
        (Some(""), "id", texts(&[None]), "column `word` is the partition key, and empty in a row"),
        (Some("a"), "id", texts(&[Some("me")]), "column `id` has a text in a row that is no UUID"),
        (Some("a"), "ip", texts(&[Some("1.2.3")]), "column `ip` has a text in a row that is no address"),
        (Some("a"), "a", texts(&[Some("潮")]), "column `a` has a text in a row that is not ASCII"),
        (Some("a"), "l", Arc::new(item) as ArrayRef, "column `l` has a null within a list"),
    ]) {
        let columns = [("word", texts(&[word]), true), (name, column, true)];
        let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let sink = sink(&server, "strict", &[], dir.path());
        sink.open(rows.schema()).await.unwrap();
        let part = staged(&*sink, batch, 1000, rows).await;
        let error = sink.commit(BatchId(batch), &[part]).await.unwrap_err();
        assert!(error.to_string().contains(want) && !error.is_retryable(), "{}", error.chain());
    }
    let long = "x".repeat(70_000);
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&server, "long", &[("key", "word")], dir.path());
    sink.open(pairs(&[]).schema()).await.unwrap();
    let part = staged(&*sink, 1, 1000, pairs(&[(&long, None)])).await;
    let error = sink.commit(BatchId(1), &[part]).await.unwrap_err();
    assert!(error.to_string().contains("which holds 65535 bytes") && !error.is_retryable(), "{}", error.chain());
    let noted = format!("SELECT sink FROM {ks}.tidemill_batches WHERE sink IN ('strict', 'long')");
    assert_eq!(probe::rows(&server, &noted).await, Vec::<String>::new());
}
