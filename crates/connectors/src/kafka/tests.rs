//! Against the Kafka that `TIDEMILL_KAFKA` names; options without.

mod ends;
mod faults;
mod sink;
mod source;
mod stale;
#[cfg(feature = "kafka-tls")]
mod tls;
mod ways;

use super::{KafkaSink, KafkaSource};
use tidemill_core::{Guarantee, Options, Result, Sink, Source};

/// Held by a test that stands between its clients and the server.
static WAY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn source(options: &[(&str, &str)]) -> Result<KafkaSource> {
    let options = Options::new("stream \"s\"", options.iter().copied());
    let source = KafkaSource::from_options(&options)?;
    options.finish()?;
    Ok(source)
}

fn sink(options: &[(&str, &str)]) -> Result<KafkaSink> {
    let options = Options::new("sink \"s\"", options.iter().copied());
    let sink = KafkaSink::from_options(&options)?;
    options.finish()?;
    Ok(sink)
}

/// Options with a cluster and a topic before them.
fn with<'a>(brokers: &'a str, topic: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("brokers", brokers), ("topic", topic)], more].concat()
}

/// Records of which each names its number, with a key.
fn numbered(numbers: std::ops::Range<u32>) -> impl Iterator<Item = (Option<String>, String)> {
    numbers.map(|n| (Some(format!("key-{}", n % 7)), format!("record {n}")))
}

#[test]
fn options_that_make_no_sense_are_told() {
    let error = |more: &[(&str, &str)]| source(&with("localhost:9", "t", more)).unwrap_err().to_string();
    for (more, says) in [
        (&[("brokers", "localhost")][..], "each with its port"),
        (&[("topic", "a b")], "`a b` names no topics"),
        (&[("start", "soon")], "option `start` must be"),
        (&[("start", "other-0:1")], "an offset is given for other-0, which `topic` does not name"),
        (&[("group", "")], "must name a consumer group"),
        (&[("partition_records", "0")], "must be positive"),
        (&[("zookeeper", "localhost:2181")], "no ZooKeeper is asked for anything"),
        (&[("password", "hunter2")], "`password_env`"),
        (&[("user", "me")], "go together"),
        (
            &[("user", "me"), ("password_env", "TIDEMILL_NO_SUCH")],
            "`TIDEMILL_NO_SUCH` of option `password_env` is not set",
        ),
        (&[("user", "me"), ("password_env", "PATH"), ("sasl", "PLAN")], "must be PLAIN"),
        (&[("ca", "x.pem")], "goes with tls"),
        (&[("certificate", "x.pem")], "`certificate` and `certificate_key` go together"),
        (&[("certificate", "x.pem"), ("certificate_key", "x.key")], "goes with tls"),
        (&[("properties", "ssl.key.password=hunter2")], "must not stand in a program"),
        (&[("properties", "fetch.min.bytes")], "must be like"),
        (&[("properties", "isolation.level=read_uncommitted")], "is not for you to set"),
        (&[("properties", "no.such.thing=1")], "refused by librdkafka"),
        (&[("partion", "1")], "unknown option `partion`"),
    ] {
        let told = error(more);
        assert!(told.contains(says), "{more:?}: {told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    for (tls, mechanism) in [(true, "PLAIN"), (false, "SCRAM-SHA-512")] {
        let told = super::client::without_tls("s", tls, mechanism).unwrap_err().to_string();
        assert!(told.contains("cargo build --release --features kafka-tls"), "{told}");
        let option = if tls { ("tls", "true") } else { ("sasl", mechanism) };
        let user = [("user", "me"), ("password_env", "PATH"), option];
        assert_eq!(source(&with("localhost:9", "t", &user)).is_ok(), cfg!(feature = "kafka-tls"), "{option:?}");
    }
    assert!(super::client::without_tls("s", false, "PLAIN").is_ok());
    assert!(source(&with("a:1, b:2", "logs-*", &[("properties", "fetch.wait.max.ms=5, fetch.min.bytes=5")])).is_ok());

    let error = |more: &[(&str, &str)]| sink(&with("localhost:9", "t", more)).unwrap_err().to_string();
    for (more, says) in [
        (&[("topic", "a*")][..], "can't be a topic's name"),
        (&[("format", "xml")], "must be `json` (default), `avro`, `protobuf` or `text`"),
        (&[("guarantee", "twice")], "'at least once' (default) or 'exactly once'"),
        (&[("compression", "rar")], "must be none, gzip"),
        (&[("transactional_id", "x")], "goes with guarantee = 'exactly once'"),
        (&[("transaction_timeout", "1h")], "must be 1s to 15m"),
    ] {
        assert!(error(more).contains(says), "{more:?}: {}", error(more));
    }
    let exact = |id| sink(&with("a:1", "t", &[("guarantee", "exactly-once"), ("transactional_id", id)])).unwrap();
    assert_eq!(exact("x").guarantee(), Guarantee::ExactlyOnce);
    assert!(exact("x").claim().unwrap().clashes(&exact("x").claim().unwrap()));
    assert!(!exact("x").claim().unwrap().clashes(&exact("y").claim().unwrap()));
    let plain = sink(&with("a:1", "t", &[])).unwrap();
    assert_eq!((plain.guarantee(), plain.describe()), (Guarantee::AtLeastOnce, "kafka a:1 topic t (json)".into()));
    let read = source(&with("a:1", "t", &[("group", "g")])).unwrap();
    assert_eq!(read.describe(), "kafka a:1 topic t, offsets to group g");
}
