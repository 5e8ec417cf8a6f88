//! Rows as messages with a schema: what is registered, what is framed, and what is refused before a batch is
//! committed.

use super::*;
use crate::format::{ProtobufFormat, registry::server::Server};
use arrow_array::{ArrayRef, Int64Array, StringArray};
use serde_json::{Value, json};
use tidemill_core::{Block, Format};

const SHOP: &str = "syntax = \"proto3\"; package shop; import \"google/protobuf/timestamp.proto\";
    message Total { optional string word = 1; sint64 n = 2; }
    message Outer { map<string, string> tags = 1; message First {} message Inner { message Total { int64 n = 1; } } }";

fn rows() -> RecordBatch {
    let columns: [(&str, ArrayRef); 2] = [
        ("n", Arc::new(Int64Array::from(vec![Some(1), None]))),
        ("word", Arc::new(StringArray::from(vec![Some("ebb"), None]))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

fn typed(options: &[(&str, &str)]) -> Result<Typed> {
    Typed::protobuf(&Options::new("sink \"s\"", [&[("topic", "out")], options].concat()))
}

fn records(typed: &Typed, rows: &RecordBatch) -> Vec<Vec<u8>> {
    typed.open(&rows.schema()).unwrap();
    typed.prove(rows).unwrap();
    let (bytes, spans) = typed.encode(rows).unwrap();
    spans.into_iter().map(|(from, to)| bytes[from..to].to_vec()).collect()
}

/// What a stream over the registry reads of records.
fn read(server: &Server, records: &[Vec<u8>]) -> RecordBatch {
    let options = Options::new("stream \"s\"", [("registry", server.url.as_str()), ("topic", "out")]);
    let columns = Some(rows().schema());
    let format = ProtobufFormat::from_options(&options, columns).unwrap();
    let mut refused = Vec::new();
    let rows = format.decoder(&[0, 1]).decode(&Block::from_records(records), &mut refused).unwrap();
    assert_eq!(refused, []);
    rows
}

#[test]
fn a_schema_that_is_given_is_registered_once_and_its_records_are_framed() {
    let server = Server::start();
    let plain = records(&typed(&[("schema", SHOP), ("message", "shop.Total")]).unwrap(), &rows());
    assert_eq!(plain, [b"\x0a\x03ebb\x10\x02".to_vec(), Vec::new()]);
    let registry = ("registry", server.url.as_str());
    let framed = records(&typed(&[("schema", SHOP), ("message", "shop.Total"), registry]).unwrap(), &rows());
    assert_eq!(server.asked(), ["POST /subjects/out-value/versions"]);
    assert_eq!(server.newest("out-value").unwrap(), SHOP);
    // The first message of its file needs one byte to be named.
    assert_eq!(framed, plain.iter().map(|plain| [b"\0\0\0\0\x01\0", &plain[..]].concat()).collect::<Vec<_>>());
    assert_eq!(read(&server, &framed).column(1), rows().column(1));
    // A message within another is named by its places: behind that of the entries of a map.
    let numbers = rows().project(&[0]).unwrap();
    let deep = [("schema", SHOP), ("message", "shop.Outer.Inner.Total"), registry, ("subject", "deep")];
    let deep = records(&typed(&deep).unwrap(), &numbers);
    assert_eq!(deep[0], b"\0\0\0\0\x01\x06\x02\x04\0\x08\x01");
    assert_eq!(read(&server, &deep).column(0), &(Arc::new(Int64Array::from(vec![1, 0])) as ArrayRef));
}

#[test]
fn the_newest_schema_of_a_registry_is_written_when_none_is_given() {
    let server = Server::start();
    let common = "syntax = \"proto3\"; package c; message C { int64 n = 1; }";
    server.add("common", "PROTOBUF", common, Value::Null);
    server.add("out-value", "PROTOBUF", "syntax = \"proto3\"; message Old { int64 n = 9; }", Value::Null);
    let text = "syntax = \"proto3\"; import \"c.proto\"; message Not { c.C c = 1; } message Is { int64 n = 1; string word = 2; }";
    let references = json!([{"name": "c.proto", "subject": "common", "version": 1}]);
    let id = server.add("out-value", "PROTOBUF", text, references);
    let registry = ("registry", server.url.as_str());
    let newest = typed(&[registry, ("message", "Is")]).unwrap();
    newest.check(&rows().schema()).unwrap();
    assert!(server.asked().is_empty(), "a check asks nobody");
    let records = records(&newest, &rows());
    assert_eq!(id, 3);
    assert_eq!(records, [&b"\0\0\0\0\x03\x02\x02\x08\x01\x12\x03ebb"[..], b"\0\0\0\0\x03\x02\x02"]);
    let asked = server.asked();
    assert_eq!(read(&server, &records).num_rows(), 2);
    assert_eq!(asked.iter().filter(|asked| asked.contains("out-value")).count(), 1, "{asked:?}");
    // The first message, if none is named; and only one of the schema itself.
    let error = |options: &[(&str, &str)]| typed(options).unwrap().open(&rows().schema()).unwrap_err().to_string();
    let first = error(&[registry]);
    assert!(first.contains("the message Not has no field `n`"), "{first}");
    let other = error(&[registry, ("message", "c.C")]);
    assert!(other.contains("`c.C` is a message of another schema"), "{other}");
    let none = error(&[registry, ("subject", "nobody")]);
    assert!(none.contains("no subject `nobody`") && none.contains("`schema_file`"), "{none}");
    server.add("avro", "AVRO", "\"int\"", Value::Null);
    let avro = error(&[registry, ("subject", "avro")]);
    assert!(avro.contains("AVRO, not PROTOBUF"), "{avro}");
    server.answer(Some(503));
    let away = typed(&[registry]).unwrap().open(&rows().schema()).unwrap_err();
    assert!(away.is_retryable(), "{}", away.chain());
}

#[test]
fn options_that_make_no_messages_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("a.proto"), "syntax = \"proto3\"; import \"b.proto\"; message A { B b = 1; }").unwrap();
    std::fs::write(path("b.proto"), "syntax = \"proto3\"; message B { int32 n = 1; }").unwrap();
    std::fs::write(path("x.desc"), b"").unwrap();
    let (a, desc) = (path("a.proto"), path("x.desc"));
    let registry = ("registry", "http://127.0.0.1:9");
    for (options, says) in [
        (&[][..], "format `protobuf` needs a schema"),
        (&[("schema", SHOP)], "option `message`"),
        (&[("schema", SHOP), ("message", "shop.Totl")], "did you mean `shop.Total`?"),
        (&[("schema", SHOP), ("message", "shop.Total"), ("subject", "x")], "goes with `registry`"),
        (&[("schema_file", &a), ("message", "A"), registry], "imports b.proto, which the registry has to have first"),
        (&[("schema", SHOP), ("message", "google.protobuf.Timestamp"), registry], "a message of the file itself"),
        (&[("descriptor", &desc), ("message", "A"), registry], "there is no message `A`"),
        (&[("schema", SHOP), ("message", "shop.Total"), ("timestamp", "h")], "option `timestamp`"),
    ] {
        let error = typed(options).unwrap_err().to_string();
        assert!(error.contains(says), "{options:?}: {error}");
    }
    let text = typed(&[("schema", SHOP), ("message", "shop.Total")]).unwrap();
    let counted = RecordBatch::try_from_iter([("count(*)", Arc::clone(rows().column(0)))]).unwrap();
    let error = text.check(&counted.schema()).unwrap_err().to_string();
    assert!(error.contains("sink \"s\": format `protobuf`") && error.contains("AS total"), "{error}");
    // A value that does not fit is found before its batch is committed.
    let narrow = "syntax = \"proto3\"; message N { uint32 n = 1; string word = 2; }";
    let narrow = typed(&[("schema", narrow), ("message", "N")]).unwrap();
    let below = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1, -1])) as ArrayRef)]).unwrap();
    let error = narrow.prove(&below).unwrap_err();
    assert!(error.to_string().contains("column `n`: -1 does not fit") && !error.is_retryable(), "{error}");
}
