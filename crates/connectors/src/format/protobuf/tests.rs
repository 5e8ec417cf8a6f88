//! Against prost's messages, which know their schema at run time: what these write ours reads.

#![expect(clippy::cast_possible_truncation, reason = "drawn numbers, of which any part will do")]

mod write;

use super::*;
use crate::{
    format::registry::server::Server,
    mutations::Mutations,
    tries::{first_seed, landed, tries},
};
use arrow_json::writer::{LineDelimited, WriterBuilder};
use prost_reflect::{DynamicMessage, SerializeOptions, prost::Message};
use serde_json::{Value, json};

const SHOP: &str = r#"
syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";

enum Suit { CLUBS = 0; HEARTS = 1; }

message Order {
  message Line { string item = 1; uint32 count = 2; optional double price = 3; }
  bool ok = 1;
  int32 small = 2;
  int64 big = 3;
  uint64 huge = 4;
  sint32 zig = 5;
  sint64 zag = 6;
  fixed32 f32 = 7;
  sfixed64 s64 = 8;
  float single = 9;
  double twice = 10;
  string word = 11;
  Suit suit = 12;
  optional int32 maybe = 13;
  oneof way { string post = 14; int64 store = 15; Line special = 16; }
  repeated Line lines = 17;
  repeated sint64 marks = 18;
  repeated string tags = 19;
  map<string, int32> counts = 20;
  map<int32, Line> stock = 21;
  Line first = 22;
  google.protobuf.Int64Value wrapped = 23;
  repeated Suit suits = 24;
  fixed64 f64 = 25;
  sfixed32 s32 = 26;
}

message Beside {
  bytes raw = 1;
  google.protobuf.Timestamp at = 2;
  google.protobuf.Duration took = 3;
  google.protobuf.Struct any = 4;
  Tree tree = 5;
  repeated google.protobuf.Timestamp times = 6;
}
message Tree { string name = 1; repeated Tree below = 2; }
"#;

fn format(options: &[(&str, &str)], columns: Option<SchemaRef>) -> Result<ProtobufFormat> {
    let options = Options::new("stream \"s\"", options.iter().copied());
    let format = ProtobufFormat::from_options(&options, columns)?;
    options.finish()?;
    Ok(format)
}

fn shop(message: &str) -> ProtobufFormat {
    format(&[("schema", SHOP), ("message", message)], None).unwrap_or_else(|e| panic!("{}", e.chain()))
}

fn descriptor(name: &str) -> MessageDescriptor {
    let options = Options::new("s", [("schema", SHOP)]);
    schema::find(&schema::from_options(&options).unwrap().unwrap().pool, name).unwrap()
}

/// The bytes of a message that is written as JSON.
fn message(name: &str, value: &Value) -> Vec<u8> {
    DynamicMessage::deserialize(descriptor(name), value.clone()).unwrap().encode_to_vec()
}

fn lines(rows: &RecordBatch) -> Vec<Value> {
    let mut bytes = Vec::new();
    let mut writer = WriterBuilder::new().build::<_, LineDelimited>(&mut bytes);
    writer.write(rows).unwrap();
    writer.finish().unwrap();
    drop(writer);
    String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn decoded<R: AsRef<[u8]>>(format: &ProtobufFormat, projection: &[usize], records: &[R]) -> (Vec<Value>, Vec<Refusal>) {
    let mut refused = Vec::new();
    let rows = format.decoder(projection).decode(&Block::from_records(records), &mut refused).unwrap();
    (lines(&rows), refused)
}

fn all(format: &ProtobufFormat) -> Vec<usize> {
    (0..format.schema().fields().len()).collect()
}

fn place(format: &ProtobufFormat, name: &str) -> usize {
    format.schema().index_of(name).unwrap()
}

#[test]
fn a_message_without_a_byte_has_its_defaults() {
    let format = shop("shop.Order");
    let (rows, refused) = decoded(&format, &all(&format), &[b""]);
    assert_eq!(refused, []);
    let wanted = json!({
        "ok": false, "small": 0, "big": 0, "huge": 0, "zig": 0, "zag": 0, "f32": 0, "s64": 0, "single": 0.0, "twice": 0.0,
        "word": "", "suit": "CLUBS", "lines": [], "marks": [], "tags": [], "counts": {}, "stock": {}, "suits": [],
        "f64": 0, "s32": 0
    });
    assert_eq!(rows, [wanted], "what may be told from an unset field is null");
}

#[test]
fn well_known_types_and_trees_become_columns() {
    let format = shop("shop.Beside");
    let value = json!({
        "raw": "AP8=", "at": "2026-05-25T14:00:00.250001Z", "took": "1.5s", "any": {"a": [1.0, null]},
        "tree": {"name": "oak", "below": [{"name": "twig"}]}, "times": ["1969-12-31T23:59:59Z"]
    });
    let (rows, refused) = decoded(&format, &all(&format), &[message("shop.Beside", &value), Vec::new()]);
    assert_eq!(refused, []);
    let tree = json!({"name": "oak", "below": ["{\"name\":\"twig\"}"]});
    let wanted = json!({
        "raw": "00ff", "at": "2026-05-25T14:00:00.250001Z", "took": 1_500_000, "any": "{\"a\":[1.0,null]}",
        "tree": tree, "times": ["1969-12-31T23:59:59Z"]
    });
    assert_eq!(rows, [wanted, json!({"raw": "", "times": []})]);
}

#[test]
fn of_a_oneof_the_last_counts_and_parts_of_a_message_are_one() {
    let format = shop("shop.Order");
    let two = |a: Value, b: Value| [message("shop.Order", &a), message("shop.Order", &b)].concat();
    let records = [
        two(json!({"post": "x"}), json!({"store": "7"})),
        two(json!({"store": "7"}), json!({"special": {"count": 2}})),
        two(json!({"special": {"count": 2}}), json!({"special": {"item": "a"}})),
        two(json!({"special": {"count": 2}}), json!({"post": ""})),
        two(json!({"first": {"item": "a", "count": 1}}), json!({"first": {"count": 3}})),
    ];
    let columns = ["post", "store", "special", "first"].map(|name| place(&format, name));
    let (rows, refused) = decoded(&format, &columns, &records);
    assert_eq!(refused, []);
    let wanted = [
        json!({"store": 7}),
        json!({"special": {"item": "", "count": 2}}),
        json!({"special": {"item": "a", "count": 2}}),
        json!({"post": ""}),
        json!({"first": {"item": "a", "count": 3}}),
    ];
    assert_eq!(rows, wanted);
    // Also where the field that unsets another is not asked for.
    assert_eq!(decoded(&format, &columns[..1], &records[..1]).0, [json!({})]);
}

#[test]
fn a_bad_message_is_refused_and_the_next_is_read() {
    let format = shop("shop.Order");
    let good = message("shop.Order", &json!({"small": 5, "tags": ["a"]}));
    let bad_text = [&good[..], &[0x5a, 1, 0xff]].concat();
    let bad_kind = [&good[..], &[0x15, 0, 0, 0, 0]].concat();
    let unknown = [&good[..], &[0xf8, 0x3f, 1, 0x0b, 0x10, 1, 0x0c]].concat();
    let records = [&good[..], &good[..good.len() - 1], &bad_text, &bad_kind, &unknown];
    let columns = ["small", "word", "tags"].map(|name| place(&format, name));
    let (rows, refused) = decoded(&format, &columns, &records);
    let row = json!({"small": 5, "word": "", "tags": ["a"]});
    assert_eq!(rows, [row.clone(), row], "fields that nobody knows are passed over");
    assert_eq!(refused.iter().map(|refusal| refusal.row).collect::<Vec<_>>(), [1, 2, 3]);
    for (refusal, says) in refused.iter().zip([
        "the message ends too early",
        "field \"word\": a string that is no UTF-8",
        "field \"small\": its bytes are not of the kind",
    ]) {
        assert!(refusal.reason.contains(says), "{refusal:?}");
    }
}

#[test]
fn declared_columns_take_what_fits_and_say_what_does_not() {
    use arrow_schema::{DataType as T, Field};
    let declared = |name: &str, ty: T| Some(Arc::new(Schema::new(vec![Field::new(name, ty, true)])));
    let with = |columns| format(&[("schema", SHOP), ("message", "shop.Order")], columns);
    let small = with(declared("small", T::Int8)).unwrap();
    let records = [message("shop.Order", &json!({"small": 127})), message("shop.Order", &json!({"small": 128}))];
    let (rows, refused) = decoded(&small, &[0], &records);
    assert_eq!(rows, [json!({"small": 127})]);
    assert!(refused[0].reason.contains("between -128 and 127, found 128"), "{refused:?}");
    let text = with(declared("first", T::Utf8)).unwrap();
    let first = message("shop.Order", &json!({"first": {"item": "a"}}));
    assert_eq!(decoded(&text, &[0], &[first]).0, [json!({"first": "{\"item\":\"a\"}"})]);
    let huge = with(declared("huge", T::Int64)).unwrap();
    let records = [message("shop.Order", &json!({"huge": "18446744073709551615"}))];
    assert!(decoded(&huge, &[0], &records).1[0].reason.contains("18446744073709551615 is larger"));
    for (columns, says) in [
        (declared("smal", T::Int64), "did you mean `small`?"),
        (declared("word", T::Int64), "is no Int64"),
        (declared("tags", T::Utf8), "is no Utf8"),
    ] {
        let error = with(columns).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn options_that_make_no_sense_are_told() {
    for (options, says) in [
        (&[][..], "needs a schema"),
        (&[("schema", SHOP)], "option `message`"),
        (&[("schema", SHOP), ("message", "shop.Oder")], "did you mean `shop.Order`?"),
        (&[("schema", "syntax = \"proto3\"; message A { B b = 1; }"), ("message", "A")], "option `schema`"),
        (&[("descriptor", "/no/such.desc"), ("message", "A")], "can't read /no/such.desc"),
        (&[("schema_file", "/no/such.proto"), ("message", "A")], "option `schema_file`"),
        (&[("schema", SHOP), ("descriptor", "x"), ("message", "A")], "give one of"),
        (&[("schema", SHOP), ("message", "shop.Order"), ("connector", "tail")], "brings lines"),
        (&[("registry", "http://127.0.0.1:9"), ("schema", SHOP)], "leave out `descriptor`"),
    ] {
        let error = format(options, None).unwrap_err().to_string();
        assert!(error.contains(says), "{options:?}: {error}");
    }
}

#[test]
fn a_file_of_descriptors_and_files_with_imports_do_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("a.proto"), "syntax = \"proto3\"; import \"b.proto\"; message A { B b = 1; }").unwrap();
    std::fs::write(path("b.proto"), "syntax = \"proto3\"; message B { int32 n = 1; }").unwrap();
    let file = format(&[("schema_file", &path("a.proto")), ("message", "A")], None).unwrap();
    let given = schema::from_options(&Options::new("s", [("schema_file", path("a.proto"))])).unwrap().unwrap();
    std::fs::write(path("a.desc"), given.pool.encode_to_vec()).unwrap();
    let set = format(&[("descriptor", &path("a.desc")), ("message", ".A")], None).unwrap();
    for format in [file, set] {
        assert_eq!(decoded(&format, &[0], &[[0x0a, 2, 0x08, 7]]).0, [json!({"b": {"n": 7}})]);
    }
}

#[test]
fn records_of_a_registry_name_their_message() {
    let server = Server::start();
    let old = "syntax = \"proto3\"; package p; message M { message In { int64 x = 1; } int32 n = 1; }";
    let new = "syntax = \"proto3\"; package p; import \"c.proto\"; message M { message In { int64 x = 1; } int64 n = 1; C c = 2; }";
    let common =
        server.add("common", "PROTOBUF", "syntax = \"proto3\"; package p; message C { string s = 1; }", Value::Null);
    let first = server.add("t-value", "PROTOBUF", old, Value::Null);
    let references = json!([{"name": "c.proto", "subject": "common", "version": 1}]);
    let second = server.add("t-value", "PROTOBUF", new, references);
    let registry = [("registry", server.url.as_str()), ("topic", "t")];
    let format = format(&registry, None).unwrap_or_else(|e| panic!("{}", e.chain()));
    let framed = |id: u32, indexes: &[u8], value: &[u8]| {
        let mut record = Vec::new();
        registry::frame(id, &mut record);
        [&record[..], indexes, value].concat()
    };
    let records = [
        framed(first, &[0], &[0x08, 7]),
        framed(second, &[2, 0], &[0x08, 8, 0x12, 3, 0x0a, 1, b'x']),
        // The message within the first: not the one of the stream.
        framed(second, &[4, 0, 0], &[0x08, 9]),
        framed(second, &[2, 14], &[]),
        framed(second, &[0x80], &[]),
        framed(common + 40, &[0], &[]),
    ];
    let (rows, refused) = decoded(&format, &[0, 1], &records);
    assert_eq!(rows, [json!({"n": 7}), json!({"n": 8, "c": {"s": "x"}})]);
    let told: Vec<(usize, &str)> = refused.iter().map(|refusal| (refusal.row, refusal.reason.as_str())).collect();
    for ((_, reason), says) in
        told.iter().zip(["a message p.M.In, not p.M", "no message at [7]", "what names", "has no schema"])
    {
        assert!(reason.contains(says), "{told:?}");
    }
    assert_eq!(told.iter().map(|told| told.0).collect::<Vec<_>>(), [2, 3, 4, 5]);
}

/// A message of the shop, as JSON.
fn drawn(random: &mut Mutations) -> Value {
    let mut order = json!({});
    let bits = random.next();
    let line = |n: u64| json!({"item": format!("i{n}"), "count": n % 7, "price": (n % 5) as f64});
    for _ in 0..random.below(14) {
        let n = random.next() >> random.below(64);
        let (name, value) = match random.below(24) {
            0 => ("ok", json!(true)),
            1 => ("small", json!(n as i32)),
            2 => ("big", json!((n.cast_signed()).to_string())),
            3 => ("huge", json!(n.to_string())),
            4 => ("zig", json!(n as i32)),
            5 => ("zag", json!(n.cast_signed().to_string())),
            6 => ("f32", json!(n as u32)),
            7 => ("s64", json!(n.cast_signed().to_string())),
            8 => ("single", json!((n as i16) as f32 / 4.0)),
            9 => ("twice", json!((n as i32) as f64 / 4.0)),
            10 => ("word", json!(format!("潮{n}\n"))),
            11 => ("suit", json!("HEARTS")),
            12 => ("maybe", json!(n as i32 & 1)),
            13 => ("post", json!("p")),
            14 => ("store", json!((n % 3).to_string())),
            15 => ("special", line(n)),
            16 => ("lines", json!([line(n), {}])),
            17 => ("marks", json!([n.cast_signed().to_string(), "-1", "0"])),
            18 => ("tags", json!(["", "t"])),
            19 => ("counts", json!({"a": 1, "": n as i32})),
            20 => ("stock", json!({"7": line(n), "-1": {}})),
            21 => ("first", json!({"count": n % 100})),
            22 => ("wrapped", json!((n % 2).to_string())),
            _ => ("suits", json!(["CLUBS", "HEARTS"])),
        };
        // One of a oneof alone, as JSON has no order.
        if ["post", "store", "special"].contains(&name) {
            let others = order.as_object_mut().unwrap();
            ["post", "store", "special"].iter().for_each(|other| drop(others.remove(*other)));
        }
        order[name] = value;
    }
    if bits & 1 == 0 { order } else { json!({"s32": bits as i32, "f64": bits.to_string()}) }
}

/// One or two messages behind each other, which are one message: what the other implementation makes of them is what
/// ours does.
#[test]
fn messages_are_read_as_the_other_implementation_reads_them() {
    let format = shop("shop.Order");
    let of = descriptor("shop.Order");
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false).skip_default_fields(false);
    let seeds = tries(400);
    for seed in first_seed()..first_seed() + seeds {
        let mut random = Mutations::new(seed);
        let mut bytes = message("shop.Order", &drawn(&mut random));
        if random.below(2) == 0 {
            bytes.extend(message("shop.Order", &drawn(&mut random)));
        }
        let theirs = DynamicMessage::decode(of.clone(), &bytes[..]).unwrap();
        let theirs = theirs.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
        let (ours, refused) = decoded(&format, &all(&format), &[&bytes]);
        assert_eq!(refused, [], "seed {seed}");
        assert_eq!(same(&ours[0]), same(&theirs), "seed {seed}");
    }
    landed(format_args!("{seeds} messages"));
}

/// Without nulls; numbers as floats, which both write in their own way.
fn same(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), same(value)))
            .collect(),
        Value::Array(items) => items.iter().map(same).collect(),
        Value::Number(number) => json!(number.as_f64()),
        other => other.clone(),
    }
}

#[test]
fn changed_bytes_are_refused_or_read_and_never_more() {
    let (order, beside) = (shop("shop.Order"), shop("shop.Beside"));
    let good = message(
        "shop.Order",
        &json!({"small": -1, "word": "w", "lines": [{"item": "a"}], "marks": ["1", "2"], "counts": {"a": 1}, "wrapped": "5",
                "stock": {"1": {"price": 0.5}}, "special": {"count": 1}}),
    );
    let other = message(
        "shop.Beside",
        &json!({"raw": "AP8=", "at": "2026-05-25T14:00:00.25Z", "took": "1.5s", "any": {"a": [1, null]},
                "tree": {"name": "oak", "below": [{"name": "twig", "below": [{}]}]}}),
    );
    let mut taken = 0;
    for seed in first_seed()..first_seed() + tries(600) {
        let mut mutations = Mutations::new(seed);
        let what = format!("protobuf, seed {seed}");
        taken += u64::from(crate::fuzz::hold(&order, &mutations.of(&[&good]), &good, &what));
        taken += u64::from(crate::fuzz::hold(&beside, &mutations.of(&[&other]), &other, &what));
    }
    landed(format_args!("{} messages, taken: {taken}", 2 * tries(600)));
}
