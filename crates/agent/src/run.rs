//! A running agent.
//!
//! ```text
//! open: log, channels, inlets ─► sources and groups, a task each ─► stop: sources, then sinks, then what is kept
//! ```
//!
//! Invariant: sources end before sinks, so what they have put is handed on or kept; an agent whose sources have all
//! ended hands on what there is and ends. One that is told to quit ends within a second, whatever hangs, as after a
//! crash: what its channels hold is told in the status. Called by `tidemill agent` and by tests.

use crate::{
    channel::{Channel, Channels, file::FileChannel, memory::Memory, place::PlaceFile},
    config::{ChannelPlan, Deal, GroupPlan, Plan, SinkKind, SinkPlan, SourcePlan},
    inlet::{Inlet, Parts},
    sink::{
        Outlet,
        avro::AvroSink,
        file::FileSink,
        group::{Group, Member, Policy},
        logger::{Logger, Null, Out},
        store::StoreSink,
        topic::TopicSink,
    },
    status::{Counters, Held, Status},
};
use std::{hash::BuildHasher, path::PathBuf, sync::Arc};
use tidemill_core::{Clock, Duration, Error, Result, Stop, StopHandle};
use tidemill_store::{disk::Disk, log::Log};
use tokio::{sync::watch, task::JoinSet};

/// How often what need not be kept is freed.
const TIDY: Duration = Duration::from_secs(5);
/// The first pause before a source that failed begins anew.
const PAUSE: Duration = Duration::from_millis(250);

/// How long parts that were told to quit are waited for.
const LAST: Duration = Duration::from_secs(1);

/// What a running agent is given.
pub struct Setting {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where files of sinks are written.
    pub disk: Arc<dyn Disk>,
    /// The log, and the directory that it is in; `None` where nothing is to last.
    pub data: Option<(Arc<Log>, PathBuf)>,
    /// Where the sink `logger` prints.
    pub out: Out,
}

/// A running agent.
pub struct Agent {
    channels: Channels,
    /// Open as long as its topics are used.
    _log: Option<Arc<Log>>,
    sources: Vec<(String, Arc<Counters>)>,
    sinks: Vec<(String, Arc<Counters>)>,
    clock: Arc<dyn Clock>,
    tasks: JoinSet<Ended>,
    stop_sources: StopHandle,
    stop_sinks: StopHandle,
    quit: Arc<StopHandle>,
    quitting: Stop,
    /// Sources that run; the agent ends by itself when none does and the channels are empty.
    running: usize,
    groups: usize,
}

/// A task has ended.
enum Ended {
    Source(String, Result<()>),
    Group(Result<()>),
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Agent {
    /// Starts all parts of a plan; needs a runtime.
    ///
    /// # Errors
    /// When a channel can't be opened.
    pub async fn start(plan: Plan, setting: Setting) -> Result<Self> {
        let Plan { name, channels, sources, groups, .. } = plan;
        let mut opened = Channels::new();
        for (channel, plan) in channels {
            let made = open_channel(&name, &channel, &plan, &setting)?;
            opened.insert(channel, Arc::new(made));
        }
        let (stop_sources, sources_stopping) = StopHandle::new();
        let (stop_sinks, sinks_stopping) = StopHandle::new();
        let (quit, quitting) = StopHandle::new();
        let mut agent = Self {
            channels: opened,
            _log: setting.data.as_ref().map(|(log, _)| Arc::clone(log)),
            sources: Vec::new(),
            sinks: Vec::new(),
            clock: Arc::clone(&setting.clock),
            tasks: JoinSet::new(),
            stop_sources,
            stop_sinks,
            quit: Arc::new(quit),
            quitting: quitting.clone(),
            running: sources.len(),
            groups: groups.len(),
        };
        for group in groups {
            let mut group = agent.group(&name, group, &setting)?;
            let (stop, quit) = (sinks_stopping.clone(), quitting.clone());
            agent.tasks.spawn(async move { Ended::Group(group.run(&stop, &quit).await) });
        }
        for source in sources {
            agent.source(source, &sources_stopping, &quitting).await?;
        }
        Ok(agent)
    }

    fn group(&mut self, agent: &str, plan: GroupPlan, setting: &Setting) -> Result<Group> {
        let policy = match plan.deal {
            Deal::Failover => Policy::Failover,
            Deal::RoundRobin => Policy::RoundRobin,
            Deal::Random(seed) => {
                Policy::Random(seed.unwrap_or_else(|| std::hash::RandomState::new().hash_one("agent")))
            }
        };
        let batch_size = plan.sinks.iter().map(|sink| sink.batch_size).min().unwrap_or(1);
        let mut members = Vec::new();
        for sink in plan.sinks {
            let counters = Arc::new(Counters::default());
            self.sinks.push((sink.name.clone(), Arc::clone(&counters)));
            let (name, most) = (sink.name.clone(), sink.max_backoff);
            members.push(Member::new(&name, outlet(agent, sink, setting)?, counters, most));
        }
        let channel = self.channels.get(&plan.channel).ok_or_else(|| Error::internal("a group without a channel"))?;
        let batch_size = usize::try_from(batch_size).unwrap_or(usize::MAX);
        Ok(Group::new(members, policy, Arc::clone(channel), batch_size, Arc::clone(&self.clock)))
    }

    async fn source(&mut self, plan: SourcePlan, stop: &Stop, quit: &Stop) -> Result<()> {
        let counters = Arc::new(Counters::default());
        self.sources.push((plan.name.clone(), Arc::clone(&counters)));
        let channels = plan.channels.iter().filter_map(|channel| self.channels.get(channel).cloned()).collect();
        let parts = Parts {
            source: plan.name.clone(),
            interceptors: plan.interceptors,
            selector: plan.selector,
            channels,
            counters: Arc::clone(&counters),
            clock: Arc::clone(&self.clock),
            quit: quit.clone(),
        };
        let inlet = Arc::new(Inlet::open(parts).await?);
        let (clock, stop, origin, name) = (Arc::clone(&self.clock), stop.clone(), plan.origin, plan.name);
        self.tasks.spawn(async move {
            let mut pause = PAUSE;
            loop {
                match origin.run(Arc::clone(&inlet), stop.clone()).await {
                    Err(error) if error.is_retryable() && !stop.is_stopped() => {
                        tracing::warn!(
                            source = name,
                            error = error.chain(),
                            "a source failed and will be started again"
                        );
                        counters.failed(&error);
                        tokio::select! {
                            () = clock.sleep_until(clock.now().plus(pause)) => {}
                            () = stop.stopped() => return Ended::Source(name, Ok(())),
                        }
                        pause = (pause * 2).min(Duration::from_secs(30));
                    }
                    ended => return Ended::Source(name, ended),
                }
            }
        });
        Ok(())
    }

    /// How it fares.
    pub fn status(&self) -> Status {
        let counts = |parts: &[(String, Arc<Counters>)]| parts.iter().map(|(n, c)| (n.clone(), c.counts())).collect();
        let held = |(name, channel): (&String, &Arc<Channel>)| {
            (name.clone(), Held { events: channel.len(), durable: channel.is_durable() })
        };
        Status {
            sources: counts(&self.sources),
            channels: self.channels.iter().map(held).collect(),
            sinks: counts(&self.sinks),
        }
    }

    /// What ends all waits: a second wish to stop.
    pub fn quit_handle(&self) -> Arc<StopHandle> {
        Arc::clone(&self.quit)
    }

    /// Runs until `stop`, until a part fails for good, or until all sources have ended and all events are handed on.
    /// `say` is called with the status now and then. After `stop` it waits `grace` for sinks that fail, and a second
    /// more for parts that do not answer; what could not be handed on is in the status.
    ///
    /// # Errors
    /// Why a part has failed before it was told to quit; the others were stopped.
    pub async fn run(mut self, stop: Stop, grace: Duration, say: impl Fn(&Status)) -> Result<Status> {
        let ended = self.watch(&stop, &say).await;
        self.stop_sources.stop();
        let deadline = self.clock.now().plus(grace);
        let clock = Arc::clone(&self.clock);
        let (quit, quitting) = (Arc::clone(&self.quit), self.quitting.clone());
        let mut timer = std::pin::pin!(async move {
            tokio::select! {
                () = clock.sleep_until(deadline) => quit.stop(),
                () = quitting.stopped() => {}
            }
            clock.sleep_until(clock.now().plus(LAST)).await;
        });
        let mut result = ended;
        while self.running + self.groups > 0 {
            if self.running == 0 {
                self.stop_sinks.stop();
            }
            let done = tokio::select! {
                biased;
                done = self.tasks.join_next() => done,
                () = &mut timer => None,
            };
            let Some(done) = done else {
                let (sources, groups) = (self.running, self.groups);
                tracing::warn!(sources, groups, "parts of the agent did not end when they were told to quit");
                break;
            };
            let one = self.one_ended(done);
            result = result.and(one);
        }
        if self.running + self.groups == 0 {
            self.tidy().await;
        }
        let status = self.status();
        result.map(|()| status)
    }

    /// Until it is time to stop.
    async fn watch(&mut self, stop: &Stop, say: &impl Fn(&Status)) -> Result<()> {
        let mut news: Vec<watch::Receiver<u64>> = self.channels.values().map(|channel| channel.room()).collect();
        let mut tidy = self.clock.now().plus(TIDY);
        loop {
            for one in &mut news {
                one.mark_unchanged();
            }
            let empty = self.channels.values().all(|channel| channel.len() == 0);
            if self.running == 0 && empty {
                return Ok(());
            }
            let changes = news.iter_mut().map(|one| Box::pin(one.changed()));
            tokio::select! {
                biased;
                () = stop.stopped() => return Ok(()),
                Some(done) = self.tasks.join_next() => self.one_ended(done)?,
                () = self.clock.sleep_until(tidy) => {
                    tidy = self.clock.now().plus(TIDY);
                    self.tidy().await;
                    say(&self.status());
                }
                // Only when sources have ended does it matter that a channel is empty.
                _ = futures::future::select_all(changes), if self.running == 0 => {}
            }
        }
    }

    /// Frees what need not be kept; where that fails, nothing is lost.
    async fn tidy(&self) {
        for channel in self.channels.values() {
            if let Err(error) = channel.tidy(self.clock.now()).await {
                tracing::warn!(channel = channel.name, error = error.chain(), "nothing could be freed");
            }
        }
    }

    fn one_ended(&mut self, done: std::result::Result<Ended, tokio::task::JoinError>) -> Result<()> {
        match done {
            Ok(Ended::Source(name, ended)) => {
                self.running -= 1;
                if let Some((_, counters)) = self.sources.iter().find(|(source, _)| *source == name) {
                    counters.says("ended");
                }
                match ended {
                    // It waited for room, perhaps, and was told that there will be none: what is kept tells more.
                    Err(error) if self.quitting.is_stopped() => {
                        tracing::warn!(source = name, error = error.chain(), "a source was cut short");
                        Ok(())
                    }
                    ended => ended.map_err(|e| with_name(&format!("source \"{name}\" failed"), e)),
                }
            }
            Ok(Ended::Group(ended)) => {
                self.groups -= 1;
                ended
            }
            Err(error) => {
                // Which part it was is not known any more: the agent ends.
                self.running = 0;
                self.groups = 0;
                Err(Error::internal("a part of the agent panicked").because(error))
            }
        }
    }
}

/// An error of the same blame that says whose it is.
fn with_name(what: &str, error: Error) -> Error {
    let named = match error.blame() {
        tidemill_core::Blame::User => Error::user(what),
        tidemill_core::Blame::External => Error::external(what).fatal(),
        tidemill_core::Blame::Internal => Error::internal(what),
    };
    named.because(error)
}

fn open_channel(agent: &str, name: &str, plan: &ChannelPlan, setting: &Setting) -> Result<Channel> {
    let places = setting.data.as_ref().map(|(_, dir)| dir.join("agents").join(agent));
    match plan {
        ChannelPlan::Memory { capacity, bytes } => {
            let kept = places.map(|dir| PlaceFile::open(Arc::clone(&setting.disk), &dir, name)).transpose()?;
            Ok(Channel::memory(name, Memory::new(*capacity, *bytes), kept))
        }
        ChannelPlan::File(config) => {
            let (Some((log, _)), Some(dir)) = (&setting.data, places) else {
                return Err(Error::internal("a durable channel without a data directory"));
            };
            Ok(Channel::file(name, FileChannel::open(log, Arc::clone(&setting.disk), &dir, agent, name, config)?))
        }
    }
}

fn outlet(agent: &str, plan: SinkPlan, setting: &Setting) -> Result<Box<dyn Outlet>> {
    let owner = format!("{agent}/{}", plan.name);
    let data = || setting.data.clone().ok_or_else(|| Error::internal("a sink without a data directory"));
    Ok(match plan.kind {
        SinkKind::Logger { most } => Box::new(Logger { most, out: Arc::clone(&setting.out) }),
        SinkKind::Null => Box::new(Null),
        SinkKind::Avro { address, timeout, call_size, deflate } => {
            Box::new(AvroSink::new(address, timeout, call_size, deflate))
        }
        #[cfg(test)]
        SinkKind::Given(outlet) => outlet,
        SinkKind::File(config) => {
            Box::new(FileSink::new(config, Arc::clone(&setting.disk), Arc::clone(&setting.clock)))
        }
        SinkKind::Topic { topic, raw } => Box::new(TopicSink::new(data()?.0, &topic, raw, &owner)),
        SinkKind::Store { sink, columns, .. } => {
            let aside = data()?.1.join("agents").join(agent).join("staged").join(&plan.name);
            Box::new(StoreSink::new(sink, columns, &owner, aside, Arc::clone(&setting.clock)))
        }
    })
}

#[cfg(test)]
mod tests;
