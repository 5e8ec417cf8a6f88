//! Sources, channels, interceptors, selectors and sinks of an agent's file, one by one.
//!
//! Invariant: as the reader's: all problems are told, with their places. A new kind of part is an arm here.

use super::{
    BATCH, ChannelPlan, Reader, SinkKind, SinkPlan, SourcePlan,
    section::{Section, Spot, hint},
};
use crate::{
    channel::file::{FileConfig, KEEP_BYTES},
    interceptor::{Interceptor, RouteFrom, Unique, missing_group},
    reach::{Reach, peers},
    selector::Selector,
    sink::{file::FileConfig as RollConfig, store::Columns},
    source::{
        Origin, Received,
        avro::AvroSource,
        read::Read,
        seq::Seq,
        spool::{After, Spool},
    },
};
use std::path::PathBuf;
use tidemill_core::{Duration, Input, Shape};
use tidemill_store::log::{Retention, Sync, check_name};

/// The longest rest of a sink that fails again and again.
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Sources of the agent's own; all others are the registry's.
const SOURCES: [&str; 4] = ["netcat", "avro", "spooldir", "seq"];
const SINKS: [&str; 7] = ["avro", "logger", "console", "null", "file", "topic", "store"];
const INTERCEPTORS: [&str; 11] = [
    "timestamp",
    "host",
    "static",
    "uuid",
    "regex_filter",
    "drop",
    "regex_extractor",
    "search_replace",
    "redact",
    "remove_header",
    "route_key",
];

impl Reader<'_> {
    pub(super) fn channel(&self, section: &Section<'_>) -> ChannelPlan {
        let kind = section.required("type", "`memory`, or `file` for one that survives a crash").map(|spot| {
            let known = ["memory", "file"];
            if !known.contains(&spot.text.as_str()) {
                section.problem_at(
                    spot.span,
                    format!("there is no channel `{}`; {}", spot.text, hint(&spot.text, &known)),
                );
            }
            spot.text
        });
        let plan = if kind.as_deref() == Some("file") {
            let sync = section.duration("sync", Duration::from_millis(10));
            let sync = if sync.is_zero() { Sync::Always } else { Sync::Every(sync) };
            let max_age = section.has("keep_for").then(|| section.duration("keep_for", Duration::from_secs(3600)));
            let max_bytes = match (section.has("keep_bytes"), max_age) {
                (false, Some(_)) => None,
                _ => Some(section.bytes("keep_bytes", KEEP_BYTES).max(1)),
            };
            let keep = Retention { max_age, max_bytes };
            ChannelPlan::File(FileConfig { capacity: section.count("capacity", 1_000_000), sync, keep })
        } else {
            let bytes = section.bytes("byte_capacity", 64 << 20).max(1);
            ChannelPlan::Memory { capacity: section.count("capacity", 10_000), bytes }
        };
        section.finish();
        plan
    }

    pub(super) fn source(&self, spot: &Spot, section: &Section<'_>, known: &[&str]) -> Option<SourcePlan> {
        let kind = section.required("type", "what it is, such as `netcat`, `tail` or `spooldir`")?;
        let (mut channels, named) = (Vec::new(), section.list("channels"));
        if !section.has("channels") || section.is_empty("channels") {
            section.problem("`channels` is missing: it names the channels that get its events");
        }
        for channel in named {
            if !known.contains(&channel.text.as_str()) {
                section.problem_at(
                    channel.span,
                    format!("there is no channel `{}`; {}", channel.text, hint(&channel.text, known)),
                );
            } else if channels.contains(&channel.text) {
                section.problem_at(channel.span, format!("channel `{}` is named twice", channel.text));
            } else {
                channels.push(channel.text);
            }
        }
        let interceptors = section.sections("interceptors").iter().filter_map(|one| self.interceptor(one)).collect();
        let selector = section
            .section("selector")
            .map_or(Selector::Replicating { optional: Vec::new() }, |selector| self.selector(&selector, &channels));
        let (origin, reach) = self.origin(section, &kind)?;
        Some(SourcePlan { name: spot.text.clone(), origin, interceptors, selector, channels, reach })
    }

    /// What a source reads, and what that has to do with the network.
    fn origin(&self, section: &Section<'_>, kind: &Spot) -> Option<(Box<dyn Origin>, Reach)> {
        let mut reach = Reach::default();
        let origin: Box<dyn Origin> = match kind.text.as_str() {
            "seq" => {
                Box::new(Seq { total: section.some_count("total"), batch_size: section.count("batch_size", 1000) })
            }
            "spooldir" => Box::new(self.spool(section)?),
            "avro" => {
                let address = section.required("address", "it says where to listen, such as 127.0.0.1:41414");
                let max_connections = usize::try_from(section.count("max_connections", 256)).unwrap_or(1);
                let max_connections = max_connections.min(tokio::sync::Semaphore::MAX_PERMITS);
                let (address, deflate) = (address?.text, deflate(section));
                reach = Reach::listening(&address);
                Box::new(AvroSource { address, max_connections, deflate })
            }
            "exec" => {
                section.problem_at(
                    kind.span,
                    "an agent starts no other program, so there is no `exec`: `tail` follows a file across rotation and \
                     goes on where it was, `spooldir` reads finished files, and `netcat` listens to what a program \
                     sends (`PROGRAM | nc HOST PORT`)",
                );
                return None;
            }
            other => {
                let connector = if other == "netcat" { "tcp-listen" } else { other };
                let options = section.options(&[("connector", connector)]);
                reach = Reach::of(connector, &options, self.world.proxied);
                let opened = self.world.registry.input(&options).and_then(|input| options.finish().map(|()| input));
                return match opened {
                    Ok(Input::Receivers(mut receivers)) if receivers.len() == 1 => {
                        Some((Box::new(Received(receivers.remove(0))), reach))
                    }
                    Ok(Input::Receivers(_)) => {
                        section.problem("it would be several receivers: make a source of each");
                        None
                    }
                    Ok(Input::Source(source)) if matches!(source.shape(), Shape::Raw) => {
                        Some((Box::new(Read(source)), reach))
                    }
                    Ok(Input::Source(source)) => {
                        section.problem(format!("{} gives columns, an agent takes raw records", source.describe()));
                        None
                    }
                    Err(error) if error.chain().contains("there is no connector") => {
                        let mut known: Vec<&str> = SOURCES.to_vec();
                        known.extend(self.world.registry.inputs());
                        section.problem_at(kind.span, format!("there is no source `{other}`; {}", hint(other, &known)));
                        None
                    }
                    Err(error) => {
                        section.refused(&error);
                        None
                    }
                };
            }
        };
        section.finish();
        Some((origin, reach))
    }

    fn spool(&self, section: &Section<'_>) -> Option<Spool> {
        let directory = section.required("directory", "where finished files are moved to");
        let delete = section.choice("delete_policy", &["never", "immediate"], "never") == "immediate";
        let suffix = section.text("completed_suffix").unwrap_or_else(|| ".COMPLETED".to_owned());
        if suffix.is_empty() {
            section.problem("`completed_suffix` must not be empty: a file that was read would be read again");
        }
        let include = section.spot("include").and_then(|spot| {
            let whole = format!("^(?:{})$", spot.text);
            regex::Regex::new(&whole).map_err(|e| section.problem_at(spot.span, one_line(&e))).ok()
        });
        let (file_header, basename_header) = (section.text("file_header"), section.text("basename_header"));
        let poll = section.duration("poll", Duration::from_millis(500)).max(Duration::from_millis(1));
        let max_line = usize::try_from(section.bytes("max_line", 1 << 20)).unwrap_or(usize::MAX).max(1);
        Some(Spool {
            directory: PathBuf::from(directory?.text),
            after: if delete { After::Delete } else { After::Rename(suffix) },
            include,
            file_header,
            basename_header,
            poll,
            max_line,
        })
    }

    fn selector(&self, section: &Section<'_>, channels: &[String]) -> Selector {
        let known: Vec<&str> = channels.iter().map(String::as_str).collect();
        let places = |spots: &[Spot]| -> Vec<usize> {
            let mut places = Vec::new();
            for spot in spots {
                match channels.iter().position(|channel| *channel == spot.text) {
                    Some(place) if !places.contains(&place) => places.push(place),
                    Some(_) => {}
                    None => section.problem_at(
                        spot.span,
                        format!("`{}` is no channel of this source; {}", spot.text, hint(&spot.text, &known)),
                    ),
                }
            }
            places
        };
        let selector = if section.choice("type", &["replicating", "multiplexing"], "replicating") == "multiplexing" {
            let header = section.required("header", "whose value says where an event goes");
            let lists = |key: &str| {
                let lists = section.section(key).map(|lists| lists.lists()).unwrap_or_default();
                lists.into_iter().map(|(value, spots)| (value, places(&spots))).collect()
            };
            if !section.has("mapping") {
                section.problem("`mapping` is missing: it says which channels each value of the header leads to");
            }
            Selector::Multiplexing {
                header: header.map(|spot| spot.text).unwrap_or_default(),
                mapping: lists("mapping"),
                default: places(&section.list("default")),
                optional: lists("optional"),
            }
        } else {
            Selector::Replicating { optional: places(&section.list("optional")) }
        };
        section.finish();
        selector
    }

    fn interceptor(&self, section: &Section<'_>) -> Option<Interceptor> {
        let kind = section.required("type", "what it does, such as `timestamp` or `regex_filter`")?;
        let header = |default: &str| section.text("header").unwrap_or_else(|| default.to_owned());
        let preserve = |default: bool| section.flag("preserve", default);
        let regex = |key: &str, purpose: &str, whole: bool| {
            let spot = section.required(key, purpose)?;
            let text = if whole { format!("^(?:{})$", spot.text) } else { spot.text };
            regex::bytes::Regex::new(&text).map_err(|e| section.problem_at(spot.span, one_line(&e))).ok()
        };
        let matching = "which bodies it is about, a regular expression";
        let made = match kind.text.as_str() {
            "timestamp" => Some(Interceptor::Timestamp { header: header("timestamp"), preserve: preserve(false) }),
            "host" => Some(Interceptor::Static {
                header: header("host"),
                value: self.world.host.clone(),
                preserve: preserve(false),
            }),
            "static" => {
                let (key, value) = (section.text("key"), section.text("value"));
                Some(Interceptor::Static {
                    header: key.unwrap_or_else(|| "key".to_owned()),
                    value: value.unwrap_or_else(|| "value".to_owned()),
                    preserve: preserve(true),
                })
            }
            "uuid" => Some(Interceptor::Uuid {
                header: header("id"),
                prefix: section.text("prefix").unwrap_or_default(),
                preserve: preserve(true),
                unique: Unique::default(),
            }),
            "regex_filter" => {
                let exclude = section.flag("exclude", false);
                regex("regex", matching, false).map(|regex| Interceptor::Filter { regex, exclude })
            }
            "drop" => regex("regex", matching, false).map(|regex| Interceptor::Filter { regex, exclude: true }),
            "regex_extractor" => {
                let headers: Vec<Spot> = section.list("headers");
                let found = regex("regex", "with a group in parentheses for each header", false);
                if let Some(groups) = found.as_ref().map(|regex| regex.captures_len() - 1)
                    && (headers.is_empty() || headers.len() > groups)
                {
                    section.problem(format!("`headers` names {} headers, `regex` has {groups} groups", headers.len()));
                }
                found
                    .map(|regex| Interceptor::Extract { regex, headers: headers.into_iter().map(|h| h.text).collect() })
            }
            "search_replace" | "redact" => {
                let given = section.spot("replace");
                let in_headers = section.choice("in", &["body", "headers"], "body") == "headers";
                let found = regex("search", "what is replaced, a regular expression", false);
                if let (Some(regex), Some(with)) = (&found, &given)
                    && let Some(name) = missing_group(regex, &with.text)
                {
                    let what = format!(
                        "`replace` names the group `{name}`, which `search` has not; `${{1}}` has its end in itself, `$$` \
                         is a dollar"
                    );
                    section.problem_at(with.span, what);
                }
                let default = || if kind.text == "redact" { "***".to_owned() } else { String::new() };
                let with = given.map_or_else(default, |spot| spot.text);
                found.map(|regex| match in_headers {
                    true => Interceptor::RedactHeaders { regex, with },
                    false => Interceptor::Replace { regex, with },
                })
            }
            "remove_header" => regex("matching", "the names of headers that go, a regular expression", true)
                .map(|names| Interceptor::RemoveHeaders { names }),
            "route_key" => {
                let buckets = section.some_count("buckets");
                if buckets.is_none() {
                    section.problem("`buckets` is missing: how many routes there are");
                }
                let from = match (section.text("from_header"), section.has("from_body")) {
                    (Some(name), false) => Some(RouteFrom::Header(name)),
                    (None, true) => regex("from_body", "a regular expression", false).map(RouteFrom::Body),
                    _ => {
                        section.problem(
                            "either `from_header` or `from_body` (a regular expression) says what the key is made from",
                        );
                        None
                    }
                };
                from.map(|from| Interceptor::RouteKey { from, header: header("route"), buckets: buckets.unwrap_or(1) })
            }
            other => {
                section.problem_at(
                    kind.span,
                    format!("there is no interceptor `{other}`; {}", hint(other, &INTERCEPTORS)),
                );
                return None;
            }
        };
        section.finish();
        made
    }

    /// A sink and its channel.
    pub(super) fn sink(&self, spot: &Spot, section: &Section<'_>, known: &[&str]) -> Option<(String, SinkPlan)> {
        let kind = section.required("type", "what it is, such as `logger`, `file` or `topic`");
        let channel = section.required("channel", "the channel that it takes events from")?;
        if !known.contains(&channel.text.as_str()) {
            section.problem_at(
                channel.span,
                format!("there is no channel `{}`; {}", channel.text, hint(&channel.text, known)),
            );
        }
        let kind = kind?;
        let batch_size = section.count("batch_size", BATCH);
        let max_backoff = section.duration("max_backoff", MAX_BACKOFF);
        let made = match kind.text.as_str() {
            "logger" | "console" => {
                let most = section.count("max_bytes", 16);
                Some(SinkKind::Logger { most: usize::try_from(most).unwrap_or(usize::MAX) })
            }
            "null" => Some(SinkKind::Null),
            "avro" => {
                let timeout = section.duration("timeout", Duration::from_secs(20)).max(Duration::from_millis(1));
                let call_size = usize::try_from(section.count("call_size", 100)).unwrap_or(usize::MAX);
                let deflate = deflate(section);
                let address = section.required("address", "where the other agent listens, such as collector:4545");
                address.map(|spot| SinkKind::Avro { address: spot.text, timeout, call_size, deflate })
            }
            "file" => self.roll(section).map(SinkKind::File),
            "topic" => {
                let raw = section.flag("raw", false);
                section.required("topic", "the topic of the log that it fills").and_then(|topic| {
                    let checked = check_name(&topic.text);
                    checked.map_err(|e| section.problem_at(topic.span, e.to_string())).ok()?;
                    Some(SinkKind::Topic { topic: topic.text, raw })
                })
            }
            "store" => {
                let connector =
                    section.required("connector", "the sink of the registry, such as `files` or `sqlite`")?;
                let columns = Columns::of(section.list("columns").into_iter().map(|spot| spot.text).collect());
                let options = section.options(&[("connector", &connector.text)]);
                let peers = peers(&options, self.world.proxied);
                let opened = self.world.registry.sink(&options).and_then(|sink| {
                    options.finish()?;
                    sink.takes(&columns.schema())?;
                    Ok(sink)
                });
                return match opened {
                    Ok(sink) => {
                        let kind = SinkKind::Store { sink, columns, peers };
                        Some((channel.text, SinkPlan { name: spot.text.clone(), kind, max_backoff, batch_size }))
                    }
                    Err(error) => {
                        section.refused(&error);
                        None
                    }
                };
            }
            other => {
                section.problem_at(kind.span, format!("there is no sink `{other}`; {}", hint(other, &SINKS)));
                return None;
            }
        };
        section.finish();
        made.map(|kind| (channel.text, SinkPlan { name: spot.text.clone(), kind, max_backoff, batch_size }))
    }

    fn roll(&self, section: &Section<'_>) -> Option<RollConfig> {
        let directory = section.required("directory", "where its files go");
        let every = section.duration("roll_interval", Duration::from_secs(30));
        let size = section.bytes("roll_size", 0);
        let (prefix, suffix) = (section.text("prefix"), section.text("suffix"));
        Some(RollConfig {
            directory: PathBuf::from(directory?.text),
            prefix: prefix.unwrap_or_default(),
            suffix: suffix.unwrap_or_else(|| ".log".to_owned()),
            every: (!every.is_zero()).then_some(every),
            size: (size > 0).then_some(size),
        })
    }
}

/// Whether the two sides of a hop compress.
fn deflate(section: &Section<'_>) -> bool {
    section.choice("compression", &["none", "deflate"], "none") == "deflate"
}

/// An error of a regular expression, in one line.
fn one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    format!("this is no regular expression: {last}")
}
