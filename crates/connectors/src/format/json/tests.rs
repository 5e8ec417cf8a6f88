//! The decoder against `serde_json`, and every bad record.

use super::*;
use arrow_array::{
    Array,
    cast::AsArray,
    types::{Float64Type, Int64Type, TimestampMicrosecondType},
};
use arrow_schema::{DataType, Field, Schema};
use proptest::prelude::*;
use serde_json::Value;

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
    Arc::new(Schema::new(fields.iter().map(|(name, ty)| Field::new(*name, ty.clone(), true)).collect::<Vec<_>>()))
}

fn decode(format: &JsonFormat, projection: &[usize], records: &[&[u8]]) -> (RecordBatch, Vec<Refusal>) {
    let mut refused = Vec::new();
    let rows = format.decoder(projection).decode(&Block::from_records(records), &mut refused).unwrap();
    assert_eq!(rows.num_rows() + refused.len(), records.len());
    (rows, refused)
}

#[test]
fn each_type_takes_what_it_should() {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let inner = DataType::Struct(
        vec![Field::new("name", DataType::Utf8, true), Field::new("followers", DataType::Int64, true)].into(),
    );
    let format = JsonFormat::new(schema(&[
        ("text", DataType::Utf8),
        ("n", DataType::Int64),
        ("x", DataType::Float64),
        ("ok", DataType::Boolean),
        ("at", utc()),
        ("tags", list),
        ("user", inner),
        ("user.name", DataType::Utf8),
        ("raw", DataType::Utf8),
    ]))
    .unwrap();
    let record = r#" { "n" : -12, "text":"a\"\u00e9\ud83d\ude00\n", "x": 1e3, "ok":true, "raw":[1, {"a": 2}],
        "at":"Wed Oct 10 20:19:24 +0000 2018", "tags":["a", null, "b\\"], "user" : {"followers":5,"name":"Ada"} , "else":{"n":[[]]} } "#;
    let all: Vec<usize> = (0..9).collect();
    let (rows, refused) = decode(&format, &all, &[record.as_bytes(), b"{}", br#"{"user":null,"tags":[]}"#]);
    assert_eq!(refused, []);
    assert_eq!(rows.column(0).as_string::<i32>().value(0), "a\"é😀\n");
    assert_eq!(rows.column(1).as_primitive::<Int64Type>().value(0), -12);
    assert_eq!(rows.column(2).as_primitive::<Float64Type>().value(0).to_bits(), 1000_f64.to_bits());
    assert!(rows.column(3).as_boolean().value(0));
    assert_eq!(rows.column(4).as_primitive::<TimestampMicrosecondType>().value(0), 1_539_202_764_000_000);
    let tags = rows.column(5).as_list::<i32>();
    let first: Vec<Option<String>> = tags.value(0).as_string::<i32>().iter().map(|v| v.map(str::to_string)).collect();
    assert_eq!(first, [Some("a".to_string()), None, Some("b\\".to_string())]);
    assert!(tags.is_null(1) && tags.value(2).is_empty());
    let user = rows.column(6).as_struct();
    assert_eq!(user.column(1).as_primitive::<Int64Type>().value(0), 5);
    assert!(user.is_null(1) && user.is_null(2));
    assert_eq!(rows.column(7).as_string::<i32>().value(0), "Ada");
    assert_eq!(rows.column(8).as_string::<i32>().value(0), r#"[1, {"a": 2}]"#);
    assert!((0..9).all(|c| rows.column(c).is_null(1)));
}

#[test]
fn a_byte_order_mark_before_a_record_is_passed_over() {
    let records: [&[u8]; 3] = [b"\xef\xbb\xbf{\"n\":1}", b"\xef\xbb\xbf {\"n\":2}", b"{\"n\":3}"];
    let (rows, refused) = decode(&JsonFormat::new(schema(&[("n", DataType::Int64)])).unwrap(), &[0], &records);
    assert_eq!(refused, []);
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().values(), &[1, 2, 3]);
    let sampled = JsonFormat::infer(&records[..1]).unwrap();
    assert_eq!(sampled.schema().field(0).name(), "n");
}

/// Each bad record, refused with its reason, between two good ones.
#[test]
fn bad_records_are_refused_with_the_reason() {
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_objects = "{\"a\":".repeat(100_000);
    let long = format!("{{\"n\":{}}}", "7".repeat(10 << 20));
    let bad: Vec<(&[u8], &str)> = vec![
        (b"", "byte 0: the record is empty"),
        (b"   ", "byte 3: the record is empty"),
        (b"[1]", "byte 0: expected an object"),
        (b"{\"n\":1}x", "byte 7: bytes after the object"),
        (b"{\"n\":1}{}", "byte 7: bytes after the object"),
        (b"{\"n\":004}", "byte 6: a number with a leading zero"),
        (b"{\"n\":-}", "byte 6: expected a digit"),
        (b"{\"n\":1.}", "byte 7: expected a digit"),
        (b"{\"n\":1e}", "byte 7: expected a digit"),
        (b"{\"n\":+1}", "byte 5: expected a value"),
        (b"{\"n\":NaN}", "byte 5: expected a value"),
        (b"{\"n\":truE}", "byte 5: expected a value"),
        (b"{\"n\":1,}", "byte 7: expected a key in quotes"),
        (b"{,}", "byte 1: expected a key in quotes"),
        (b"{\"n\" 1}", "byte 5: expected a colon"),
        (b"{\"n\":1 \"m\":2}", "byte 7: expected a comma or `}`"),
        (b"{\"m\":[1 2]}", "byte 8: expected a comma or `]`"),
        (b"{\"m\":[1,]}", "byte 8: expected a value"),
        (b"{\"m\":\"a", "byte 7: the record ends too early"),
        (b"{\"m\":\"\\", "byte 6: an unknown escape in a string"),
        (b"{\"m\":\"\\x\"}", "byte 6: an unknown escape in a string"),
        (b"{\"m\":\"\\u12g4\"}", "byte 6: expected four hex digits after `\\u`"),
        (b"{\"m\":\"a\0b\"}", "byte 7: a control character in a string"),
        (b"{\"m\":\"a\tb, and some more text\"}", "byte 7: a control character in a string"),
        (b"\0{\"n\":1}", "byte 0: expected an object"),
        (b"{\"n\":1\0}", "byte 6: expected a comma or `}`"),
        (b"{\"m\":\"\xff\"}", "byte 6: not UTF-8"),
        (b"{'n':1}", "byte 1: expected a key in quotes"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "byte 3: expected an object"),
        (b"\xef\xbb\xbf", "byte 3: the record is empty"),
        (b"\xef\xbb\xbf{\"n\":1}x", "byte 10: bytes after the object"),
        (b"{\"n\":1.5}", "field \"n\": expected an integer, found 1.5"),
        (b"{\"n\":\"many\"}", "field \"n\": expected an integer, found \"many\""),
        (b"{\"n\":[1]}", "field \"n\": expected an integer, found an array"),
        (
            b"{\"n\":9223372036854775808}",
            "field \"n\": expected an integer between -9223372036854775808 and 9223372036854775807, found 9223372036854775808",
        ),
        (b"{\"x\":1e999}", "field \"x\": expected a number in the range of a DOUBLE, found 1e999"),
        (b"{\"t\":7}", "field \"t\": expected a string, found 7"),
        (b"{\"t\":\"\\ud83d\"}", "field \"t\": a lone surrogate"),
        (b"{\"t\":\"\\ude00\"}", "field \"t\": a lone surrogate"),
        (b"{\"at\":\"soon\"}", "field \"at\": expected a timestamp, found \"soon\""),
        (
            b"{\"at\":7}",
            "field \"at\": expected a timestamp as text (or set option `timestamp` to s, ms or us), found 7",
        ),
        (deep.as_bytes(), "byte 131: nested deeper than 127 levels"),
        (deep_objects.as_bytes(), "byte 635: nested deeper than 127 levels"),
        (long.as_bytes(), "byte 5: a number of more than 1024 bytes"),
    ];
    let format = JsonFormat::new(schema(&[
        ("n", DataType::Int64),
        ("x", DataType::Float64),
        ("t", DataType::Utf8),
        ("at", utc()),
    ]))
    .unwrap();
    let good = br#"{"n":1,"x":2,"t":"three","at":"2026-01-01T00:00:00Z"}"#.as_slice();
    let mut records = Vec::new();
    for (record, _) in &bad {
        records.extend([*record, good]);
    }
    let (rows, refused) = decode(&format, &[0, 1, 2, 3], &records);
    for ((i, (_, want)), got) in bad.iter().enumerate().zip(&refused) {
        assert_eq!((got.row, got.reason.as_str()), (2 * i, *want));
    }
    assert_eq!((rows.num_rows(), refused.len()), (bad.len(), bad.len()));
    assert!((0..4).all(|c| rows.column(c).null_count() == 0), "nothing of a refused record is left");
    assert!(rows.column(2).as_string::<i32>().iter().all(|v| v == Some("three")));
}

#[test]
fn a_refused_row_leaves_nothing_in_lists_and_structs() {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
    let inner =
        DataType::Struct(vec![Field::new("a", DataType::Int64, true), Field::new("l", list.clone(), true)].into());
    let format = JsonFormat::new(schema(&[("l", list), ("s", inner), ("n", DataType::Int64)])).unwrap();
    let (rows, refused) = decode(
        &format,
        &[0, 1, 2],
        &[
            br#"{"l":[1,2],"s":{"a":1,"l":[3]},"n":1}"#,
            br#"{"l":[1,"x"],"s":{"a":1},"n":1}"#,
            br#"{"l":[9],"s":{"a":1,"l":[8,true]},"n":1}"#,
            br#"{"l":[9],"s":{"a":1,"l":[8]},"n":"x"}"#,
            br#"{"l":[4],"s":{"l":[]},"n":2}"#,
        ],
    );
    let reasons: Vec<&str> = refused.iter().map(|r| r.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "field \"l\": field \"item\": expected an integer, found \"x\"",
            "field \"s\": field \"l\": field \"item\": expected an integer, found true",
            "field \"n\": expected an integer, found \"x\"",
        ]
    );
    let items = rows.column(0).as_list::<i32>().values().as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(items, [1, 2, 4]);
    let deep = rows.column(1).as_struct().column(1).as_list::<i32>().values().as_primitive::<Int64Type>().len();
    assert_eq!(deep, 1);
}

#[test]
fn a_column_that_is_not_null_refuses_a_missing_field() {
    let format = JsonFormat::new(Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]))).unwrap();
    let (rows, refused) = decode(&format, &[0], &[b"{}", b"{\"id\":null}", b"{\"id\":3}"]);
    assert_eq!(rows.num_rows(), 1);
    assert!(refused.iter().all(|r| r.reason == "field \"id\": missing, and declared NOT NULL"));
}

#[test]
fn paths_lead_into_objects_and_the_last_of_a_repeated_key_counts() {
    let options = Options::new("s", [("path.name", "user.profile.name"), ("timestamp", "ms")]);
    let columns = schema(&[("name", DataType::Utf8), ("user.id", DataType::Int64), ("at", utc())]);
    let format = JsonFormat::from_options(&options, Some(columns)).unwrap();
    assert!(options.get("format").is_none() && options.finish().is_ok());
    let (rows, refused) = decode(
        &format,
        &[0, 1, 2],
        &[
            br#"{"user":{"id":1,"profile":{"name":"x"}},"at":5,"us\u0065r":{"id":2,"profile":{}}}"#,
            br#"{"user":{"id":1},"user":7,"name":"not this"}"#,
        ],
    );
    assert_eq!(refused, []);
    assert!(rows.column(0).is_null(0) && rows.column(0).is_null(1));
    assert_eq!(rows.column(1).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(2), None]);
    assert_eq!(rows.column(2).as_primitive::<TimestampMicrosecondType>().value(0), 5000);
}

#[test]
fn columns_are_sampled() {
    let sample: Vec<&[u8]> = vec![
        br#"{"id":1,"at":"2026-05-25T14:23:28.778Z","tags":["a"],"x":1,"mix":1,"user":{"n":1}}"#,
        b"not json",
        br#"{"id":2,"at":"2026-05-25T14:23:29Z","tags":[],"x":1.5,"mix":"a","user":{"m":true},"a.b":null}"#,
    ];
    let format = JsonFormat::infer(&sample).unwrap();
    let types: Vec<(String, DataType)> =
        format.schema().fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect();
    let nullable = |name: &str, ty| Field::new(name, ty, true);
    let any = |name: &str, ty| nullable(name, ty);
    let want = [
        ("id", DataType::Int64),
        ("at", utc()),
        ("tags", DataType::List(Arc::new(any("item", DataType::Utf8)))),
        ("x", DataType::Float64),
        ("mix", DataType::Utf8),
        ("user", DataType::Struct(vec![nullable("n", DataType::Int64), nullable("m", DataType::Boolean)].into())),
        ("a.b", DataType::Utf8),
    ];
    let mut names: Vec<&str> = types.iter().map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    let mut wanted: Vec<&str> = want.iter().map(|(n, _)| *n).collect();
    wanted.sort_unstable();
    assert_eq!(names, wanted);
    for (name, ty) in &types {
        let want = &want.iter().find(|(n, _)| n == name).unwrap().1;
        assert!(ty.equals_datatype(want), "{name}: {ty} is not {want}");
    }
    let all: Vec<usize> = (0..types.len()).collect();
    let (rows, refused) = decode(&format, &all, &sample);
    assert_eq!((rows.num_rows(), refused.len()), (2, 1));
    assert!(JsonFormat::infer(&[b"[]"]).is_err());
}

/// JSON values, with texts that need escapes.
fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof!["[a-z\"\\\\\n\u{e9}\u{1f600}\u{4e09}]{0,12}", "[a-z ]{0,40}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Quarters, because the oracle reads other fractions inexactly.
        (-4_000_000_000_i64..4_000_000_000).prop_map(|n| Value::from(n as f64 / 4.0)),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[abcd]|\"|é", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// What the oracle says that a text column holds; `Err` when it is refused.
fn as_text(value: Option<&Value>) -> Result<Option<Value>, ()> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(_) | Value::Number(_)) => Err(()),
        Some(other) => Ok(Some(other.clone())),
    }
}

proptest! {
    #[test]
    fn columns_agree_with_serde_json(
        objects in prop::collection::vec(prop::collection::hash_map("[abcd]", value(), 0..5), 1..8),
        pretty in any::<bool>(),
        projection in prop::sample::subsequence(vec![0_usize, 1, 2, 3, 4, 5], 0..=6),
    ) {
        let format = JsonFormat::new(schema(&[
            ("a", DataType::Utf8), ("a.b", DataType::Utf8), ("b", DataType::Int64),
            ("c", DataType::Float64), ("d", DataType::Boolean), ("b.c.d", DataType::Utf8),
        ])).unwrap();
        let objects: Vec<Value> = objects.into_iter().map(|m| Value::Object(m.into_iter().collect())).collect();
        let records: Vec<String> = objects.iter().map(|o| {
            if pretty { serde_json::to_string_pretty(o).unwrap() } else { serde_json::to_string(o).unwrap() }
        }).collect();
        let bytes: Vec<&[u8]> = records.iter().map(String::as_bytes).collect();
        let (rows, refused) = decode(&format, &projection, &bytes);
        let mut row = 0;
        for (i, object) in objects.iter().enumerate() {
            let fits = projection.iter().all(|p| match p {
                0 => as_text(object.get("a")).is_ok(),
                1 => as_text(object.pointer("/a/b")).is_ok(),
                2 => object.get("b").is_none_or(|v| v.is_null() || v.is_i64()),
                3 => object.get("c").is_none_or(|v| v.is_null() || v.is_number()),
                4 => object.get("d").is_none_or(|v| v.is_null() || v.is_boolean()),
                _ => as_text(object.pointer("/b/c/d")).is_ok(),
            });
            prop_assert_eq!(!fits, refused.iter().any(|r| r.row == i), "{}", &records[i]);
            if !fits {
                continue;
            }
            for (column, p) in projection.iter().enumerate() {
                let column = rows.column(column);
                let path = ["/a", "/a/b", "/b", "/c", "/d", "/b/c/d"][*p];
                let want = object.pointer(path).filter(|v| !v.is_null());
                prop_assert_eq!(column.is_null(row), want.is_none());
                let Some(want) = want else { continue };
                match p {
                    2 => prop_assert_eq!(Some(column.as_primitive::<Int64Type>().value(row)), want.as_i64()),
                    3 => prop_assert_eq!(Some(column.as_primitive::<Float64Type>().value(row)), want.as_f64()),
                    4 => prop_assert_eq!(Some(column.as_boolean().value(row)), want.as_bool()),
                    _ => {
                        let got = column.as_string::<i32>().value(row);
                        match want {
                            Value::String(text) => prop_assert_eq!(got, text),
                            // Nested values are their plain text, which reads back as the same value.
                            nested => prop_assert_eq!(&serde_json::from_str::<Value>(got).unwrap(), nested),
                        }
                    }
                }
            }
            row += 1;
        }
        prop_assert_eq!(row, rows.num_rows());
    }

    /// Damaged records: accepted exactly when `serde_json` accepts them as an object.
    #[test]
    fn damage_is_seen_as_serde_json_sees_it(
        object in prop::collection::hash_map("[abcd]", value(), 0..5),
        at in any::<prop::sample::Index>(),
        with in prop_oneof![Just(None), prop::sample::select(b"{}[]\",:\\0123e.-tfn\n\0\xffx ".to_vec()).prop_map(Some)],
    ) {
        let mut record = serde_json::to_vec(&Value::Object(object.into_iter().collect())).unwrap();
        let at = at.index(record.len());
        match with {
            Some(byte) => record[at] = byte,
            None => { record.remove(at); }
        }
        let want = serde_json::from_slice::<serde_json::Map<String, Value>>(&record);
        let got = scan_bytes(&record, &Paths::keys(["a", "b"]), |_, _| {});
        // A number beyond a double is grammatical; the oracle turns it away and looks no further, so it says nothing.
        prop_assume!(!want.as_ref().is_err_and(|e| e.to_string().contains("out of range")));
        prop_assert_eq!(got.is_ok(), want.is_ok(), "{}: {:?}", String::from_utf8_lossy(&record), want);
    }
}
