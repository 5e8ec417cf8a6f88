//! What a file may say, and what is said of one that is wrong.

use super::{ChannelPlan, Deal, Plan, World};
use crate::selector::Selector;
use std::sync::Arc;
use tidemill_core::{Input, Intake, Options, Receiver, Registry, Result, Stop};

#[derive(Debug)]
struct Listener(String);

#[async_trait::async_trait]
impl Receiver for Listener {
    fn describe(&self) -> String {
        format!("tcp-listen {}", self.0)
    }

    fn claim(&self) -> Option<tidemill_core::Claim> {
        Some(tidemill_core::Claim::new(format!("TCP address {}", self.0)))
    }

    async fn run(&self, _intake: Arc<dyn Intake>, _stop: Stop) -> Result<()> {
        Ok(())
    }
}

fn listen(options: &Options) -> Result<Input> {
    let address = options.require("address", "it says where to listen")?.to_owned();
    options.parse("max_connections", 1_usize)?;
    Ok(Input::Receivers(vec![Arc::new(Listener(address))]))
}

pub(crate) fn world() -> World {
    let mut registry = Registry::default();
    registry.add_input("tcp-listen", listen);
    World { registry, host: "mill".to_owned(), proxied: false }
}

const WHOLE: &str = r#"
name = "a1"

[sources.r1]
type = "netcat"
address = "127.0.0.1:44444"
max_connections = 8
channels = ["c1", "c2"]
selector = { type = "multiplexing", header = "state", mapping = { CA = "c1", NY = ["c1", "c2"] }, default = "c2" }

[[sources.r1.interceptors]]
type = "host"

[[sources.r1.interceptors]]
type = "regex_extractor"
regex = 'state=(\w+)'
headers = ["state"]

[channels.c1]
type = "memory"
capacity = 1_000

[channels.c2]
type = "file"
sync = "0s"

[sinks.k1]
type = "logger"
channel = "c1"

[sinks.k2]
type = "null"
channel = "c2"

[sinks.k3]
type = "file"
directory = "out"
channel = "c2"

[groups.g1]
type = "failover"
sinks = ["k2", "k3"]
priority = { k2 = 1, k3 = 5 }
max_backoff = "10s"
"#;

#[test]
fn a_whole_file_is_read() {
    let plan = Plan::read(WHOLE, "other", &world()).unwrap();
    assert_eq!(plan.name, "a1");
    assert!(plan.needs_data());
    assert_eq!(plan.channels["c1"], ChannelPlan::Memory { capacity: 1000, bytes: 64 << 20 });
    let source = &plan.sources[0];
    assert_eq!((source.channels.as_slice(), source.interceptors.len()), (&["c1".to_owned(), "c2".to_owned()][..], 2));
    let Selector::Multiplexing { header, mapping, default, .. } = &source.selector else { panic!("by header") };
    assert_eq!((header.as_str(), &mapping["NY"], default), ("state", &vec![0, 1], &vec![1]));
    let group = plan.groups.iter().find(|group| group.channel == "c2").unwrap();
    let names: Vec<&str> = group.sinks.iter().map(|sink| sink.name.as_str()).collect();
    assert_eq!((group.deal, names), (Deal::Failover, vec!["k3", "k2"]), "by priority");
    assert_eq!(
        plan.lines(),
        [
            "r1: tcp-listen 127.0.0.1:44444 -> c1, c2",
            "c2 -> k3: files in out, exactly once",
            "c2 -> k2: null",
            "c1 -> k1: logger, at least once",
        ]
    );
}

#[test]
fn every_mistake_is_told_at_its_place() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("address =", "adress =", &["line 6, column 1: source \"r1\": unknown key `adress`; did you mean `address`?"]),
        (
            "capacity = 1_000",
            "capcity = 1_000\ncapacity = 'many'",
            &[
                "line 21, column 1: channel \"c1\": unknown key `capcity`; did you mean `capacity`?",
                "line 22, column 13: channel \"c1\": `capacity` must be a whole number of 1 or more, not `many`",
            ],
        ),
        (
            "type = \"host\"",
            "type = \"hots\"",
            &[
                "line 12, column 9: source \"r1\", `interceptors` 1: there is no interceptor `hots`; did you mean `host`?",
            ],
        ),
        (
            "type = \"netcat\"",
            "type = \"exec\"",
            &["line 5, column 9: source \"r1\": an agent starts no other program"],
        ),
        (
            "type = \"netcat\"",
            "type = \"netcta\"",
            &["line 5, column 9: source \"r1\": there is no source `netcta`; did you mean `netcat`?"],
        ),
        (
            "CA = \"c1\"",
            "CA = \"c3\"",
            &["line 9, column 73: source \"r1\", `selector`: `c3` is no channel of this source; did you mean `c1`?"],
        ),
        (
            r"(\w+)",
            r"(\w+",
            &["line 16, column 10: source \"r1\", `interceptors` 2: this is no regular expression: unclosed group"],
        ),
        ("headers = [\"state\"]", "headers = [\"a\", \"b\"]", &["`headers` names 2 headers, `regex` has 1 groups"]),
        (
            "[\"c1\", \"c2\"]\nselector = { type = \"multiplexing\", header = \"state\", mapping = { CA = \"c1\", NY = [\"c1\", \"c2\"] }, default = \"c2\" }",
            "[]",
            &[
                "source \"r1\": `channels` is missing: it names the channels that get its events",
                "channel \"c1\": no source puts events into it",
                "channel \"c2\": no source puts events into it",
            ],
        ),
        (
            "type = \"host\"",
            "type = \"search_replace\"\nsearch = '(a)'\nreplace = '$1XX'",
            &[
                "line 14, column 12: source \"r1\", `interceptors` 1: `replace` names the group `1XX`, which `search` has not; `${1}` has its end in itself, `$$` is a dollar",
            ],
        ),
        ("type = \"logger\"", "type = \"hdfs\"", &["line 28, column 9: sink \"k1\": there is no sink `hdfs`"]),
        (
            "[\"k2\", \"k3\"]",
            "[\"k2\", \"k9\"]",
            &[
                "line 42, column 17: group \"g1\": there is no sink `k9`; did you mean `k1`?",
                "`priority`: unknown key `k3`",
            ],
        ),
        (
            "[\"k2\", \"k3\"]",
            "[\"k2\", \"k1\"]",
            &[
                "sink `k1` takes from channel \"c1\", the group's first one from \"c2\"",
                "channel \"c1\": no sink takes events from it",
                "unknown key `k3`",
            ],
        ),
        ("sync = \"0s\"", "sync = 5", &["line 25, column 8: channel \"c2\": `sync` must be a duration with its unit"]),
        ("name = \"a1\"", "name = \"a/1\"", &["line 2, column 9: the agent: \"a/1\" can't be an agent's name"]),
        (
            "max_connections = 8",
            "max_connections = 'x'",
            &["line 7, column 1: source \"r1\": key `max_connections` must be a whole number, not `x`"],
        ),
        ("[sinks.k1]", "[sinks.k1", &["line 27, column 10: expected a right bracket"]),
        (
            "[channels.c1]",
            "[channels.c0]\ntype = 'memory'\n[channels.c1]",
            &["line 19, column 11: the agent: channel \"c0\": no source puts events into it"],
        ),
    ];
    let mut wrong = Vec::new();
    for (from, to, wants) in cases {
        assert_eq!(WHOLE.matches(from).count(), 1, "{from}");
        let error = Plan::read(&WHOLE.replace(from, to), "x", &world()).unwrap_err().to_string();
        // What follows from a mistake is not told as one of its own.
        if !wants.iter().all(|want| error.contains(want)) || error.lines().count() != wants.len() {
            wrong.push(format!("{to}\n  wants {wants:#?}\n  got {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn parts_that_lead_nowhere_or_clash_are_refused() {
    let of = |text: &str| Plan::read(text, "x", &world()).unwrap_err().to_string();
    assert_eq!(of("").lines().count(), 3);
    assert!(of("").contains("there is no `[sources.…]`"));
    let error = of(&WHOLE.replace("channel = \"c1\"", "channel = \"c2\""));
    assert!(error.contains("channel \"c1\": no sink takes events from it"), "{error}");
    let two = WHOLE.replace(
        "[channels.c1]",
        "[sources.r2]\ntype='netcat'\naddress='127.0.0.1:44444'\nchannels='c1'\n[channels.c1]",
    );
    assert!(of(&two).contains("sources \"r1\" and \"r2\" both take TCP address 127.0.0.1:44444"), "{}", of(&two));
    let same = WHOLE.replace("type = \"null\"", "type = \"file\"\ndirectory = \"out\"");
    assert!(of(&same).contains("sink \"k3\" writes where \"k2\" does"), "{}", of(&same));
}
