//! Where a connector listens and who it connects to, as its options say it.
//!
//! | Option | |
//! |---|---|
//! | `brokers`, `hosts`, `server`, `address` | `host:port`, several with commas; before it may stand `tcp://` |
//! | `url`, `endpoint` | with a scheme, which has a port of its own |
//!
//! Invariant: what can't be told for sure is left out, as names that stand for several servers are, and what lies
//! behind a proxy; nothing of a password is kept. Called when an agent's file is read, for `tidemill check`.

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
/// Those that go through a proxy of the environment.
const WEB: [&str; 4] = ["http", "https", "ws", "wss"];

/// An address that a source listens at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listens {
    Tcp(String),
    Udp(String),
}

/// What a source has to do with the network.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) listens: Vec<Listens>,
    /// Who it connects to, any of which may answer: `host:port` each.
    pub(crate) peers: Vec<String>,
}

impl Reach {
    /// Of a source that listens.
    pub(crate) fn listening(address: &str) -> Self {
        Self { listens: vec![Listens::Tcp(address.to_owned())], peers: Vec::new() }
    }

    /// Of a connector's source; `proxied` says whether the environment names a proxy.
    pub(crate) fn of(connector: &str, options: &Options, proxied: bool) -> Self {
        // Asked of a copy: that an option is known is said by the connector.
        let asked = options.clone();
        let binds = match connector {
            "tcp-listen" | "http" | "syslog" => true,
            "zeromq" => asked.get("bind") == Some("true"),
            _ => false,
        };
        if !binds {
            return Self { listens: Vec::new(), peers: peers(options, proxied) };
        }
        let Some(address) = asked.get("address") else { return Self::default() };
        let address = address.strip_prefix("tcp://").unwrap_or(address);
        let (tcp, udp) = (Listens::Tcp(address.to_owned()), Listens::Udp(address.to_owned()));
        let listens = match (connector, asked.get("transport")) {
            ("syslog", None | Some("both")) => vec![tcp, udp],
            ("syslog", Some("udp")) => vec![udp],
            _ => vec![tcp],
        };
        Self { listens, peers: Vec::new() }
    }
}

/// The servers that options name, any of which may answer: `host:port` each.
pub(crate) fn peers(options: &Options, proxied: bool) -> Vec<String> {
    let options = options.clone();
    // `none` goes past that of the environment.
    let proxied = match options.get("proxy") {
        Some("none") => false,
        Some(_) => return Vec::new(),
        None => proxied,
    };
    let mut found = Vec::new();
    for (key, port) in PLAIN {
        for one in options.get(key).into_iter().flat_map(|text| text.split(',')) {
            let one = one.trim();
            match one.split_once("://") {
                None | Some(("tcp", _)) => found.extend(with_port(one.trim_start_matches("tcp://"), port)),
                Some(_) => {}
            }
        }
    }
    // An endpoint stands in place of the servers that a URL means.
    let text = options.get("endpoint").or_else(|| options.get("url")).unwrap_or_default();
    for (scheme, rest) in urls(text) {
        let port = SCHEMES.iter().find(|(known, _)| *known == scheme).map(|(_, port)| *port);
        let through = proxied && WEB.contains(&scheme);
        if through || (port.is_none() && scheme != "hdfs") {
            continue;
        }
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
        found.extend(hosts.split(',').filter_map(|host| with_port(host.trim(), port)));
    }
    found
}

/// URLs with commas between, by scheme and rest: a comma within one is followed by no scheme.
fn urls(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let starts = text.match_indices("://").map(|(at, _)| text[..at].rfind(',').map_or(0, |comma| comma + 1));
    let starts: Vec<usize> = starts.collect();
    let ends = starts.clone().into_iter().skip(1).map(|start| start - 1).chain([text.len()]);
    starts
        .into_iter()
        .zip(ends.collect::<Vec<_>>())
        .filter_map(|(start, end)| text[start..end].trim().split_once("://"))
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
            ("url", "https://example.org/posts?ids=1,2", vec!["example.org:443"]),
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
            assert_eq!(peers(&options, false), wanted, "{key} = {value}");
            assert!(options.finish().is_err(), "whether {key} is known is not for this to say");
        }
        let of = |pairs: &[(&str, &str)], proxied| peers(&Options::new("sink \"k1\"", pairs.iter().copied()), proxied);
        let none: [&str; 0] = [];
        assert_eq!(of(&[("url", "https://example.org"), ("proxy", "http://127.0.0.1:8888")], false), none);
        assert_eq!(of(&[("url", "https://example.org")], true), none);
        assert_eq!(of(&[("url", "https://example.org"), ("proxy", "none")], true), ["example.org:443"]);
        assert_eq!(of(&[("url", "mqtt://example.org")], true), ["example.org:1883"], "no proxy takes that");
        assert_eq!(
            of(&[("url", "s3://bucket/logs"), ("endpoint", "http://127.0.0.1:9000")], false),
            ["127.0.0.1:9000"]
        );
    }

    #[test]
    fn a_source_that_listens_connects_to_nobody() {
        let (tcp, udp) = (|| Listens::Tcp("127.0.0.1:5140".to_owned()), || Listens::Udp("127.0.0.1:5140".to_owned()));
        for (connector, more, listens) in [
            ("tcp-listen", None, vec![tcp()]),
            ("http", None, vec![tcp()]),
            ("syslog", None, vec![tcp(), udp()]),
            ("syslog", Some(("transport", "both")), vec![tcp(), udp()]),
            ("syslog", Some(("transport", "tcp")), vec![tcp()]),
            ("syslog", Some(("transport", "udp")), vec![udp()]),
            ("zeromq", Some(("bind", "true")), vec![tcp()]),
            ("zeromq", Some(("bind", "false")), vec![]),
            ("tcp", None, vec![]),
        ] {
            let scheme = if connector == "zeromq" { "tcp://" } else { "" };
            let address = format!("{scheme}127.0.0.1:5140");
            let options = Options::new("source \"r1\"", [("address", address.as_str())].into_iter().chain(more));
            let reach = Reach::of(connector, &options, false);
            let peers = if listens.is_empty() { vec!["127.0.0.1:5140".to_owned()] } else { vec![] };
            assert_eq!(reach, Reach { listens, peers }, "{connector} {more:?}");
        }
    }
}
