//! Values of each type, and keys that a path would take for something else.

use super::*;
use arrow_array::{
    BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array, Int16Array,
    Int32Array, ListArray, Time64MicrosecondArray, TimestampMillisecondArray, UInt32Array, types::Int32Type,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// A row of each type, and one of nulls.
fn each() -> RecordBatch {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
    let decimal = Decimal128Array::from(vec![Some(-12_345), None]).with_precision_and_scale(10, 2).unwrap();
    let instants = || TimestampMillisecondArray::from(vec![Some(-1), None]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("k", Arc::new(StringArray::from(vec!["full", "none"]))),
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("bytes", Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]))),
        ("date", Arc::new(Date32Array::from(vec![Some(1), None]))),
        ("decimal", Arc::new(decimal)),
        ("f32", Arc::new(Float32Array::from(vec![Some(1.5), None]))),
        ("f64", Arc::new(Float64Array::from(vec![Some(-0.25), None]))),
        ("i16", Arc::new(Int16Array::from(vec![Some(-2), None]))),
        ("i32", Arc::new(Int32Array::from(vec![Some(258), None]))),
        ("i64", Arc::new(Int64Array::from(vec![Some(i64::MIN), None]))),
        ("i8", Arc::new(Int8Array::from(vec![Some(-1), None]))),
        ("instant", Arc::new(instants().with_timezone("+02:00"))),
        ("list", Arc::new(list)),
        ("local", Arc::new(instants())),
        ("text", Arc::new(StringArray::from(vec![Some("é\u{0}"), None]))),
        ("empty", Arc::new(StringArray::from(vec![Some(""), None]))),
        ("time", Arc::new(Time64MicrosecondArray::from(vec![Some(3_600_000_000), None]))),
        ("u32", Arc::new(UInt32Array::from(vec![Some(u32::MAX), None]))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, values)| (name, values, name != "k")))
        .unwrap()
}

#[tokio::test]
async fn values_are_text_or_what_hbase_itself_writes() {
    let Some(server) = probe::server() else { return };
    let text: [(&str, &[u8]); 17] = [
        ("bool", b"true"),
        ("bytes", b"\x00\xff"),
        ("date", b"1970-01-02"),
        ("decimal", b"-123.45"),
        ("empty", b""),
        ("f32", b"1.5"),
        ("f64", b"-0.25"),
        ("i16", b"-2"),
        ("i32", b"258"),
        ("i64", b"-9223372036854775808"),
        ("i8", b"-1"),
        ("instant", b"1969-12-31T23:59:59.999000Z"),
        ("list", b"[1,null]"),
        ("local", b"1969-12-31T23:59:59.999000"),
        ("text", "é\u{0}".as_bytes()),
        ("time", b"01:00:00"),
        ("u32", b"4294967295"),
    ];
    let numbers: [(&str, &[u8]); 11] = [
        ("bool", &[0xff]),
        ("decimal", &[0, 0, 0, 2, 0xcf, 0xc7]),
        ("f32", &[0x3f, 0xc0, 0, 0]),
        ("f64", &[0xbf, 0xd0, 0, 0, 0, 0, 0, 0]),
        ("i16", &[0xff, 0xfe]),
        ("i32", &[0, 0, 1, 2]),
        ("i64", &[0x80, 0, 0, 0, 0, 0, 0, 0]),
        ("i8", &[0xff]),
        ("instant", &[0xff; 8]),
        ("local", &[0xff; 8]),
        ("u32", &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
    ];
    for form in ["text", "bytes"] {
        let (dir, table) = (tempfile::tempdir().unwrap(), table(form));
        let sink = sink(&server, &table, &[("key", "k"), ("values", form)], dir.path());
        sink.open(each().schema()).await.unwrap();
        write(&*sink, 1, 1000, each()).await;
        let cells = probe::cells(&server, &table).await;
        assert!(cells.iter().all(|cell| cell.key == b"full"), "a row of nulls is none");
        let found: Vec<(&str, &[u8])> =
            cells.iter().map(|cell| (cell.column.strip_prefix("d:").unwrap(), cell.value.as_slice())).collect();
        let other = |name| numbers.iter().find(|number| form == "bytes" && number.0 == name);
        let want: Vec<_> = text.iter().map(|plain| *other(plain.0).unwrap_or(plain)).collect();
        assert_eq!(found, want, "{form}");
    }
}

#[tokio::test]
async fn nulls_erase_what_they_stand_for_and_nothing_beside_it_or_leave_it() {
    let Some(server) = probe::server() else { return };
    // Keys that a path, a scan or a decoder would take for others.
    let [regions, multiget] = ["regions", "multiget"].map(|text| URL_SAFE_NO_PAD.decode(text).unwrap());
    let keys: [&[u8]; 22] = [
        b"a",
        b"a*",
        b"*",
        b".",
        b"..",
        b"../t",
        b"a/b",
        b"a,b",
        b"%61",
        b"a%2Fb",
        b"a+b",
        b"a b",
        b"a?b=c",
        b"a#b",
        b"schema",
        b"\x00",
        b"\xff\xfe",
        "é".as_bytes(),
        "日本*".as_bytes(),
        b"YQ",
        &regions,
        &multiget,
    ];
    let rows = |gone: Option<usize>| {
        let n = |at: usize| (at % 2 != gone.unwrap_or(2)).then_some(at as i64);
        let columns: [(&str, ArrayRef, bool); 3] = [
            ("k", Arc::new(BinaryArray::from_iter_values(keys)), false),
            ("n:/*,é", Arc::new(Int64Array::from_iter((0..keys.len()).map(n))), true),
            ("m", Arc::new(Int64Array::from_iter_values(0..keys.len() as i64)), true),
        ];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    };
    for nulls in ["erase", "leave"] {
        let (dir, table) = (tempfile::tempdir().unwrap(), table(nulls));
        let sink = sink(&server, &table, &[("key", "k"), ("nulls", nulls)], dir.path());
        sink.open(rows(None).schema()).await.unwrap();
        write(&*sink, 1, 1000, rows(None)).await;
        let with = async |column: &str| {
            let cells = probe::cells(&server, &table).await.into_iter().filter(|cell| cell.column == column);
            let mut keys: Vec<Vec<u8>> = cells.map(|cell| cell.key).collect();
            keys.sort();
            keys
        };
        let mut all: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
        all.sort();
        assert_eq!(with("d:n:/*,é").await, all);
        for gone in [0, 1] {
            write(&*sink, 2 + gone as u64, 2000 + gone as i64, rows(Some(gone))).await;
            let stay = keys.iter().enumerate().filter(|(at, _)| nulls == "leave" || at % 2 != gone);
            let mut stay: Vec<Vec<u8>> = stay.map(|(_, key)| key.to_vec()).collect();
            stay.sort();
            assert_eq!(with("d:n:/*,é").await, stay, "{nulls} {gone}");
            assert_eq!(with("d:m").await, all);
        }
    }
}

#[tokio::test]
async fn keys_of_several_columns_are_told_apart() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("several"));
    let sink = sink(&server, &table, &[("key", "b, a"), ("separator", "/")], dir.path());
    let pairs = [("x/y", "z"), ("x", "y/z"), (r"x\", "/z"), (r"x\/", "z"), ("", ""), ("é", "1")];
    let columns: [(&str, ArrayRef); 3] = [
        ("a", Arc::new(StringArray::from_iter_values(pairs.iter().map(|pair| pair.1)))),
        ("n", Arc::new(Int64Array::from_iter_values(0..6))),
        ("b", Arc::new(StringArray::from_iter_values(pairs.iter().map(|pair| pair.0)))),
    ];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    sink.open(rows.schema()).await.unwrap();
    write(&*sink, 1, 1000, rows).await;
    let mut lines = probe::lines(&server, &table).await;
    lines.sort_by_key(|line| line.split('=').nth(1).unwrap().to_string());
    let keys = [r"x\/y/z", r"x/y\/z", r"x\\/\/z", r"x\\\//z", "/", "é/1"];
    let want: Vec<String> = keys.iter().enumerate().map(|(n, key)| format!("{key} d:n={n}@1000")).collect();
    assert_eq!(lines, want);
}
