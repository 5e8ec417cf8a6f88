//! Against a registry of our own on this machine.

use super::{server::Server, *};
use tidemill_core::{Blame, ManualClock};

const NOW: Timestamp = Timestamp(1_000_000_000_000_000);

fn registry(server: &Server) -> (SchemaRegistry, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(NOW));
    let link = Link { clock: Arc::clone(&clock) as Arc<dyn tidemill_core::Clock>, ..Link::default() };
    (SchemaRegistry::new(&server.url, None, link), clock)
}

#[test]
fn a_schema_is_asked_for_once() {
    let server = Server::start();
    let id = server.add("t-value", "AVRO", "\"long\"", Value::Null);
    let (registry, _) = registry(&server);
    for _ in 0..3 {
        let found = registry.schema(id).unwrap().unwrap();
        assert_eq!((found.language.as_str(), found.text.as_str()), ("AVRO", "\"long\""));
    }
    assert_eq!(server.asked(), [format!("GET /schemas/ids/{id}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_asked_for_from_within_a_runtime() {
    let server = Server::start();
    let id = server.add("t-value", "JSON", "{}", Value::Null);
    let (registry, _) = registry(&server);
    assert_eq!(registry.schema(id).unwrap().unwrap().language, "JSON");
    assert!(registry.newest("t-value").unwrap().of(Language::Avro).unwrap_err().contains("JSON, not AVRO"));
}

#[test]
fn an_id_that_is_not_there_is_asked_for_again_after_a_minute() {
    let server = Server::start();
    let (registry, clock) = registry(&server);
    for _ in 0..3 {
        let why = registry.schema(1).unwrap().unwrap_err();
        assert!(why.contains("has no schema 1"), "{why}");
    }
    assert_eq!(server.asked().len(), 1);
    server.add("t-value", "AVRO", "\"long\"", Value::Null);
    clock.advance(Duration::from_secs(59));
    assert!(registry.schema(1).unwrap().is_err());
    clock.advance(Duration::from_secs(1));
    assert!(registry.schema(1).unwrap().is_ok());
}

#[test]
fn a_registry_that_does_not_answer_is_an_error_that_passes() {
    let server = Server::start();
    let id = server.add("t-value", "AVRO", "\"long\"", Value::Null);
    let (registry, clock) = registry(&server);
    for (round, status) in [0, 500, 503, 429].into_iter().enumerate() {
        server.answer(Some(status));
        let error = registry.schema(id).unwrap_err();
        assert_eq!((error.blame(), error.is_retryable()), (Blame::External, true), "{}", error.chain());
        // All who ask within a second have the same answer.
        assert_eq!(registry.schema(id).unwrap_err().blame(), Blame::External);
        assert_eq!(server.asked().len(), round + 1);
        clock.advance(REST);
    }
    server.answer(None);
    assert!(registry.schema(id).unwrap().is_ok(), "nothing was lost");
}

#[test]
fn credentials_are_sent_and_refused_ones_are_told() {
    let server = Server::start();
    let id = server.add("t-value", "AVRO", "\"long\"", Value::Null);
    // user:hunter2
    server.want("dXNlcjpodW50ZXIy");
    let with =
        |password: &str| SchemaRegistry::new(&server.url, Some(("user".into(), password.into())), Link::default());
    assert!(with("hunter2").schema(id).unwrap().is_ok());
    let error = with("hunter3").schema(id).unwrap_err();
    assert_eq!(error.blame(), Blame::User);
    assert!(error.chain().contains("registry_password_file") && !error.chain().contains("hunter"), "{}", error.chain());
    assert!(!format!("{:?}", with("hunter3")).contains("hunter"));
}

#[test]
fn references_come_along_each_after_its_own() {
    let server = Server::start();
    server.add("a", "PROTOBUF", "A", Value::Null);
    server.add("b", "PROTOBUF", "B", serde_json::json!([{"name": "a.proto", "subject": "a", "version": 1}]));
    let references = serde_json::json!([
        {"name": "b.proto", "subject": "b", "version": 1},
        {"name": "a.proto", "subject": "a", "version": 1},
    ]);
    let id = server.add("c", "PROTOBUF", "C", references);
    let found = registry(&server).0.schema(id).unwrap().unwrap();
    let named = |(name, text): &(String, String)| format!("{name}={text}");
    assert_eq!(found.references.iter().map(named).collect::<Vec<_>>(), ["a.proto=A", "b.proto=B"]);
    // One that is gone is no schema that does not exist.
    let id = server.add("d", "AVRO", "D", serde_json::json!([{"name": "x", "subject": "x", "version": 7}]));
    let error = registry(&server).0.schema(id).unwrap_err();
    assert!(error.to_string().contains("no version 7 of `x`"), "{error}");
}

#[test]
fn a_schema_is_registered_once() {
    let server = Server::start();
    let (registry, _) = registry(&server);
    let id = registry.register("t/value", Language::Avro, "\"int\"").unwrap();
    assert_eq!(registry.register("t/value", Language::Avro, "\"int\"").unwrap(), id);
    assert_eq!(server.asked(), ["POST /subjects/t%2Fvalue/versions"; 2]);
    let error = registry.register("t", Language::Avro, "incompatible").unwrap_err();
    assert_eq!(error.blame(), Blame::User);
    assert!(error.to_string().contains("READER_FIELD_MISSING"), "{error}");
}

#[test]
fn options_that_make_no_sense_are_told() {
    let made =
        |options: &[(&str, &str)]| SchemaRegistry::from_options(&Options::new("stream \"s\"", options.iter().copied()));
    assert!(made(&[]).unwrap().is_none());
    assert!(made(&[("registry", "http://registry:8081")]).unwrap().is_some());
    for (options, says) in [
        (&[("registry", "registry:8081")][..], "option `registry`"),
        (&[("registry", "http://registry:8081"), ("registry_user", "u")], "http:// is for servers on this machine"),
        (&[("registry_user", "u")], "goes with `registry`"),
        (&[("registry", "https://r"), ("registry_password", "hunter2")], "registry_password_file"),
        (&[("registry", "https://r"), ("registry_password_env", "X")], "registry_user"),
    ] {
        let error = made(options).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains("hunter2"), "{options:?}: {error}");
    }
    let subject = |options: &[(&str, &str)]| subject(&Options::new("s", options.iter().copied())).map_err(drop);
    assert_eq!(subject(&[("topic", "orders")]), Ok("orders-value".to_string()));
    assert_eq!(subject(&[("topic", "orders"), ("subject", "x")]), Ok("x".to_string()));
    assert_eq!(subject(&[("topic", "a, b")]), Err(()));
}

#[test]
fn a_frame_comes_off_as_it_was_put_on() {
    let mut record = Vec::new();
    frame(0x0102_0304, &mut record);
    record.extend(b"value");
    assert_eq!(record[..5], [0, 1, 2, 3, 4]);
    assert_eq!(unframe(&record), Ok((0x0102_0304, &b"value"[..])));
    assert!(unframe(&record[..4]).is_err() && unframe(b"\x01\0\0\0\x01x").is_err() && unframe(b"").is_err());
}
