//! Against the Avro project's own crate: what one writes the other reads.

#![expect(clippy::cast_possible_truncation, reason = "drawn numbers, of which any part will do")]

use super::{write::Writer as Rows, *};
use crate::{
    format::registry::server::Server,
    mutations::Mutations,
    tries::{first_seed, landed, tries},
};
use apache_avro::types::Value;
use arrow_json::writer::{LineDelimited, WriterBuilder};
use std::collections::BTreeMap;

fn theirs(text: &str) -> apache_avro::Schema {
    apache_avro::Schema::parse_str(text).unwrap()
}

#[expect(deprecated, reason = "the shorter way")]
fn written(schema: &str, value: Value) -> Vec<u8> {
    apache_avro::to_avro_datum(&theirs(schema), value).unwrap()
}

#[expect(deprecated, reason = "the shorter way")]
fn read(writer: &str, reader: Option<&str>, bytes: &[u8]) -> Value {
    let reader = reader.map(theirs);
    apache_avro::from_avro_datum(&theirs(writer), &mut &bytes[..], reader.as_ref()).unwrap()
}

fn format(options: &[(&str, &str)], columns: Option<SchemaRef>) -> Result<AvroFormat> {
    let options = Options::new("stream \"s\"", options.iter().copied());
    let format = AvroFormat::from_options(&options, columns)?;
    options.finish()?;
    Ok(format)
}

fn of(schema: &str) -> AvroFormat {
    format(&[("schema", schema)], None).unwrap()
}

/// Rows as lines of JSON, and what was refused.
fn decoded<R: AsRef<[u8]>>(format: &AvroFormat, projection: &[usize], records: &[R]) -> (Vec<String>, Vec<Refusal>) {
    let mut refused = Vec::new();
    let rows = format.decoder(projection).decode(&Block::from_records(records), &mut refused).unwrap();
    (lines(&rows), refused)
}

fn lines(rows: &RecordBatch) -> Vec<String> {
    let mut bytes = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut bytes);
    writer.write(rows).unwrap();
    writer.finish().unwrap();
    drop(writer);
    String::from_utf8(bytes).unwrap().lines().map(str::to_string).collect()
}

fn all(format: &AvroFormat) -> Vec<usize> {
    (0..format.schema().fields().len()).collect()
}

fn record(fields: Vec<(&str, Value)>) -> Value {
    Value::Record(fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

const EVERYTHING: &str = r#"{"type":"record","name":"shop.Order","fields":[
    {"name":"ok","type":"boolean"},
    {"name":"small","type":"int"},
    {"name":"big","type":"long"},
    {"name":"single","type":"float"},
    {"name":"twice","type":"double"},
    {"name":"word","type":"string"},
    {"name":"raw","type":"bytes"},
    {"name":"mark","type":{"type":"fixed","name":"Mark","size":2}},
    {"name":"suit","type":{"type":"enum","name":"Suit","symbols":["CLUBS","HEARTS"]}},
    {"name":"maybe","type":["null","long"]},
    {"name":"other","type":["string","null"]},
    {"name":"either","type":["null","string","long",{"type":"array","items":"int"}]},
    {"name":"day","type":{"type":"int","logicalType":"date"}},
    {"name":"clock","type":{"type":"int","logicalType":"time-millis"}},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"then","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"local","type":{"type":"long","logicalType":"local-timestamp-micros"}},
    {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},
    {"name":"tags","type":{"type":"array","items":"string"}},
    {"name":"counts","type":{"type":"map","values":"long"}},
    {"name":"buyer","type":{"type":"record","name":"Buyer","fields":[
        {"name":"name","type":"string"},{"name":"boss","type":["null","Buyer"]}]}}
]}"#;

fn everything() -> Value {
    let buyer = |name: &str, boss: Value| record(vec![("name", Value::String(name.into())), ("boss", boss)]);
    record(vec![
        ("ok", Value::Boolean(true)),
        ("small", Value::Int(-7)),
        ("big", Value::Long(i64::MIN)),
        ("single", Value::Float(1.5)),
        ("twice", Value::Double(-0.25)),
        ("word", Value::String("潮 \"汐\"".into())),
        ("raw", Value::Bytes(vec![0, 255])),
        ("mark", Value::Fixed(2, vec![1, 2])),
        ("suit", Value::Enum(1, "HEARTS".into())),
        ("maybe", Value::Union(0, Box::new(Value::Null))),
        ("other", Value::Union(0, Box::new(Value::String("o".into())))),
        ("either", Value::Union(3, Box::new(Value::Array(vec![Value::Int(1), Value::Int(2)])))),
        ("day", Value::Date(20_000)),
        ("clock", Value::TimeMillis(3_723_004)),
        ("at", Value::TimestampMillis(1_700_000_000_123)),
        ("then", Value::TimestampMicros(-1)),
        ("local", Value::LocalTimestampMicros(0)),
        ("price", Value::Decimal(apache_avro::Decimal::from(vec![0xff, 0x85]))),
        ("tags", Value::Array(vec![Value::String("a".into()), Value::String(String::new())])),
        ("counts", Value::Map([("n".to_string(), Value::Long(5))].into())),
        ("buyer", buyer("Ada", Value::Union(1, Box::new(buyer("Bob", Value::Union(0, Box::new(Value::Null))))))),
    ])
}

const SHOWN: &str = "{\"ok\":true,\"small\":-7,\"big\":-9223372036854775808,\"single\":1.5,\"twice\":-0.25,\"word\":\"潮 \\\"汐\\\"\",\"raw\":\"00ff\",\"mark\":\"0102\",\"suit\":\"HEARTS\",\"maybe\":null,\"other\":\"o\",\"either\":\"[1,2]\",\"day\":\"2024-10-04\",\"clock\":\"01:02:03.004\",\"at\":\"2023-11-14T22:13:20.123Z\",\"then\":\"1969-12-31T23:59:59.999999Z\",\"local\":\"1970-01-01T00:00:00\",\"price\":-1.23,\"tags\":[\"a\",\"\"],\"counts\":{\"n\":5},\"buyer\":{\"name\":\"Ada\",\"boss\":\"{\\\"name\\\":\\\"Bob\\\",\\\"boss\\\":null}\"}}";

#[test]
fn a_record_of_every_type_becomes_columns() {
    let format = of(EVERYTHING);
    let bytes = written(EVERYTHING, everything());
    let (rows, refused) = decoded(&format, &all(&format), &[&bytes]);
    assert_eq!((rows, refused), (vec![SHOWN.to_string()], vec![]));
}

#[test]
fn only_the_columns_that_are_asked_for_are_made() {
    let format = of(EVERYTHING);
    let bytes = written(EVERYTHING, everything());
    assert_eq!(decoded(&format, &[19, 1], &[&bytes]).0, ["{\"counts\":{\"n\":5},\"small\":-7}"]);
    let mut refused = Vec::new();
    let rows = format.decoder(&[]).decode(&Block::from_records([&bytes, &bytes]), &mut refused).unwrap();
    assert_eq!((rows.num_rows(), rows.num_columns(), refused.len()), (2, 0, 0));
}

#[test]
fn a_bad_record_is_refused_and_the_next_is_read() {
    let format = of(EVERYTHING);
    let good = written(EVERYTHING, everything());
    let (mut long, mut suit) = (good.clone(), good.clone());
    long.push(0);
    let at = suit.windows(3).position(|three| three == [1, 2, 2]).unwrap() + 2;
    suit[at] = 8;
    let records = [&good[..], b"", &long, &good[..good.len() - 1], &suit, &good];
    let (rows, refused) = decoded(&format, &all(&format), &records);
    assert_eq!(rows, [SHOWN, SHOWN]);
    assert_eq!(refused.iter().map(|refusal| refusal.row).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for (refusal, says) in refused.iter().zip([
        "field \"ok\": the record ends too early",
        "1 bytes are left behind the record",
        "the record ends too early",
        "field \"suit\": a symbol or branch that the schema does not have",
    ]) {
        assert!(refusal.reason.contains(says), "{refusal:?}");
    }
}

#[test]
fn a_schema_that_is_no_record_is_one_column() {
    let format = of("[\"null\",\"long\"]");
    assert_eq!(format.schema().field(0).name(), "value");
    let records = [vec![0], vec![2, 14], vec![4]];
    let (rows, refused) = decoded(&format, &[0], &records);
    assert_eq!((rows, refused.len()), (vec!["{\"value\":null}".to_string(), "{\"value\":7}".to_string()], 1));
}

fn declared(fields: &[(&str, arrow_schema::DataType, bool)]) -> SchemaRef {
    let fields = fields.iter().map(|(name, ty, null)| arrow_schema::Field::new(*name, ty.clone(), *null));
    Arc::new(arrow_schema::Schema::new(fields.collect::<Vec<_>>()))
}

#[test]
fn declared_columns_take_what_fits_and_say_what_does_not() {
    use arrow_schema::{DataType as T, TimeUnit};
    let schema = r#"{"type":"record","name":"R","fields":[{"name":"n","type":"long"},{"name":"deep","type":{"type":"array","items":"int"}}]}"#;
    let columns = declared(&[("deep", T::Utf8, true), ("n", T::Int8, true)]);
    let narrow = format(&[("schema", schema)], Some(columns)).unwrap();
    let value = |n| written(schema, record(vec![("n", Value::Long(n)), ("deep", Value::Array(vec![Value::Int(1)]))]));
    let (rows, refused) = decoded(&narrow, &[0, 1], &[value(127), value(128)]);
    assert_eq!(rows, ["{\"deep\":\"[1]\",\"n\":127}"]);
    assert!(refused[0].reason.contains("between -128 and 127, found 128"), "{refused:?}");

    let time = declared(&[("n", T::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false)]);
    let error = format(&[("schema", schema)], Some(Arc::clone(&time))).unwrap_err().to_string();
    assert!(error.contains("set option `timestamp`"), "{error}");
    let millis = format(&[("schema", schema), ("timestamp", "ms")], Some(time)).unwrap();
    assert_eq!(decoded(&millis, &[0], &[value(1500)]).0, ["{\"n\":\"1970-01-01T00:00:01.500Z\"}"]);

    for (columns, says) in [
        (declared(&[("m", T::Int64, true)]), "no field `m`"),
        (declared(&[("deep", T::Int64, true)]), "the schema has array, which is no Int64"),
        (declared(&[("n", T::Boolean, true)]), "the schema has long, which is no Boolean"),
    ] {
        let error = format(&[("schema", schema)], Some(columns)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

const OLD: &str = r#"{"type":"record","name":"V1","fields":[
    {"name":"gone","type":"string"},{"name":"n","type":"int"},{"name":"was","type":"string"},
    {"name":"suit","type":{"type":"enum","name":"E","symbols":["A","B"]}},{"name":"f","type":"float"}]}"#;
const NEW: &str = r#"{"type":"record","name":"V1","fields":[
    {"name":"f","type":"double"},
    {"name":"suit","type":{"type":"enum","name":"E","symbols":["A","Z"],"default":"Z"}},
    {"name":"is","type":["null","string"],"aliases":["was"],"default":null},
    {"name":"n","type":["null","double"]},
    {"name":"list","type":{"type":"array","items":"int"},"default":[1,2]},
    {"name":"sub","type":{"type":"record","name":"S","fields":[{"name":"x","type":"int","default":4}]},"default":{}},
    {"name":"none","type":["null","string"],"default":null}]}"#;

#[test]
fn records_of_an_older_schema_are_read_as_the_newer_one() {
    let value = |suit: (u32, &str)| {
        record(vec![
            ("gone", Value::String("x".into())),
            ("n", Value::Int(3)),
            ("was", Value::String("w".into())),
            ("suit", Value::Enum(suit.0, suit.1.into())),
            ("f", Value::Float(0.5)),
        ])
    };
    let bytes = [written(OLD, value((0, "A"))), written(OLD, value((1, "B")))];
    let format = format(&[("schema", NEW), ("writer_schema", OLD)], None).unwrap();
    let (rows, refused) = decoded(&format, &all(&format), &bytes);
    assert_eq!(refused, []);
    let rest = "\"is\":\"w\",\"n\":3.0,\"list\":[1,2],\"sub\":{\"x\":4},\"none\":null}";
    assert_eq!(rows, [format!("{{\"f\":0.5,\"suit\":\"A\",{rest}"), format!("{{\"f\":0.5,\"suit\":\"Z\",{rest}")]);
    // The other implementation says the same, but for aliases, which it does not follow.
    let Value::Record(fields) = read(OLD, Some(NEW), &bytes[1]) else { panic!("a record") };
    let fields: BTreeMap<String, Value> = fields.into_iter().collect();
    assert_eq!(fields["suit"], Value::Enum(1, "Z".into()));
    assert_eq!(fields["list"], Value::Array(vec![Value::Int(1), Value::Int(2)]));
}

#[test]
fn a_union_that_shrank_refuses_only_what_does_not_fit() {
    let old = r#"{"type":"record","name":"R","fields":[{"name":"v","type":["null","string","long"]}]}"#;
    let new = r#"{"type":"record","name":"R","fields":[{"name":"v","type":["null","long"]}]}"#;
    let format = format(&[("schema", new), ("writer_schema", old)], None).unwrap();
    let records = [vec![0], vec![2, 2, b'x'], vec![4, 10]];
    let (rows, refused) = decoded(&format, &[0], &records);
    assert_eq!(rows, ["{\"v\":null}", "{\"v\":5}"]);
    assert!(refused[0].row == 1 && refused[0].reason.contains("string, which is no Int64"), "{refused:?}");
}

#[test]
fn options_that_make_no_sense_are_told() {
    for (options, says) in [
        (&[][..], "needs a schema"),
        (&[("schema", "{")], "option `schema`: no JSON"),
        (&[("schema", "\"int\""), ("schema_file", "x")], "not both"),
        (&[("schema_file", "/no/such.avsc")], "can't read /no/such.avsc"),
        (&[("schema", "\"int\""), ("subject", "x")], "goes with `registry`"),
        (&[("schema", "\"int\""), ("connector", "files")], "brings lines"),
        (&[("registry", "http://127.0.0.1:9"), ("writer_schema", "\"int\"")], "leave out `writer_schema`"),
        (&[("registry", "http://127.0.0.1:9")], "option `subject`"),
        (&[("schema", EVERYTHING), ("writer_schema", "\"int\"")], "one column"),
    ] {
        let error = format(options, None).unwrap_err().to_string();
        assert!(error.contains(says), "{options:?}: {error}");
    }
}

/// A framed record.
fn framed(id: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    registry::frame(id, &mut bytes);
    bytes.extend_from_slice(value);
    bytes
}

#[test]
fn records_of_a_registry_are_read_by_the_schema_that_each_names() {
    let server = Server::start();
    let old = server.add("t-value", "AVRO", OLD, serde_json::Value::Null);
    let new = server.add("t-value", "AVRO", NEW, serde_json::Value::Null);
    let wrong = server.add("x", "PROTOBUF", "syntax", serde_json::Value::Null);
    let format = format(&[("registry", &server.url), ("topic", "t")], None).unwrap_or_else(|e| panic!("{}", e.chain()));
    assert_eq!(format.schema().fields().len(), 7, "the columns are the newest schema's");
    let was = record(vec![
        ("gone", Value::String("x".into())),
        ("n", Value::Int(3)),
        ("was", Value::String("w".into())),
        ("suit", Value::Enum(1, "B".into())),
        ("f", Value::Float(0.5)),
    ]);
    let is = record(vec![
        ("f", Value::Double(1.0)),
        ("suit", Value::Enum(0, "A".into())),
        ("is", Value::Union(0, Box::new(Value::Null))),
        ("n", Value::Union(1, Box::new(Value::Double(2.0)))),
        ("list", Value::Array(vec![])),
        ("sub", record(vec![("x", Value::Int(9))])),
        ("none", Value::Union(0, Box::new(Value::Null))),
    ]);
    let records = [
        framed(old, &written(OLD, was.clone())),
        framed(99, b"?"),
        written(OLD, was.clone()),
        framed(new, &written(NEW, is)),
        framed(wrong, b"?"),
        framed(old, &written(OLD, was)),
    ];
    let (rows, refused) = decoded(&format, &[1, 0], &records);
    assert_eq!(rows, ["{\"suit\":\"Z\",\"f\":0.5}", "{\"suit\":\"A\",\"f\":1.0}", "{\"suit\":\"Z\",\"f\":0.5}"]);
    let told: Vec<(usize, &str)> = refused.iter().map(|refusal| (refusal.row, refusal.reason.as_str())).collect();
    assert!(matches!(told[..], [(1, _), (2, _), (4, _)]), "{told:?}");
    for ((_, reason), says) in told.iter().zip(["has no schema 99", "begin with 0", "PROTOBUF, not AVRO"]) {
        assert!(reason.contains(says), "{reason}");
    }
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|asked| asked.ends_with(&format!("/ids/{old}"))).count(), 1, "{asked:?}");
}

#[test]
fn nothing_is_lost_while_the_registry_is_away() {
    use crate::http::Link;
    use tidemill_core::{Clock, Duration, ManualClock, Timestamp};
    let server = Server::start();
    let schema = r#"{"type":"record","name":"R","fields":[{"name":"n","type":"long"}]}"#;
    let id = server.add("s", "AVRO", schema, serde_json::Value::Null);
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(0)));
    let link = Link { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Link::default() };
    let writer = Writer::Registry(Arc::new(SchemaRegistry::new(&server.url, None, link)));
    let columns = declared(&[("n", arrow_schema::DataType::Int64, true)]);
    let format = AvroFormat::new(None, writer, Some(columns), Unit::Iso).unwrap();
    assert_eq!(server.asked(), [""; 0], "declared columns need no answer at the start");

    let block = Block::from_records([framed(id, &[14]), framed(id + 1, &[14]), framed(id, &[16])]);
    let (mut decoder, mut refused) = (format.decoder(&[0]), Vec::new());
    server.answer(Some(503));
    let error = decoder.decode(&block, &mut refused).unwrap_err();
    assert!(error.is_retryable() && refused.is_empty(), "{}", error.chain());
    clock.advance(Duration::from_secs(1));
    server.answer(None);
    let rows = decoder.decode(&block, &mut refused).unwrap();
    assert_eq!(lines(&rows), ["{\"n\":7}", "{\"n\":8}"], "each once, by the same decoder");
    assert_eq!(refused.len(), 1);
}

/// A value of a schema whose columns are written as they were read.
fn drawn(random: &mut Mutations, depth: usize) -> (serde_json::Value, Value) {
    let schema = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let bits = random.next();
    let kinds = if depth == 0 { 9 } else { 13 };
    match random.below(kinds) {
        0 => (schema("\"boolean\""), Value::Boolean(bits & 1 == 1)),
        1 => (schema("\"int\""), Value::Int(bits as i32)),
        2 => (schema("\"long\""), Value::Long(bits.cast_signed() >> random.below(64))),
        3 => (schema("\"float\""), Value::Float((bits as i32) as f32 / 8.0)),
        4 => (schema("\"double\""), Value::Double((bits as i32).into())),
        5 => (schema("\"string\""), Value::String(format!("t{}\"\n潮", bits % 1000))),
        6 => (schema("\"bytes\""), Value::Bytes(bits.to_le_bytes()[..random.below(9)].to_vec())),
        7 => (schema(r#"{"type":"int","logicalType":"date"}"#), Value::Date((bits % 100_000) as i32)),
        8 => {
            let ty = schema(r#"{"type":"long","logicalType":"timestamp-micros"}"#);
            (ty, Value::TimestampMicros((bits >> 12).cast_signed()))
        }
        9 => {
            let (ty, value) = drawn(random, 0);
            let union = serde_json::json!(["null", ty]);
            let none = bits & 1 == 0;
            (union, if none { Value::Union(0, Box::new(Value::Null)) } else { Value::Union(1, Box::new(value)) })
        }
        10 => {
            let (ty, value) = drawn(random, 0);
            let items = (0..random.below(4)).map(|_| value.clone()).collect();
            (serde_json::json!({"type": "array", "items": ty}), Value::Array(items))
        }
        11 => {
            let (ty, value) = drawn(random, 0);
            let entries = (0..random.below(3)).map(|n| (format!("k{n}"), value.clone())).collect();
            (serde_json::json!({"type": "map", "values": ty}), Value::Map(entries))
        }
        _ => drawn_record(random, depth - 1),
    }
}

fn drawn_record(random: &mut Mutations, depth: usize) -> (serde_json::Value, Value) {
    let name = format!("R{}", random.next());
    let (mut fields, mut values) = (Vec::new(), Vec::new());
    for n in 0..=random.below(6) {
        let (ty, value) = drawn(random, depth);
        fields.push(serde_json::json!({"name": format!("f{n}"), "type": ty}));
        values.push((format!("f{n}"), value));
    }
    (serde_json::json!({"type": "record", "name": name, "fields": fields}), Value::Record(values))
}

/// What they write we read, what we write of it they read, and it is the same.
#[test]
fn values_go_there_and_back() {
    let seeds = tries(300);
    for seed in first_seed()..first_seed() + seeds {
        let mut random = Mutations::new(seed);
        let (schema, value) = drawn_record(&mut random, 2);
        let text = schema.to_string();
        let format = of(&text);
        let mut refused = Vec::new();
        let block = Block::from_records([written(&text, value.clone())]);
        let rows = format.decoder(&all(&format)).decode(&block, &mut refused).unwrap();
        assert_eq!(refused, [], "seed {seed}: {text}");
        let writer = Rows::new("Back", &rows.schema()).unwrap();
        let mut bytes = Vec::new();
        Rows::rows(&rows).unwrap().put(0, &mut bytes);
        let back = read(writer.schema(), None, &bytes);
        assert_eq!(back, value, "seed {seed}: {text}");
        // A part of the columns is that part of the row.
        let wanted: Vec<usize> = all(&format).into_iter().filter(|_| random.below(2) == 0).rev().collect();
        let some = format.decoder(&wanted).decode(&block, &mut refused).unwrap();
        assert_eq!(some, rows.project(&wanted).unwrap(), "seed {seed}: {text}");
    }
    landed(format_args!("{seeds} schemas, a value each"));
}

#[test]
fn a_file_is_read_by_the_other_implementation() {
    let format = of(
        r#"{"type":"record","name":"R","fields":[{"name":"n","type":"long"},{"name":"w","type":["null","string"]}]}"#,
    );
    let records = (0..20_000_i64).map(|n| {
        let mut bytes = Vec::new();
        wire::put_long(n, &mut bytes);
        bytes.push(if n % 3 == 0 { 0 } else { 2 });
        if n % 3 != 0 {
            wire::put_bytes(b"word", &mut bytes);
        }
        bytes
    });
    let block = Block::from_records(records);
    let rows = format.decoder(&[0, 1]).decode(&block, &mut Vec::new()).unwrap();
    let mut container = container::Container::new("Row", &rows.schema()).unwrap();
    let mut file = Vec::new();
    container.rows(&rows.slice(0, 15_000), &mut file).unwrap();
    container.rows(&rows.slice(15_000, 5_000), &mut file).unwrap();
    container.flush(&mut file).unwrap();
    let read: Vec<Value> = apache_avro::Reader::new(&file[..]).unwrap().map(Result::unwrap).collect();
    assert_eq!(read.len(), 20_000);
    let word = Value::Union(1, Box::new(Value::String("word".into())));
    assert_eq!(read[19_999], record(vec![("n", Value::Long(19_999)), ("w", word)]));
}

#[test]
fn columns_that_avro_has_no_equal_for_are_told() {
    use arrow_schema::DataType as T;
    let error = |name: &str, ty: T| Rows::new("R", &declared(&[(name, ty, true)])).unwrap_err();
    assert!(error("count(*)", T::Int64).contains("AS total"));
    assert!(error("x", T::Interval(arrow_schema::IntervalUnit::DayTime)).contains("column `x`: Avro has no type"));
    assert!(Rows::new("a b", &declared(&[])).is_err());
    assert_eq!(write::name_of("orders-2.x"), "orders_2_x");
    assert_eq!(write::name_of("2x"), "_2x");
}

#[test]
fn changed_bytes_are_refused_or_read_and_never_more() {
    let format = of(EVERYTHING);
    let good = written(EVERYTHING, everything());
    let mut taken = 0;
    for seed in first_seed()..first_seed() + tries(600) {
        let changed = Mutations::new(seed).of(&[&good]);
        taken += u64::from(crate::fuzz::hold(&format, &changed, &good, &format!("avro, seed {seed}")));
    }
    landed(format_args!("{} records of Avro, taken: {taken}", tries(600)));
}
