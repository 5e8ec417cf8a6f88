//! The agent's file: TOML in, a [`Plan`] out, or all that is wrong with it, each by line and column.
//!
//! ```toml
//! [sources.r1]
//! type = "netcat"
//! address = "127.0.0.1:44444"
//! channels = ["c1"]
//!
//! [channels.c1]
//! type = "file"
//!
//! [sinks.k1]
//! type = "logger"
//! channel = "c1"
//! ```
//!
//! Invariant: reading connects to nothing and writes nothing. Keys that nobody knows are refused, and so are parts that
//! nothing leads to or from. Called by `tidemill agent` and `tidemill check`.

mod parts;
pub(crate) mod section;
#[cfg(test)]
pub(crate) mod tests;

use crate::{
    channel::file::FileConfig,
    interceptor::Interceptor,
    reach::Reach,
    selector::Selector,
    sink::{file::FileConfig as RollConfig, store::Columns},
    source::Origin,
};
use section::{Problems, Section, Spot, hint, place};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};
use tidemill_core::{Claim, Duration, Error, Registry, Result};
use tidemill_store::log::check_program_name;
use toml_span::Span;

/// Events that a sink takes at once, unless it says otherwise.
pub(crate) const BATCH: u64 = 10_000;

/// What an agent is made of.
pub struct Plan {
    /// Its name: that of its directory of places, and the beginning of its topics' names.
    pub name: String,
    /// Where it keeps its log, as the file says.
    pub data: Option<PathBuf>,
    pub(crate) channels: BTreeMap<String, ChannelPlan>,
    pub(crate) sources: Vec<SourcePlan>,
    pub(crate) groups: Vec<GroupPlan>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("name", &self.name).field("data", &self.data).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChannelPlan {
    Memory { capacity: u64, bytes: u64 },
    File(FileConfig),
}

pub(crate) struct SourcePlan {
    pub(crate) name: String,
    pub(crate) origin: Box<dyn Origin>,
    pub(crate) interceptors: Vec<Interceptor>,
    pub(crate) selector: Selector,
    /// By name, in the order of the file; selectors count in it.
    pub(crate) channels: Vec<String>,
    pub(crate) reach: Reach,
}

pub(crate) struct SinkPlan {
    pub(crate) name: String,
    pub(crate) kind: SinkKind,
    pub(crate) max_backoff: Duration,
    pub(crate) batch_size: u64,
}

pub(crate) enum SinkKind {
    Logger {
        most: usize,
    },
    Null,
    Avro {
        address: String,
        timeout: Duration,
        call_size: usize,
        deflate: bool,
    },
    File(RollConfig),
    Topic {
        topic: String,
        raw: bool,
    },
    Store {
        sink: Arc<dyn tidemill_core::Sink>,
        columns: Columns,
        /// Who it connects to, any of which may answer.
        peers: Vec<String>,
    },
    /// A test's own.
    #[cfg(test)]
    Given(Box<dyn crate::sink::Outlet>),
}

/// How a group deals out, before sinks have their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deal {
    Failover,
    RoundRobin,
    Random(Option<u64>),
}

pub(crate) struct GroupPlan {
    pub(crate) channel: String,
    pub(crate) deal: Deal,
    /// By priority.
    pub(crate) sinks: Vec<SinkPlan>,
}

/// What reading needs to know of the world.
pub struct World {
    /// The connectors that there are.
    pub registry: Registry,
    /// This machine's name, for the interceptor `host`.
    pub host: String,
    /// Whether the environment names a proxy: then a check connects to no server of the web.
    pub proxied: bool,
}

impl Plan {
    /// Reads an agent's file. `name` is the agent's unless the file says another.
    ///
    /// # Errors
    /// All that is wrong, a line each: `line 3, column 7: …`.
    pub fn read(text: &str, name: &str, world: &World) -> Result<Self> {
        let root = toml_span::parse(text)
            .map_err(|e| Error::user(format!("{}: {}", place(text, e.span.start), e.to_string().trim_end())))?;
        let problems = Problems::default();
        let plan = Section::of("the agent", &root, Span::new(0, 0), &problems)
            .map(|section| Reader { world }.read(&section, name));
        match plan {
            Some(plan) if problems.is_empty() => Ok(plan),
            _ => Err(Error::user(problems.lines(text).join("\n"))),
        }
    }

    /// Whether it needs a directory for its log.
    pub fn needs_data(&self) -> bool {
        let lasting = |sink: &SinkPlan| matches!(sink.kind, SinkKind::Topic { .. } | SinkKind::Store { .. });
        self.channels.values().any(|channel| matches!(channel, ChannelPlan::File(_)))
            || self.groups.iter().any(|group| group.sinks.iter().any(lasting))
    }

    /// What it is made of, a line each, for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for source in &self.sources {
            lines.push(format!("{}: {} -> {}", source.name, source.origin.describe(), source.channels.join(", ")));
        }
        for group in &self.groups {
            for sink in &group.sinks {
                lines.push(format!("{} -> {}: {}", group.channel, sink.name, sink.describe()));
            }
        }
        lines
    }
}

impl SinkPlan {
    /// What it writes alone.
    fn claim(&self) -> Option<Claim> {
        match &self.kind {
            #[cfg(test)]
            SinkKind::Given(_) => None,
            SinkKind::Logger { .. } | SinkKind::Null | SinkKind::Avro { .. } => None,
            SinkKind::File(config) => {
                Some(Claim::new(format!("files {}…{}", config.directory.join(&config.prefix).display(), config.suffix)))
            }
            SinkKind::Topic { topic, .. } => Some(Claim::new(format!("topic {topic}"))),
            SinkKind::Store { sink, .. } => sink.claim(),
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        match &self.kind {
            SinkKind::Logger { .. } => "logger, at least once".to_owned(),
            SinkKind::Null => "null".to_owned(),
            SinkKind::Avro { address, .. } => format!("avro {address}, at least once"),
            #[cfg(test)]
            SinkKind::Given(_) => "given".to_owned(),
            SinkKind::File(config) => format!("files in {}, exactly once", config.directory.display()),
            SinkKind::Topic { topic, .. } => format!("topic {topic}, exactly once"),
            SinkKind::Store { sink, .. } => {
                let once = match sink.guarantee() {
                    tidemill_core::Guarantee::ExactlyOnce => "exactly once",
                    tidemill_core::Guarantee::AtLeastOnce => "at least once",
                };
                format!("{}, {once}", sink.describe())
            }
        }
    }
}

/// Reads the parts of a file that refer to each other.
pub(crate) struct Reader<'a> {
    pub(crate) world: &'a World,
}

impl Reader<'_> {
    fn read(&self, root: &Section<'_>, name: &str) -> Plan {
        let name = root.spot("name").map_or_else(
            || name.to_owned(),
            |spot| {
                if let Err(error) = check_program_name(&spot.text) {
                    root.problem_at(spot.span, error.to_string().replace("a program's", "an agent's"));
                }
                spot.text
            },
        );
        let data = root.text("data").map(PathBuf::from);
        let named = |key: &str, what: &str| root.section(key).map(|section| section.named(what)).unwrap_or_default();
        let (sources, channels) = (named("sources", "source"), named("channels", "channel"));
        let (sinks, groups) = (named("sinks", "sink"), named("groups", "group"));
        root.finish();
        for (key, all, what) in [
            ("sources", sources.is_empty(), "where events come from"),
            ("channels", channels.is_empty(), "where they wait"),
            ("sinks", sinks.is_empty(), "where they go"),
        ] {
            if all {
                root.problem(format!("there is no `[{key}.…]`: it says {what}"));
            }
        }
        for (spot, _) in sources.iter().chain(&channels).chain(&sinks) {
            if let Err(error) = check_program_name(&spot.text) {
                root.problem_at(spot.span, error.to_string().replace("a program's", "a part's"));
            }
        }
        let spots: BTreeMap<String, Span> = channels.iter().map(|(spot, _)| (spot.text.clone(), spot.span)).collect();
        let channels: BTreeMap<String, ChannelPlan> =
            channels.iter().map(|(spot, section)| (spot.text.clone(), self.channel(section))).collect();
        let known: Vec<&str> = channels.keys().map(String::as_str).collect();
        let named_sources = sources.len();
        let sources: Vec<SourcePlan> =
            sources.iter().filter_map(|(spot, section)| self.source(spot, section, &known)).collect();
        self.claims(root, &sources);
        let sinks: Vec<(Spot, Option<(String, SinkPlan)>)> =
            sinks.into_iter().map(|(spot, section)| (spot.clone(), self.sink(&spot, &section, &known))).collect();
        for (place, (spot, sink)) in sinks.iter().enumerate() {
            let claim = |sink: &Option<(String, SinkPlan)>| sink.as_ref().and_then(|(_, sink)| sink.claim());
            let Some(own) = claim(sink) else { continue };
            if let Some((other, _)) =
                sinks[..place].iter().find(|(_, other)| claim(other).is_some_and(|c| c.clashes(&own)))
            {
                root.problem_at(
                    spot.span,
                    format!("sink \"{}\" writes where \"{}\" does: {own}", spot.text, other.text),
                );
            }
        }
        // What follows from a part that can't be read is not told as well.
        let whole = sources.len() == named_sources && sinks.iter().all(|(_, sink)| sink.is_some());
        let groups = self.groups(groups, sinks);
        if whole {
            for (channel, span) in spots {
                let filled = sources.iter().any(|source| source.channels.contains(&channel));
                let emptied = groups.iter().any(|group| group.channel == channel);
                let missing = match (filled, emptied) {
                    (true, true) => continue,
                    (false, _) => "no source puts events into it",
                    (true, false) => "no sink takes events from it: it would fill up and stop its sources",
                };
                root.problem_at(span, format!("channel \"{channel}\": {missing}"));
            }
        }
        Plan { name, data, channels, sources, groups }
    }

    /// Two sources must not read the same alone.
    fn claims(&self, root: &Section<'_>, sources: &[SourcePlan]) {
        let mut claims: Vec<(&str, Claim)> = Vec::new();
        for source in sources {
            let Some(claim) = source.origin.claim() else { continue };
            if let Some((other, _)) = claims.iter().find(|(_, taken)| taken.clashes(&claim)) {
                root.problem(format!(
                    "sources \"{other}\" and \"{}\" both take {claim}: each event would reach one of them",
                    source.name
                ));
            }
            claims.push((&source.name, claim));
        }
    }

    fn groups(
        &self,
        groups: Vec<(Spot, Section<'_>)>,
        sinks: Vec<(Spot, Option<(String, SinkPlan)>)>,
    ) -> Vec<GroupPlan> {
        let names: Vec<String> = sinks.iter().map(|(spot, _)| spot.text.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut left: BTreeMap<String, Option<(String, SinkPlan)>> =
            sinks.into_iter().map(|(spot, sink)| (spot.text, sink)).collect();
        let mut taken = BTreeSet::new();
        let mut plans = Vec::new();
        for (_, section) in groups {
            let kind = section.choice("type", &["failover", "load_balance"], "failover");
            let members = section.list("sinks");
            if members.is_empty() {
                section.problem("`sinks` is missing: it names the sinks of the group");
            }
            let priorities = section.section("priority");
            let max_backoff = section.has("max_backoff").then(|| section.duration("max_backoff", parts::MAX_BACKOFF));
            let deal = match kind {
                "load_balance" => {
                    let order = section.choice("selector", &["round_robin", "random"], "round_robin");
                    let seed = section.some_count("seed");
                    if order == "random" { Deal::Random(seed) } else { Deal::RoundRobin }
                }
                _ => Deal::Failover,
            };
            let mut own: Vec<(u64, String, SinkPlan)> = Vec::new();
            for (place, member) in members.iter().enumerate() {
                if !names.contains(&member.text.as_str()) {
                    section.problem_at(
                        member.span,
                        format!("there is no sink `{}`; {}", member.text, hint(&member.text, &names)),
                    );
                    continue;
                }
                if !taken.insert(member.text.clone()) {
                    section.problem_at(member.span, format!("sink `{}` is in a group already", member.text));
                    continue;
                }
                let Some((channel, mut sink)) = left.remove(&member.text).flatten() else { continue };
                if let Some((_, first, _)) = own.first().filter(|(_, first, _)| *first != channel) {
                    section.problem_at(
                        member.span,
                        format!(
                            "sink `{}` takes from channel \"{channel}\", the group's first one from \"{first}\"",
                            member.text
                        ),
                    );
                }
                sink.max_backoff = max_backoff.unwrap_or(sink.max_backoff);
                // Without priorities the first that is named comes first.
                let default = (members.len() - place) as u64;
                let priority =
                    priorities.as_ref().map_or(default, |priorities| priorities.count(&member.text, default));
                own.push((priority, channel, sink));
            }
            if let Some(priorities) = &priorities {
                if deal != Deal::Failover {
                    section.problem_at(priorities.span, "`priority` belongs to `type = \"failover\"`");
                }
                priorities.finish();
            }
            section.finish();
            if deal == Deal::Failover {
                own.sort_by_key(|(priority, _, _)| std::cmp::Reverse(*priority));
            }
            if let Some(channel) = own.first().map(|(_, channel, _)| channel.clone()) {
                plans.push(GroupPlan { channel, deal, sinks: own.into_iter().map(|(_, _, sink)| sink).collect() });
            }
        }
        for (channel, sink) in left.into_values().flatten() {
            plans.push(GroupPlan { channel, deal: Deal::Failover, sinks: vec![sink] });
        }
        plans
    }
}
