//! Good and bad lines, and sampled columns.

use super::*;
use arrow_array::{cast::AsArray, types::Int64Type};
use arrow_schema::Field;

fn format(options: &[(&str, &str)]) -> CsvFormat {
    let schema = Schema::new(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("n", DataType::Int64, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
    ]);
    CsvFormat::from_options(&Options::new("s", options.iter().copied()), Some(Arc::new(schema))).unwrap()
}

#[test]
fn each_bad_line_is_refused_and_the_others_are_decoded() {
    let long = format!("\"{}\",1,", "x".repeat(5000));
    let block = Block::from_records([
        b"a,1,1970-01-01T00:00:01Z".as_slice(),
        b"\"b, \"\"quoted\"\"\",,",
        b"c,many,",
        b"d,1",
        b"e,1,,",
        b"\"f,1,",
        b"\xff,1,",
        b"",
        long.as_bytes(),
        b"h,2,soon",
    ]);
    let mut refused = Vec::new();
    let rows = format(&[]).decoder(&[1, 0, 2]).decode(&block, &mut refused).unwrap();
    assert_eq!(rows.num_rows() + refused.len(), block.len());
    let names: Vec<&str> = rows.column(1).as_string::<i32>().iter().flatten().collect();
    assert_eq!(names[..2], ["a", "b, \"quoted\""]);
    assert_eq!(names[2].len(), 5000);
    let numbers: Vec<Option<i64>> = rows.column(0).as_primitive::<Int64Type>().iter().collect();
    assert_eq!(numbers, [Some(1), None, Some(1)]);
    let reasons: Vec<(usize, &str)> = refused.iter().map(|r| (r.row, r.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            (2, "field \"n\": expected an integer in range, found \"many\""),
            (3, "expected 3 fields, found 2"),
            (4, "expected 3 fields, found 4"),
            (5, "a quoted field is not closed"),
            (6, "byte 0: not UTF-8"),
            (7, "expected 3 fields, found 1"),
            (9, "field \"at\": expected a timestamp, found \"soon\""),
        ]
    );
}

#[test]
fn columns_that_nobody_asked_for_are_not_parsed() {
    let mut refused = Vec::new();
    let block = Block::from_records(["a,many,never"]);
    let rows = format(&[]).decoder(&[]).decode(&block, &mut refused).unwrap();
    assert_eq!((rows.num_rows(), refused.len()), (1, 0));
}

#[test]
fn names_and_types_come_from_a_sample() {
    let sample = b"id;score;ok;at;word\r\n1;1;true;2026-01-01T00:00:00Z;a\r\n2;1.5;false;2026-01-01 10:00:00;7x\r\n";
    let schema = infer(sample, b';').unwrap();
    let types: Vec<String> = schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
    assert_eq!(types, ["id Int64", "score Float64", "ok Boolean", "at Timestamp(µs, \"UTC\")", "word Utf8"]);
}

#[test]
fn a_delimiter_is_an_option() {
    let mut refused = Vec::new();
    let block = Block::from_records(["a\t7\t"]);
    let rows = format(&[("delimiter", "tab")]).decoder(&[1]).decode(&block, &mut refused).unwrap();
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().value(0), 7, "{refused:?}");
    assert!(CsvFormat::from_options(&Options::new("s", [("delimiter", "ab")]), None).is_err());
}
