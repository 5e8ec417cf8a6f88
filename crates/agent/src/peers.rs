//! Who a connector will connect to, as its options say it.
//!
//! | Option | |
//! |---|---|
//! | `brokers`, `hosts`, `server`, `address` | `host:port`, several with commas; a scheme before them is passed over |
//! | `url`, `endpoint` | with a scheme, which has a port of its own |
//!
//! Invariant: what can't be told for sure is left out, as names that stand for several servers are, and all where a
//! proxy stands between; nothing of a password is kept. Called when an agent's file is read, for `tidemill check`.

use tidemill_core::Options;

/// Addresses of an option, and the port of those that name none.
const PLAIN: [(&str, Option<u16>); 4] =
    [("brokers", Some(9092)), ("hosts", Some(9042)), ("server", None), ("address", None)];
/// Ports of schemes. HDFS has none: without a port its host may be a name service.
const SCHEMES: [(&str, u16); 9] = [
    ("http", 80),
    ("https", 443),
    ("ws", 80),
    ("wss", 443),
    ("mqtt", 1883),
    ("mqtts", 8883),
    ("postgres", 5432),
    ("postgresql", 5432),
    ("mongodb", 27017),
];

/// The servers that options name, any of which may answer: `host:port` each.
pub(crate) fn peers(options: &Options) -> Vec<String> {
    // Asked of a copy: that an option is known is said by the connector.
    let options = options.clone();
    if options.get("proxy").is_some() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (key, port) in PLAIN {
        for one in options.get(key).into_iter().flat_map(|text| text.split(',')) {
            let one = one.trim();
            let (scheme, rest) = one.split_once("://").unwrap_or(("tcp", one));
            if scheme == "tcp" {
                found.extend(with_port(rest, port));
            }
        }
    }
    for text in ["endpoint", "url"].iter().filter_map(|key| options.get(key)) {
        // Several URLs, or several hosts of one: a part without a scheme has that of the part before it.
        let mut port = None;
        for part in text.split(',') {
            let part = part.trim();
            let rest = match part.split_once("://") {
                Some((scheme, rest)) => {
                    port = Some(SCHEMES.iter().find(|(known, _)| *known == scheme).map(|(_, port)| *port));
                    let known = port.flatten().is_some() || scheme == "hdfs";
                    if known { rest } else { "" }
                }
                None if port.is_some() => part,
                None => "",
            };
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let host = authority.rsplit('@').next().unwrap_or_default();
            found.extend(with_port(host, port.flatten()));
        }
        if !found.is_empty() {
            break;
        }
    }
    found
}

/// `host:port`, if there is a port, said or usual.
fn with_port(host: &str, port: Option<u16>) -> Option<String> {
    // An IPv6 address has colons within its brackets.
    let said = host.rsplit_once(':').filter(|(_, said)| said.parse::<u16>().is_ok());
    match (said, port) {
        _ if host.is_empty() => None,
        (Some(("", _)), _) => None,
        (Some(_), _) => Some(host.to_owned()),
        (None, Some(port)) => Some(format!("{host}:{port}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_tell_who_is_connected_to() {
        for (key, value, wanted) in [
            ("brokers", "kafka-1:19092, kafka-2", vec!["kafka-1:19092", "kafka-2:9092"]),
            ("hosts", "db1", vec!["db1:9042"]),
            ("address", "tcp://127.0.0.1:5556", vec!["127.0.0.1:5556"]),
            ("address", "ipc:///tmp/feed", vec![]),
            ("server", "mail.example.org", vec![]),
            ("url", "http://127.0.0.1:8080/a?b=c:1", vec!["127.0.0.1:8080"]),
            ("url", "https://example.org/posts,more", vec!["example.org:443", "more:443"]),
            ("url", "wss://a.example.org/x, ws://127.0.0.1:7/y", vec!["a.example.org:443", "127.0.0.1:7"]),
            ("url", "postgres://app:se:cr@et@[::1]/shop", vec!["[::1]:5432"]),
            ("url", "mongodb://u@m1,m2:27018/shop", vec!["m1:27017", "m2:27018"]),
            ("url", "mongodb+srv://cluster.example.org/shop", vec![]),
            ("url", "hdfs://cluster/logs", vec![]),
            ("url", "hdfs://namenode:8020/logs", vec!["namenode:8020"]),
            ("url", "s3://bucket/logs", vec![]),
            ("path", "/var/log/app.log", vec![]),
        ] {
            let options = Options::new("source \"r1\"", [(key, value)]);
            assert_eq!(peers(&options), wanted, "{key} = {value}");
            assert!(options.finish().is_err(), "whether {key} is known is not for this to say");
        }
        let through = Options::new("sink \"k1\"", [("url", "https://example.org"), ("proxy", "http://127.0.0.1:8888")]);
        assert_eq!(peers(&through), Vec::<String>::new(), "the proxy knows");
        let both = [("url", "s3://bucket/logs"), ("endpoint", "http://127.0.0.1:9000")];
        assert_eq!(peers(&Options::new("sink \"k1\"", both)), ["127.0.0.1:9000"]);
    }
}
